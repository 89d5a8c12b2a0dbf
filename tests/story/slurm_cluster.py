"""A real Slurm of two nodes on this host, for tests: its own folder, ports and authentication.

Several slurmd on one host need a build with that option, such as Debian's. Where slurmctld, slurmd
or munge are missing, or this is not root, tests that want it are skipped, and say so:
    apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NUM_NODES = 2
NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "munge", "munged")
SYSTEM = "/usr/sbin"
START_S = 30.0


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The variables that point Slurm's programs to a cluster that runs while this lasts."""
    path = os.environ["PATH"] + os.pathsep + SYSTEM
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"no Slurm here: {', '.join(missing) or 'it has to be started by root'}")
    # A home of its own: the login shell of a job reads nothing of who runs the tests.
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "HOME": str(folder)}
    environment = os.environ | variables
    _configure(folder)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / f"{command[0]}.out").open("ab") as log:
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", *_munge_words(folder))
        _wait(lambda: (folder / "munge.socket").exists())
        start("slurmctld", "-D", "-c")
        for index in range(1, NUM_NODES + 1):
            start("slurmd", "-D", "-N", f"n{index}")
        idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        _wait(lambda: _said(idle, environment) == str(NUM_NODES))
        yield variables
    finally:
        subprocess.run(["scancel", "-u", "root"], env=environment, capture_output=True, timeout=30)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > give_up_s:
            pytest.skip(f"Slurm did not come up in {START_S:.0f} s")
        time.sleep(0.1)


def _said(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _munge_words(folder: Path) -> list[str]:
    """Where a munged of our own keeps its things, with a key made here."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    return [
        f"--key-file={key}",
        f"--socket={folder / 'munge.socket'}",
        f"--pid-file={folder / 'munge.pid'}",
        f"--log-file={folder / 'munge.log'}",
        f"--seed-file={folder / 'munge.seed'}",
    ]


def _configure(folder: Path) -> None:
    host = socket.gethostname().partition(".")[0]
    control, *ports = _free_ports(1 + NUM_NODES)
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)
    lines = {
        "ClusterName": "test",
        "FirstJobId": control,  # a job's ranks meet at a port made from it: no other cluster's here
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'munge.socket'}",
        "CredType": "cred/munge",
        "ProctrackType": "proctrack/pgid",
        "TaskPlugin": "task/none",
        "SlurmctldPort": control,
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.%n.pid",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool.%n",
        "KillWait": 5,
        "ReturnToService": 2,
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",  # more cores than there are
        "JobAcctGatherType": "jobacct_gather/none",
        "AccountingStorageType": "accounting_storage/none",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SchedulerParameters": "bf_interval=1,sched_interval=1",
    }
    text = "".join(f"{name}={value}\n" for name, value in lines.items())
    for index, port in enumerate(ports, start=1):
        (folder / f"spool.n{index}").mkdir()
        text += (
            f"NodeName=n{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 "
            "Sockets=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=1000 State=UNKNOWN\n"
        )
    text += f"PartitionName=debug Nodes=n[1-{NUM_NODES}] Default=YES MaxTime=60 State=UP "
    text += "PriorityTier=1 GraceTime=10\n"
    text += f"PartitionName=urgent Nodes=n[1-{NUM_NODES}] MaxTime=60 State=UP PriorityTier=2\n"
    (folder / "slurm.conf").write_text(text)
