"""Keys and passwords in text: found by their form, or by being the value of a secret variable.

What a run writes and prints passes through here. It is a second line: recipes read keys from the
environment, and nothing of the environment is written down but variables that hold none.
"""

import os
import re
from collections.abc import Mapping

WITHHELD = "(withheld)"
SECRET_NAME = re.compile(
    r"passw|passphrase|secret|credential|private_?key|access_?key|api_?key|auth_?key"
    r"|(^|_)(auth|access|bearer|session|security|hub|hf|refresh)_?token$",
    re.IGNORECASE,
)
SECRET_VARIABLE = re.compile(r"_(TOKEN|KEY|SIGNATURE|PAT)$")
"""Names of variables that end so hold secrets; an option named `pad_token` or `seed_key` does not.
"""
SHORTEST_VALUE = 8
"""Values of secret variables below this length are words such as `true`, and occur by chance."""

# Keys that say themselves what they are: of AWS, Hugging Face, GitHub and Google; a key's own text.
KEYS = tuple(
    re.compile(rf"(?P<before>{before})(?P<secret>{secret})", re.DOTALL)
    for before, secret in (
        ("", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("", r"\b(?:hf_|ghp_|gho_|ghs_|github_pat_)\w{20,}"),
        ("", r"\bAIza[\w-]{35}\b"),
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----", r".+"),
    )
)
ADDRESS = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/:@]*:)(?P<secret>[^\s/@]+)(?=@)", re.I)
"""scheme://user:password@host"""
NAMED = re.compile(
    r"(?P<before>(?<![a-z])(?:passw\w*|passphrase|secret\w*|api_?key|access_?key\w*|private_?key"
    r"|auth_?token|access_?token|x-amz-(?:signature|credential|security-token)|(?<=[?&])sig)"
    r"(?:=|: ?))(?P<secret>[^\s&,;'\"()]{4,})"
    r"|(?P<bearer>Bearer )(?P<other>[\w.~+/-]{8,})",
    re.IGNORECASE,
)
"""password=..., ?X-Amz-Signature=..., Bearer ..."""


def is_secret_name(name: str) -> bool:
    """Whether an option of that name is meant to hold a secret."""
    return bool(SECRET_NAME.search(name))


def withheld(text: str, variables: Mapping[str, str] | None = None) -> str:
    """`text` with every secret in it replaced by `(withheld)`.

    `variables` are those whose secret values are known; without them, this process's environment.
    """
    text = _without_known(text, variables)
    text = ADDRESS.sub(_hide, text)
    return NAMED.sub(_hide, text)


def holds_key(text: str, variables: Mapping[str, str] | None = None) -> bool:
    """Whether `text` has a key in it, and not only words about one: for a recipe's source."""
    return _without_known(text, variables) != text


def holds_secret(text: str, variables: Mapping[str, str] | None = None) -> bool:
    """Whether `text` has a key or an address with a password in it: for an option's value."""
    return holds_key(text, variables) or ADDRESS.search(text) is not None


def _hide(match: re.Match[str]) -> str:
    found = match.groupdict()
    return (found.get("before") or found.get("bearer") or "") + WITHHELD


def _without_known(text: str, variables: Mapping[str, str] | None) -> str:
    """`text` without values of secret variables, and without keys that say what they are."""
    here = os.environ if variables is None else variables
    values = {
        value
        for name, value in here.items()
        if len(value) >= SHORTEST_VALUE
        and (SECRET_NAME.search(name) or SECRET_VARIABLE.search(name))
    }
    for value in sorted(values, key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(value, WITHHELD)
    for form in KEYS:
        text = form.sub(_hide, text)
    return text
