"""Where ranks come from: a launcher's, if one started this process, or ranks of our own."""

import os
import signal
import threading
from contextlib import nullcontext
from dataclasses import replace

import torch

from armillary.spec import SpecError
from armillary.step.recipe import load_recipe
from armillary.train.folder.run_folder import RunFolder
from armillary.train.launchers import Place, find_here, job_hosts
from armillary.train.launchers.none import refuse_idle_nodes
from armillary.train.outcome import Outcome
from armillary.train.rank import train_rank
from armillary.train.request import TrainRequest
from armillary.train.start.admission import admit_before_ranks
from armillary.train.start.again import known_run, note_run, started_again
from armillary.train.start.own_ranks import train_on_own_ranks
from armillary.train.start.rendezvous import seat_of
from armillary.train.start.replan import replanned
from armillary.train.start.warm import loopback


def train(request: TrainRequest) -> Outcome:
    """Train as `request` says: as one of a launcher's ranks, alone, or on ranks started here.

    Raises: `SpecError` on a user's mistake; `RankError` if a rank started here failed otherwise.
    """
    place = find_here()
    if place is not None:
        return _train_as_one_of(place, request)
    if request.may_replan and (devices := _devices(request)) < request.layout.num_ranks:
        request = replanned(request, devices)
    num_ranks = request.layout.num_ranks
    if num_ranks == 1:
        return train_rank(request)
    refuse_idle_nodes(num_ranks, job_hosts(os.environ))
    admit_before_ranks(request)
    if request.run_path is None:
        name = load_recipe(request.recipe_word).name
        request = replace(request, run_path=RunFolder.create(request.runs, name).path)
    return train_on_own_ranks(request)


def _devices(request: TrainRequest) -> int:
    """How many ranks this host has devices for; a CPU serves any number."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or request.device == "cpu":
        return request.layout.num_ranks
    return torch.accelerator.device_count()


def _train_as_one_of(place: Place, request: TrainRequest) -> Outcome:
    """Train as the rank that a launcher started this process as.

    The exit code is the writer's alone, and it leaves last: a launcher that sees a rank leave with
    another code than 0 ends the others, and the report is still to be written. A rank that its
    agent has started again goes on with the run of the first start.
    """
    run = known_run(place) if request.run_path is None else None
    if run is not None:
        request = started_again(request, run)
    request = _for_world(request, place)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_num_threads(place))
    with loopback() if place.is_on_one_node else nullcontext():
        outcome = train_rank(
            request,
            seat_of(place),
            agent=os.getppid(),
            note_run=lambda path: note_run(place, path),
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return outcome if outcome.is_writer else replace(outcome, exit_code=0)


def _for_world(request: TrainRequest, place: Place) -> TrainRequest:
    """The request for as many ranks as there are, where nobody asked for this very layout.

    Raises: `SpecError` if somebody did, and the launcher started another number.
    """
    if place.world_size == request.layout.num_ranks:
        return request
    if request.may_replan:
        return replanned(request, place.world_size)
    raise SpecError(
        "layout",
        f"{request.layout} is for {request.layout.num_ranks} ranks, the launcher started "
        f"{place.world_size} ({place.launcher}: {place.sources['world_size']})",
        "the product of the degrees is the number of ranks",
        f"use a layout such as data={place.world_size}",
    )


def _num_threads(place: Place) -> int:
    """A rank's share of the node's cores, or those that its launcher has bound it to."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    all_cores = os.cpu_count() or 1
    if 0 < bound < all_cores:
        return bound
    return max(1, all_cores // (place.local_world_size or 1))
