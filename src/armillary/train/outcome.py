"""How a run ended."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FINISHED, NOT_FINITE, INTERRUPTED = 0, 3, 75


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended: its exit code (0 done, 3 loss not finite, 75 interrupted), and its folder.

    `loss` is that of the last step; `message` says what happened, for a person.
    """

    exit_code: int
    run_path: Path
    num_steps: int
    loss: float
    message: str
    is_writer: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The outcome for a program; a loss that is no number is None."""
        return {
            "exit_code": self.exit_code,
            "run": str(self.run_path),
            "num_steps": self.num_steps,
            "message": self.message,
            "loss": self.loss if math.isfinite(self.loss) else None,
        }
