"""PBS: a job's nodes. It starts no ranks itself; an MPI's mpiexec does, inside the job."""

from pathlib import Path

from armillary.train.launchers.place import NO_HOSTS, Hosts, Launcher, Variables


def is_here(variables: Variables) -> bool:
    """Whether PBS started this process as a rank: never."""
    return False


def hosts(variables: Variables) -> Hosts:
    """The nodes of the job in order, each once, from the file that PBS_NODEFILE names."""
    path = variables.get("PBS_NODEFILE")
    if not path or not Path(path).is_file():
        return NO_HOSTS
    lines = Path(path).read_text(encoding="utf-8").split()
    return tuple(dict.fromkeys(lines)), "PBS_NODEFILE"


LAUNCHER = Launcher(name="pbs", command="qsub", is_here=is_here, hosts=hosts)
