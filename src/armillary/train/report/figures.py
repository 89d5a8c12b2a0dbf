"""A recipe's figures on disk: `figures/00-title.json`, each a title and a plotly figure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armillary.spec import write_atomically

LARGEST_BYTES = 6 * 2**20  # of all figures of a report together


def save_figures(run_folder: Path, figures: Mapping[str, Any]) -> list[Path]:
    """Write a recipe's figures (title -> `plotly.graph_objects.Figure`); the paths, in order.

    Raises: TypeError if a figure has no `to_json`.
    """
    folder = run_folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (title, figure) in enumerate(figures.items()):
        if not hasattr(figure, "to_json"):
            raise TypeError(f"figure {title!r} is a {type(figure).__name__}, not a plotly figure")
        slug = re.sub(r"[^a-z0-9]+", "-", str(title).lower()).strip("-") or "figure"
        path = folder / f"{number:02d}-{slug[:60]}.json"
        text = f'{{"title": {json.dumps(str(title))}, "figure": {figure.to_json()}}}\n'
        write_atomically(path, text)
        paths.append(path)
    return paths


def read_figures(run_folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Titles and figures of a run in order, and a sentence for each that is left out.

    A file is what `save_figures` wrote, or a plain plotly figure whose name is its title.
    """
    found: list[dict[str, Any]] = []
    left_out, num_bytes = [], 0
    for path in sorted((run_folder / "figures").glob("*.json")):
        num_bytes += path.stat().st_size
        if num_bytes > LARGEST_BYTES:
            left_out.append(f"figures/{path.name} is left out: the figures together are too large")
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            figure = content.get("figure", content)
            title = str(content.get("title") or re.sub(r"^\d+-", "", path.stem).replace("-", " "))
            layout = dict(figure.get("layout", {}))
            found.append({"title": title, "data": list(figure["data"]), "layout": layout})
        except (ValueError, TypeError, KeyError, AttributeError):
            left_out.append(f"figures/{path.name} is left out: it is not a plotly figure")
    return found, left_out
