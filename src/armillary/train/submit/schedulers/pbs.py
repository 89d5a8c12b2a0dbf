"""PBS: qsub and qstat. Read in ALCF's user guides (2026-08-19); run here under a stand-in only."""

import re
from dataclasses import dataclass

from armillary.train.submit.schedulers.door import Ask, run, submitted, unanswered

WAITING = """\
# The ranks are told to save and leave by `timeout` before their start, and by a TERM to this shell
# (qdel). Whether mpiexec hands a TERM on to its ranks is not in the sources we have.
told=no leave=no
trap 'told=yes leave=yes; kill -TERM "$ranks"' TERM
while told=no; wait "$ranks"; code=$?; [ "$told" = yes ]; do :; done"""

AGAIN = """\
if [ "$code" -eq 75 ]; then
  echo "interrupted and saved: qsub this script again to go on"
fi"""


@dataclass(frozen=True, slots=True)
class Pbs:
    """PBS as a batch system."""

    name: str = "pbs"
    submits: str = "qsub"
    mark: str = "#PBS"

    def directives(self, ask: Ask) -> list[str]:
        """Nodes, time, one log, and leave to run again."""
        lines = [
            f"-N {ask.name}",
            f"-l select={ask.nodes}",
            f"-l walltime={ask.clock}",
            f"-o {ask.log}.pbs",  # the script writes the log itself, at once
            "-j oe",
            "-r y",
        ]
        lines += [f"-A {ask.account}"] if ask.account else []
        return lines + ([f"-q {ask.queue}"] if ask.queue else [])

    def rank_prefix(self, ask: Ask) -> str:
        """PBS gives no warning that we know of, so every rank has an alarm of its own."""
        left_s = f"$(({ask.time_s - ask.leave_s} - SECONDS))"  # of the shell: ranks may start again
        return f"timeout --preserve-status --signal=TERM {left_s} "

    def waiting(self) -> str:
        """A trap for TERM around the wait."""
        return WAITING

    def again(self) -> str:
        """A hint: whether jobs may be submitted from a compute node is the site's to say."""
        return AGAIN

    def submit(self, script: str) -> str:
        """The number that qsub gives."""
        return submitted(["qsub", script])

    def state(self, job: str) -> dict[str, str]:
        """State, comment and times as `qstat -f` tells them; {} once it knows the job no more."""
        done = run(["qstat", "-f", job])
        found = dict(re.findall(r"^\s*([\w.]+) = (.*)$", done.stdout, re.MULTILINE))
        if done.returncode != 0 and not re.search(r"Unknown Job|has finished", done.stderr):
            return unanswered(done)
        if "job_state" not in found:
            return {}
        wanted = {
            "state": "job_state",
            "reason": "comment",
            "used": "resources_used.walltime",
            "limit": "Resource_List.walltime",
        }
        return {name: found[key] for name, key in wanted.items() if key in found}


SCHEDULER = Pbs()
