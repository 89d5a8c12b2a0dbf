"""Did the model beat its rivals, and by how much more than chance?

`bootstrap` gives intervals by resampling, `compare` sets a model beside its rivals and makes
the document `evaluation.json`. NumPy only: an evaluation is read and repeated without torch.
"""

from armillary.audit.bootstrap import Interval, Resamples, difference, interval
from armillary.audit.compare import compare

__all__ = ["Interval", "Resamples", "compare", "difference", "interval"]
