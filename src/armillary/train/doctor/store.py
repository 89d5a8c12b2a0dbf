"""Is the place of runs shared by all nodes, how fast is it, and does the data's store answer?"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import torch.distributed as dist

from armillary.spec.secrets import withheld
from armillary.train.doctor.findings import DOUBTFUL, GOOD, NOT_TRIED, WRONG, Check

WRITTEN_BYTES = 2**24
APPEARS_S = 10.0
"""A file of one node may take this long to be seen on others. Source: Linux, nfs(5): attributes of
files are kept for 3 to 60 s (acregmin, acdirmax), those of new names for less."""
ANSWER_S = 5.0
PORTS = {"http": 80, "https": 443, "s3": 443}


def visit_folder(
    folder: Path, *, visits: bool, control: "dist.ProcessGroup | None"
) -> tuple[str, float, float]:
    """("" or why not, seconds to write, seconds until rank 0's file was read), of this rank.

    Rank 0 makes a file in `folder`, which each rank that `visits` reads; each of them writes one of
    its own of 16 MiB. Every rank calls this, and the files are gone afterwards.
    """
    name = [uuid.uuid4().hex]
    dist.broadcast_object_list(name, group=control)
    ours = folder / f".doctor-{name[0]}"
    content = os.urandom(2**20) * (WRITTEN_BYTES // 2**20)
    fault, write_s, read_s = "", 0.0, 0.0
    try:
        if dist.get_rank() == 0:
            fault = _tried(lambda: ours.mkdir(parents=True, mode=0o700))
            fault = fault or _tried(lambda: (ours / "first").write_bytes(content))
        dist.barrier(group=control)
        if visits:
            start_s = time.perf_counter()
            fault = fault or _await(ours / "first", len(content))
            read_s = time.perf_counter() - start_s
        dist.barrier(group=control)
        if visits and not fault:
            start_s = time.perf_counter()
            fault = _tried(lambda: _write(ours / f"rank-{dist.get_rank()}", content))
            write_s = time.perf_counter() - start_s
        dist.barrier(group=control)
    finally:
        if dist.get_rank() == 0 and ours.is_dir():
            with suppress(OSError):
                for path in ours.iterdir():
                    path.unlink()
                ours.rmdir()
    return fault, write_s, read_s


def _tried(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _await(path: Path, num_bytes: int) -> str:
    """Read `path` as soon as it is there; why it could not be read, or ""."""
    give_up_s = time.monotonic() + APPEARS_S
    while True:
        try:
            if len(path.read_bytes()) == num_bytes:
                return ""
        except OSError as error:
            if time.monotonic() > give_up_s:
                return error.strerror or str(error)
        if time.monotonic() > give_up_s:
            return "the file of rank 0 is not whole"
        time.sleep(0.01)


def folder_check(folder: Path, answers: Mapping[str, tuple[str, float, float]]) -> Check:
    """Do all nodes see the folder of runs? `answers` are those of `visit_folder` by node."""
    name = f"folder {folder}"
    faults = {node: fault for node, (fault, _, _) in answers.items() if fault}
    if faults:
        return Check(
            name=name,
            state=WRONG,
            found=", ".join(f"{node}: {fault}" for node, fault in list(faults.items())[:8]),
            fix="name a folder with --runs that all nodes share: checkpoints are written by all",
        )
    total_bytes = WRITTEN_BYTES * len(answers)
    write_s = max(write for _, write, _ in answers.values())
    read_s = max(read for _, _, read in answers.values())
    return Check(
        name=name,
        state=GOOD,
        found=f"seen by {len(answers)} node{'s' * (len(answers) > 1)}; "
        f"{total_bytes / write_s / 1e6:,.0f} MB/s written and synced together, "
        f"{WRITTEN_BYTES / read_s / 1e6:,.0f} MB/s read by the slowest",
    )


def address_of(store: str) -> tuple[str, int]:
    """(host, port) that a store's address leads to; an S3 store's own address comes from
    AWS_ENDPOINT_URL where that is set.
    """
    parts = urlsplit(store)
    if parts.scheme == "s3":
        parts = urlsplit(os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com")
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443)


def knock(store: str) -> tuple[str, float]:
    """("" or why not, seconds until the store's host answered)."""
    start_s = time.perf_counter()
    try:
        socket.create_connection(address_of(store), timeout=ANSWER_S).close()
    except OSError as error:
        return error.strerror or str(error), 0.0
    return "", time.perf_counter() - start_s


def store_check(store: str, answers: Mapping[str, tuple[str, float]]) -> Check:
    """Does the data's store answer on all nodes? `answers` are those of `knock` by node."""
    if not store:
        return Check(name="store", state=NOT_TRIED, found="none was named with --store")
    host, port = address_of(store)
    faults = {node: fault for node, (fault, _) in answers.items() if fault}
    if faults:
        lines = [f"{node}: {fault}" for node, fault in list(faults.items())[:8]]
        return Check(
            name="store",
            state=WRONG if len(faults) == len(answers) else DOUBTFUL,
            found=f"{withheld(store)} ({host}:{port}) does not answer: {', '.join(lines)}",
            fix="compute nodes often have no way out: export the site's https_proxy, or copy the "
            "data to the site's file system first",
        )
    slowest_s = max(seconds for _, seconds in answers.values())
    return Check(
        name="store", state=GOOD, found=f"{host}:{port} answers in {1e3 * slowest_s:.2g} ms"
    )
