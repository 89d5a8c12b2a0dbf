"""Does every site's file make a job script that a shell takes, with a source for each line?"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from armillary.spec import SpecError
from armillary.train.submit.job import JobWords
from armillary.train.submit.schedulers import discover
from armillary.train.submit.script import check, seconds, write_script
from armillary.train.submit.site import fill, names, read_site

OPTIONS = {"polaris": {"filesystems": "home:eagle"}}


def words(site: str, **changes: object) -> JobWords:
    """A job of 100 nodes for an hour, which every site takes."""
    options = OPTIONS.get(site, {})
    nodes = 256 if site == "aurora" else 100
    job = JobWords(
        recipe="weather", site=site, nodes=nodes, time="1h", account="mine", options=options
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def script_of(job: JobWords) -> str:
    return write_script(check(job, read_site(job.site)), Path("jobs/weather-1").absolute())


def refusal(job: JobWords) -> SpecError:
    with pytest.raises(SpecError) as caught:
        script_of(job)
    return caught.value


def test_the_sites_that_were_asked_for_are_there() -> None:
    wanted = {"aurora", "polaris", "alps", "frontier", "perlmutter", "lumi", "leonardo", "jupiter"}
    assert wanted <= set(names())
    assert set(discover()) == {"pbs", "slurm"}


@pytest.mark.parametrize("site", names())
def test_a_shell_takes_the_script(site: str) -> None:
    job = words(site)
    text = script_of(job)
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = check(job, read_site(site))
    assert f"--layout data={asked.num_ranks} " in text
    assert "01:00:00" in text and "mine" in text and "{" not in _asking(text)
    for unknown in read_site(site).unknown:
        assert f"# Not known, and so left out: {unknown}" in text


def _asking(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith(("#PBS", "#SBATCH")))


@pytest.mark.parametrize("site", names())
def test_what_a_site_does_not_take_is_refused(site: str) -> None:
    num_nodes, ranks_per_node = read_site(site).size()
    assert refusal(words(site, nodes=num_nodes + 1)).where == "--nodes"
    assert refusal(words(site, nodes=0)).where == "--nodes"
    assert refusal(words(site, time="soon")).where == "--time"
    assert refusal(words(site, account="")).where == "--account"
    assert refusal(words(site, layout=f"data={ranks_per_node + 1}")).where == "layout"
    assert refusal(words(site, options={"colour": "red"})).where == "--option colour"
    if any(limit.max_hours for limit in read_site(site).limits):
        assert refusal(words(site, time="30d")).where == "--time"


def test_each_bound_of_a_queue_holds() -> None:
    assert "256 or more" in refusal(words("aurora", nodes=10)).found
    assert "12 h at most" in refusal(words("aurora", time="13h")).found
    assert "fits" not in refusal(words("aurora", time="13h")).fix, "no queue takes such a job"
    assert "fits capacity" in refusal(words("aurora", nodes=10, time="6h")).fix
    assert "--nodes 25" in refusal(words("alps", layout="data=100")).fix
    assert "--nodes" not in refusal(words("alps", layout="data=2")).fix
    assert "multiple of 4 ranks" in refusal(words("alps", layout="data=2")).fix
    assert "18 h at most" in refusal(words("aurora", nodes=1999, time="19h")).found
    assert check(words("aurora", nodes=2000, time="24h"), read_site("aurora")).queue == "prod"
    assert "2 h at most" in refusal(words("frontier", nodes=91, time="3h")).found
    assert check(words("frontier", nodes=92, time="3h"), read_site("frontier")).queue == ""
    assert "6 h at most" in refusal(words("frontier", nodes=183, time="7h")).found
    assert check(words("frontier", nodes=184, time="12h"), read_site("frontier")).queue == ""
    assert refusal(words("polaris", options={})).where == "--option filesystems"
    assert "preemptable" in refusal(words("polaris", nodes=4)).fix, "named, never taken by itself"
    assert refusal(words("lumi", nodes=1025)).where == "--nodes"
    assert "low" in refusal(words("alps", time="20h")).fix
    assert check(words("alps", time="20h", queue="low"), read_site("alps")).queue == "low"


def test_lumis_masks_are_the_cores_beside_its_devices() -> None:
    """The guide gives the first core of each device's as 49,57,17,25,1,9,33,41."""
    [masks] = re.findall(r"mask_cpu:(\S+)", _run(script_of(words("lumi"))))
    cores = [[core for core in range(64) if int(mask, 16) >> core & 1] for mask in masks.split(",")]
    assert [each[0] for each in cores] == [49, 57, 17, 25, 1, 9, 33, 41]
    assert all(len(each) == 6 for each in cores)
    assert len({core for each in cores for core in each}) == 48


