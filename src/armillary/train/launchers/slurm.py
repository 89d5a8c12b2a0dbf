"""Slurm: srun starts the tasks of a step. Seen on 22.05.8."""

import re

from armillary.spec import SpecError
from armillary.train.launchers.place import NO_HOSTS, Hosts, Launcher, Variables

NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")


def is_here(variables: Variables) -> bool:
    """Whether srun started this process: SLURM_PROCID alone also stands in the batch script."""
    return "SLURM_STEP_ID" in variables and "SLURM_PROCID" in variables


def hosts(variables: Variables) -> Hosts:
    """The nodes of the step, or of the job where this is not in a step."""
    for name in NODE_LISTS:
        if variables.get(name):
            return expand(variables[name]), name
    return NO_HOSTS


def tasks_here(variables: Variables) -> dict[str, tuple[int, str]]:
    """How many tasks of the step are on this node, from SLURM_STEP_TASKS_PER_NODE."""
    text, index = variables.get("SLURM_STEP_TASKS_PER_NODE"), variables.get("SLURM_NODEID", "")
    if text is None or not index.isdecimal():
        return {}
    counts = tasks_by_node(text)
    if int(index) >= len(counts):
        raise SpecError(
            "launcher.local_world_size",
            f"SLURM_NODEID={index}, SLURM_STEP_TASKS_PER_NODE={text}",
            "the step has a number of tasks for each of its nodes",
            "start the ranks with srun, and leave its variables as they are",
        )
    source = f"SLURM_STEP_TASKS_PER_NODE={text} at SLURM_NODEID"
    return {"local_world_size": (counts[int(index)], source)}


def tasks_by_node(text: str) -> list[int]:
    """`2(x3),1` as [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise SpecError(
                "launcher.local_world_size",
                f"tasks per node {text!r}",
                "Slurm writes tasks per node as 2(x3),1",
                "start the ranks with srun, and leave its variables as they are",
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def expand(text: str) -> tuple[str, ...]:
    """`n[1-3,7],login` as ("n1", "n2", "n3", "n7", "login"); zeros in front of a number stay."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        names += _expand_one(part.strip())
    return tuple(names)


def _expand_one(text: str) -> list[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", text)
    if match is None:
        return [text]
    numbers: list[str] = []
    for entry in match[2].split(","):
        first, _, last = entry.partition("-")
        numbers += [f"{i:0{len(first)}d}" for i in range(int(first), int(last or first) + 1)]
    return [match[1] + number + rest for number in numbers for rest in _expand_one(match[3])]


LAUNCHER = Launcher(
    name="slurm",
    command="srun",
    is_here=is_here,
    hosts=hosts,
    within=("variables",),
    # With --mpi=pmi2 or pmix srun also sets an MPI's variables, which say the same.
    rank=("SLURM_PROCID", "PMI_RANK", "PMIX_RANK"),
    world_size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "PMI_SIZE"),
    local_rank=("SLURM_LOCALID",),
    node=("SLURMD_NODENAME",),
    node_index=("SLURM_NODEID",),
    job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
    worked_out=tasks_here,
)
