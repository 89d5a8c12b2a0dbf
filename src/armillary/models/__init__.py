"""Reading a model: any `nn.Module` -> `ModelGraph`. Nothing here knows a device."""

from armillary.models.read import read

__all__ = ["read"]