def test_the_experts_lines_are_there() -> None:
    """What launching on each machine was found to need."""
    aurora, frontier, lumi = (script_of(words(name)) for name in ("aurora", "frontier", "lumi"))
    assert "-n 3072 -ppn 12 --cpu-bind=list:4-7:8-11" in aurora
    assert ".hsn.cm.aurora.alcf.anl.gov" in aurora and "filesystems=flare" in aurora
    assert "export PATH" not in aurora, "an MPI beside our Python would hide the site's mpiexec"
    assert "timeout --preserve-status --signal=TERM $((3300 - SECONDS))" in aurora, (
        "five minutes before the end"
    )
    assert "-c7 --gpus-per-task=1 --gpu-bind=closest" in frontier and "torchrun" not in _run(
        frontier
    )
    assert "ROCR_VISIBLE_DEVICES=$SLURM_LOCALID" in _run(lumi)
    polaris, alps = script_of(words("polaris")), script_of(words("alps"))
    assert "$((3 - ${PMI_LOCAL_RANK:-$PALS_LOCAL_RANKID}))" in polaris
    assert "--cpu-bind depth -d 16" in _run(polaris)
    assert "WORLD_SIZE=3072 LOCAL_WORLD_SIZE=12" in aurora, "PMIx tells no number of ranks"
    for fabric in ("NCCL_NET_GDR_LEVEL=PHB", "FI_CXI_DEFAULT_TX_SIZE=16384", "=userfaultfd"):
        assert fabric in alps
    assert "NCCL_NET=OFI" in frontier, "RCCL ends rather than fall back to sockets"
    assert "--signal=B:USR1@300" in frontier
    perlmutter, leonardo = script_of(words("perlmutter")), script_of(words("leonardo"))
    assert "#SBATCH --qos=regular" in perlmutter and "#SBATCH --constraint=gpu" in perlmutter
    assert "#SBATCH --partition=boost_usr_prod" in leonardo
    assert "#SBATCH --qos=normal" in leonardo
    assert "#SBATCH --partition=booster" in script_of(words("jupiter"))


def _run(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith(("srun", "mpiexec")))


def test_a_container_replaces_what_modules_bring() -> None:
    text = script_of(words("alps", container="ours.toml"))
    assert "--environment=ours.toml" in _run(text) and "NCCL_NET" not in text
    assert "--environment" not in _asking(text) and f"{sys.executable}" not in text
    assert "NCCL_NET" in script_of(words("alps"))
    assert refusal(words("perlmutter", container="x")).where == "--container"


def test_odd_names_are_quoted(tmp_path: Path) -> None:
    job = words("alps", recipe="my case.py", train=("--set=a=$(id)",))
    text = script_of(job)
    assert "'my case.py'" in text and "'--set=a=$(id)'" in text


@pytest.mark.parametrize(
    ("text", "found"), [("6h", 21600), ("90min", 5400), ("2d", 172800), ("01:02:03", 3723)]
)
def test_times(text: str, found: int) -> None:
    assert seconds(text) == found


@pytest.mark.parametrize("text", ["", "6", "0h", "h", "6 hours", "-1h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(SpecError):
        seconds(text)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('[[setup]]\ntext = "x"', "source"),
        ('[[setup]]\ntext = "x"\nsource = ""', "source ''"),
        ('[[setup]]\ntext = "x"\nsource = "[nobody] said"', "nobody"),
        ('[[setup]]\ntext = "x"\nsource = "y"\nwhen = "often"', "often"),
        ('[[each_rank]]\ntext = "a=\'1\'"\nsource = "y"', "quotes"),
        ("colour = 1", "colour"),
        ("=", "TOML"),
    ],
)
def test_a_site_file_that_is_not_right_is_refused(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(
        f'title = "Ours"\nscheduler = "slurm"\nmachine = "alps"\n{line}\n'
        '[start]\ntext = "srun"\nsource = "ours"\n'
        if "[[" not in line
        else f'title = "Ours"\nscheduler = "slurm"\nmachine = "alps"\n'
        f'[start]\ntext = "srun"\nsource = "ours"\n{line}\n'
    )
    with pytest.raises(SpecError, match=words):
        read_site(str(path))


def test_an_unknown_site_and_an_unknown_place_are_refused() -> None:
    with pytest.raises(SpecError, match="aurora"):
        read_site("auroa")
    with pytest.raises(SpecError):
        fill("{nodse}", {"nodes": 1}, "site")
    assert fill("${nodes} {nodes}", {"nodes": 1}, "site") == "${nodes} 1"
