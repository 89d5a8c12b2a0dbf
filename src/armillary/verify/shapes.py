"""What torch works out of shapes alone, kept on a warm rank from one layout to the next.

Before DTensor places the result of an operator it computes the result's shape on tensors without
memory, anew for every mesh, though a mesh has no part in it. Layouts of one program call the same
operators on the same shapes. What is kept is the very answer that torch would give again.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

INFER = "_propagate_tensor_meta_non_cached"
KNOWN = "_armillary_known"


def keep_shapes() -> None:
    """Have this process keep them from now on; a torch without such a part is left as it is."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    infer = getattr(ShardingPropagator, INFER, None)
    if infer is not None and not hasattr(infer, KNOWN):
        setattr(ShardingPropagator, INFER, _kept(infer))


def _kept(infer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    known: dict[Any, Any] = {}

    @wraps(infer)
    def infer_once(propagator: Any, schema: Any) -> Any:
        key = schema.op, _key(schema.args_schema), _key(tuple(schema.kwargs_schema.items()))
        try:
            if key not in known:
                known[key] = infer(propagator, schema)
            return known[key]
        except TypeError:  # a length that is not known yet, which nothing can be kept by
            return infer(propagator, schema)

    setattr(infer_once, KNOWN, known)
    return infer_once


def _key(value: Any) -> Any:
    """What of an argument the shape of the result depends on; 1, 1.0 and True are not the same."""
    if hasattr(value, "tensor_meta"):
        return value.tensor_meta
    if isinstance(value, (tuple, list)):
        return type(value), *map(_key, value)
    return type(value), value
