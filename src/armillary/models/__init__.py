"""Reading a model: any `nn.Module` as numbers; nothing here knows a device."""

from armillary.models.read import read
from armillary.models.trace import Call, Seen

__all__ = ["Call", "Seen", "read"]
