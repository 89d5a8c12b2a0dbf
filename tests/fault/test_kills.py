"""A run whose processes are killed at random moments, in its short form.

The long form is `python -m benchmarks.faults --kills 50`.
"""

from pathlib import Path

import pytest

from benchmarks.faults import KINDS, kill_a_run

NUM_KILLS = 5


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    """One kill of every kind, in the order of a seed: a rank, the first, at the start, in a
    checkpoint's writing, the agent.
    """
    faults = kill_a_run(tmp_path, num_kills=NUM_KILLS, seed=1, epochs=20)
    print(faults)
    assert faults.injected.total() == NUM_KILLS == len(KINDS), str(faults)
    assert faults.is_survived, str(faults)
