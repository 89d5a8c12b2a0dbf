"""The versions of what a result depends on."""

import importlib.metadata
import platform

PACKAGES = ("armillary", "torch", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
