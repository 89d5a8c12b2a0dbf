"""A page about a document: one self-contained file, in the look that all pages share."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(package: str, **values: Any) -> str:
    """The text of `page.html.jinja` in `package`, filled with `values`, all of them escaped.

    It may include `look.css`, which is here, and what else lies beside it.
    """
    page = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("armillary.spec", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.jinja")
    return page.render(**values)
