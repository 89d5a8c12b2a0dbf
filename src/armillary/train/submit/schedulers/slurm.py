"""Slurm: sbatch, squeue, scontrol. What follows was seen on 22.05.8."""

from dataclasses import dataclass

from armillary.train.submit.schedulers.door import Ask, run, submitted, unanswered

WAITING = """\
# Before the time is up Slurm sends USR1 to this shell, which tells the ranks to save and leave
# (exit code 75); before a preemption it tells the ranks itself. The job then goes back into the
# queue: Slurm does that only with a job that it had to kill. A cancelled job stays cancelled.
again=no told=no leave=no
preempted() { scontrol show job "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; }
tell() { told=yes leave=yes; scancel --signal=TERM "$SLURM_JOB_ID"; }
trap 'again=yes; tell' USR1
trap 'tell' TERM
while told=no; wait "$ranks"; code=$?; [ "$told" = yes ]; do :; done"""

AGAIN = """\
if [ "$code" -eq 75 ] && { [ "$again" = yes ] || preempted; }; then
  echo "interrupted and saved: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi"""


@dataclass(frozen=True, slots=True)
class Slurm:
    """Slurm as a batch system."""

    name: str = "slurm"
    submits: str = "sbatch"
    mark: str = "#SBATCH"

    def directives(self, ask: Ask) -> list[str]:
        """Nodes, tasks, time, log, a signal in time, and leave to run again."""
        lines = [
            f"--job-name={ask.name}",
            f"--nodes={ask.nodes}",
            f"--ntasks-per-node={ask.ranks_per_node}",
            f"--time={ask.clock}",
            f"--output={ask.log}",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR1@{ask.leave_s}",
        ]
        lines += [f"--account={ask.account}"] if ask.account else []
        return lines + ([f"--partition={ask.queue}"] if ask.queue else [])

    def rank_prefix(self, ask: Ask) -> str:
        """Nothing: the batch shell is told, and tells the ranks."""
        return ""

    def waiting(self) -> str:
        """Traps for USR1 and TERM around the wait."""
        return WAITING

    def again(self) -> str:
        """A requeue after the signal before the end."""
        return AGAIN

    def submit(self, script: str) -> str:
        """The number that sbatch gives."""
        return submitted(["sbatch", "--parsable", script]).partition(";")[0]

    def state(self, job: str) -> dict[str, str]:
        """State, reason and times as squeue tells them; {} once it knows the job no more."""
        done = run(["squeue", "--noheader", f"--jobs={job}", "--format=%T|%r|%M|%l|%S"])
        words = done.stdout.strip().split("|")
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            return unanswered(done)
        if len(words) != 5:
            return {}
        return dict(zip(("state", "reason", "used", "limit", "start"), words, strict=True))


SCHEDULER = Slurm()
