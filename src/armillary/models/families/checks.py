"""Rules that the sizes of several families keep."""

from armillary.spec import SpecError, nearest

ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def element_bytes(family: str, dtype: str) -> int:
    """Bytes of an entry of `dtype`.

    Raises: `SpecError` where it is none of torch's that models are stored in.
    """
    one_of(family, "dtype", dtype, tuple(ELEMENT_BYTES))
    return ELEMENT_BYTES[dtype]


def one_of(family: str, name: str, word: str, choices: tuple[str, ...]) -> None:
    """Raises: `SpecError` where `word` is none of `choices`."""
    if word not in choices:
        raise SpecError(
            f"{family}.{name}",
            repr(word),
            f"{name} is one of {', '.join(choices)} here (models/families/{family}.py)",
            nearest(word, choices),
        )


def divides(family: str, name: str, number: int, of: str, whole: int) -> int:
    """`whole` / `number`.

    Raises: `SpecError` where it is not whole.
    """
    if whole % number:
        divisors = [d for d in range(1, min(whole, 4096) + 1) if whole % d == 0]
        below = [d for d in divisors if d <= number][-1:]
        raise SpecError(
            f"{family}.{name}",
            f"{number} does not divide {of} {whole}",
            f"{name} divides {of} (models/families/{family}.py)",
            f"use {below[0]}, or another {of}",
        )
    return whole // number


def at_most(family: str, name: str, number: int, of: str, whole: int) -> None:
    """Raises: `SpecError` where `number` is above `whole`."""
    if number > whole:
        raise SpecError(
            f"{family}.{name}",
            f"{number} is above {of} {whole}",
            f"{name} is at most {of} (models/families/{family}.py)",
            f"use {name}={whole} or fewer",
        )
