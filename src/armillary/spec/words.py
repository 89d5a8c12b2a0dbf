"""Words of a command line, `name=value`, as typed values."""

from typing import Any

from armillary.spec.error import SpecError

TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def parse_assignments(words: list[str], where: str) -> dict[str, str]:
    """`["a=1", "b=x"]` as `{"a": "1", "b": "x"}`.

    Raises: `SpecError` on a word without `=`, and on a name given twice.
    """
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not (name and equals and value):
            raise SpecError(where, repr(word), "each entry is name=value", "write it as name=value")
        if name in values:
            raise SpecError(
                f"{where}.{name}",
                f"given twice: {values[name]} and {value}",
                "a name stands once",
                "remove one of them",
            )
        values[name] = value
    return values


def parse_value(text: str, like: Any, where: str) -> Any:
    """`text` as a value of the type of `like`; `like=None` keeps text as it is.

    Raises: `SpecError` if `text` cannot be read so.
    """
    kind = type(like)
    if like is None or kind is str:
        return text
    if kind is bool:
        if text.lower() not in TRUE | FALSE:
            raise SpecError(where, repr(text), "the value is true or false", "use true or false")
        return text.lower() in TRUE
    try:
        return kind(text)
    except (TypeError, ValueError):
        raise SpecError(
            where,
            repr(text),
            f"the value is of type {kind.__name__}",
            f"give a value such as {like!r}",
        ) from None
