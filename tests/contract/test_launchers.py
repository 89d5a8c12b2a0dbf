"""Does every launcher tell each rank its place, with its source, and refuse what contradicts?

The variables are those that the launchers set (seen here, but for PALS: read in ALCF's guides).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.spec import SpecError
from armillary.step.world import _is_given_one
from armillary.train.launchers import Place, discover, find, job_hosts
from armillary.train.launchers.none import refuse_idle_nodes
from armillary.train.launchers.slurm import expand, tasks_by_node

# Of the third of four ranks on two nodes, two on each.
SLURM_STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "n[3-4]",
    "SLURM_JOB_NODELIST": "n[1-4]", "SLURMD_NODENAME": "n4",
}  # fmt: skip
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
SEEN = {
    "slurm": SLURM_STEP,
    "openmpi": {
        "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "OMPI_COMM_WORLD_NODE_RANK": "0", "PMIX_NAMESPACE": "prterun-a-1@1", "MASTER_ADDR": "a",
    },
    "mpich": HYDRA | {"MASTER_ADDR": "a"},
    "intelmpi": HYDRA | {"I_MPI_HYDRA_UUID": "1f", "MASTER_ADDR": "a"},
    "pals": {
        "PALS_RANKID": "2", "PALS_LOCAL_RANKID": "0", "PALS_NODEID": "1", "PMI_RANK": "2",
        "PMI_SIZE": "4", "PMI_LOCAL_RANK": "0", "PMI_LOCAL_SIZE": "2", "PBS_JOBID": "9",
        "MASTER_ADDR": "a",
    },
    "torchrun": {
        "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "a", "MASTER_PORT": "1",
    },
    "variables": {
        "RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "a", "MASTER_PORT": "1",
    },
}  # fmt: skip
STARTERS = sorted(SEEN)


def place(variables: dict[str, str]) -> Place:
    found = find(variables)
    assert found is not None
    return found


def test_every_file_of_the_room_is_found() -> None:
    assert set(discover()) == {*SEEN, "pbs", "none"}


@pytest.mark.parametrize("name", STARTERS)
def test_a_rank_knows_its_place_and_from_what(name: str) -> None:
    found = place(SEEN[name])
    assert found.launcher == name
    told = (found.rank, found.world_size, found.local_rank, found.local_world_size)
    assert told == (2, 4, 0, 2)
    assert not found.is_on_one_node
    for field in ("rank", "world_size", "local_rank"):
        assert found.sources[field] in SEEN[name]
    assert all(entry["from"] for entry in found.to_dict().values())


@pytest.mark.parametrize("name", sorted({*STARTERS} - {"torchrun", "variables"}))
@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_what_torchs_variables_contradict_is_refused(name: str, variable: str) -> None:
    """A tutorial's `export RANK=$SLURM_PROCID` in the batch script is 0 for every rank."""
    with pytest.raises(SpecError) as caught:
        find(SEEN[name] | {variable: "9"})
    assert "9" in caught.value.found and variable in caught.value.fix


@pytest.mark.parametrize(
    "wrong", [{"RANK": "4"}, {"LOCAL_RANK": "2"}, {"LOCAL_WORLD_SIZE": "5"}, {"WORLD_SIZE": "2"}]
)
@pytest.mark.parametrize("name", ["torchrun", "variables"])
def test_what_cannot_be_together_is_refused(name: str, wrong: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="count from 0"):
        find(SEEN[name] | wrong)


@pytest.mark.parametrize("name", STARTERS)
def test_a_variable_that_is_missing_or_no_number_is_refused(name: str) -> None:
    source = place(SEEN[name]).sources["local_rank"]
    with pytest.raises(SpecError, match=r"no variable|whole number|nothing tells"):
        place(SEEN[name] | {source: "first"})
    assert place(SEEN[name]).local_rank == 0


@pytest.mark.parametrize("name", ["slurm", "openmpi", "mpich", "intelmpi", "pals"])
def test_a_single_task_starts_ranks_of_its_own(name: str) -> None:
    found = place(SEEN[name])
    alone = SEEN[name] | {found.sources["rank"]: "0", found.sources["world_size"]: "1"}
    alone = {key: value for key, value in alone.items() if not key.startswith("PMIX_R")}
    alone |= {"PMI_RANK": "0"} if "PMI_RANK" in alone else {}
    alone |= {"MPI_LOCALNRANKS": "1"} if "MPI_LOCALNRANKS" in alone else {}
    alone |= {"PMI_LOCAL_SIZE": "1"} if "PMI_LOCAL_SIZE" in alone else {}
    alone |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"} if name == "openmpi" else {}
    alone |= {"SLURM_NTASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"}
    assert find(alone) is None


