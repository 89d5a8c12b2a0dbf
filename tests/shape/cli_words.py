"""The words of the command line, as people's scripts rely on them.

    python -m tests.shape.cli_words           print the words as they are now
    python -m tests.shape.cli_words --write   freeze them in cli_words.json (or: make words)

Freezing is a decision: a word taken away or renamed breaks somebody's job script, so the change
needs a news fragment of type `removal` or `change`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("cli_words.json")


def words_of(command: Any) -> dict[str, Any]:
    """Arguments, options and sub-commands of one Typer command, each sorted."""
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    options = [one for one in shown if one.param_type_name == "option"]
    words: dict[str, Any] = {
        "arguments": [one.name for one in shown if one.param_type_name == "argument"],
        "options": sorted(name for one in options for name in (*one.opts, *one.secondary_opts)),
    }
    inner = getattr(command, "commands", None)
    if inner:
        words["commands"] = {
            name: words_of(one) for name, one in sorted(inner.items()) if not one.hidden
        }
    return words


def current_words() -> dict[str, Any]:
    """The words of `armillary` itself: {command: {"arguments": [...], "options": [...]}}.

    The command's own options stand under "armillary".
    """
    import typer

    from armillary.cli import app

    root = words_of(typer.main.get_command(app))
    return {
        "armillary": {"arguments": root["arguments"], "options": root["options"]},
        **root.get("commands", {}),
    }


def main(arguments: list[str]) -> None:
    """Print the words, or write the snapshot."""
    text = json.dumps(current_words(), indent=2, sort_keys=True) + "\n"
    if "--write" in arguments:
        SNAPSHOT.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
