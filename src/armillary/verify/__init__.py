"""The parallel program against the serial one, on local ranks, in float64.

The room is also the word: `armillary.verify(serial, parallel, ranks=4)` proves one's own code.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A room that can be called as its main function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `armillary.verify.own.verify`."""
        from armillary.verify.own import verify

        return verify(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