def test_the_local_rank_is_never_worked_out() -> None:
    """Open MPI oversubscribed gave rank 1 the local rank 2: no modulus would."""
    odd = SEEN["openmpi"] | {
        "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    }  # fmt: skip
    assert place(odd).local_rank == 2
    for name, variable in [("variables", "LOCAL_RANK"), ("pals", "PALS_LOCAL_RANKID")]:
        without = {k: v for k, v in SEEN[name].items() if k not in (variable, "PMI_LOCAL_RANK")}
        with pytest.raises(SpecError, match="nothing tells"):
            find(without)


@pytest.mark.parametrize("name", ["openmpi", "mpich", "intelmpi", "torchrun"])
def test_inside_a_slurm_job_the_inner_launcher_counts(name: str) -> None:
    """mpiexec and torchrun are started on other nodes by srun, whose variables their ranks keep."""
    outer = SLURM_STEP | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    inner = {key: value for key, value in SEEN[name].items() if key != "MASTER_ADDR"}
    found = place(outer | inner | ({"MASTER_ADDR": "a"} if name == "torchrun" else {}))
    assert (found.launcher, found.rank, found.world_size) == (name, 2, 4)
    if name != "torchrun":
        assert (found.master_address, found.sources["master_address"]) == (
            "n3",
            "first node of SLURM_STEP_NODELIST",
        )


def test_two_launchers_that_do_not_nest_are_refused() -> None:
    with pytest.raises(SpecError, match="openmpi and of pals"):
        find(SEEN["openmpi"] | SEEN["pals"])


def test_a_batch_script_is_no_rank() -> None:
    """sbatch sets SLURM_PROCID=0 in the script, without a step."""
    batch = {key: value for key, value in SLURM_STEP.items() if "STEP" not in key}
    assert find(batch | {"SLURM_PROCID": "0"}) is None
    with pytest.raises(SpecError, match="4 nodes"):
        refuse_idle_nodes(8, job_hosts(batch))
    refuse_idle_nodes(1, job_hosts(batch))
    refuse_idle_nodes(8, job_hosts({}))


def test_a_number_of_ranks_without_a_rank_is_refused() -> None:
    with pytest.raises(SpecError, match="WORLD_SIZE=8"):
        find({"WORLD_SIZE": "8"})
    assert find({}) is None


def test_nodes_of_pbs_come_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "nodes"
    path.write_text("x1\nx1\nx2\n")
    pals = {key: value for key, value in SEEN["pals"].items() if key != "MASTER_ADDR"}
    assert job_hosts({"PBS_NODEFILE": str(path)}) == (("x1", "x2"), "PBS_NODEFILE")
    assert place(pals | {"PBS_NODEFILE": str(path)}).master_address == "x1"
    with pytest.raises(SpecError, match="MASTER_ADDR"):
        place(pals)


def test_the_port_is_the_jobs_own_and_the_same_for_every_rank() -> None:
    first = place(SLURM_STEP).master_port
    other = SLURM_STEP | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    assert place(other).master_port == first != place(SLURM_STEP | {"SLURM_JOB_ID": "8"})
    assert 20000 <= first < 32000
    assert place(SLURM_STEP | {"MASTER_PORT": "4000"}).master_port == 4000
    with pytest.raises(SpecError, match="65535"):
        place(SLURM_STEP | {"MASTER_PORT": "zero"})


def test_ranks_of_one_node_meet_there() -> None:
    one = SEEN["mpich"] | {"MPI_LOCALNRANKS": "4"}
    del one["MASTER_ADDR"]
    assert place(one).is_on_one_node and place(one).master_address == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ("n1",)),
        ("n[1-3,7],login", ("n1", "n2", "n3", "n7", "login")),
        ("x[08-10]", ("x08", "x09", "x10")),
        ("r[1-2]c[0-1]", ("r1c0", "r1c1", "r2c0", "r2c1")),
    ],
)
def test_slurms_lists_are_expanded(text: str, names: tuple[str, ...]) -> None:
    assert expand(text) == names


def test_slurms_tasks_by_node() -> None:
    assert tasks_by_node("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(SpecError, match="2 x 3"):
        tasks_by_node("2 x 3")


def test_a_rank_that_is_shown_one_device_takes_it() -> None:
    assert _is_given_one({"ROCR_VISIBLE_DEVICES": "5"})
    assert not _is_given_one({}) and not _is_given_one({"CUDA_VISIBLE_DEVICES": "0,1"})
