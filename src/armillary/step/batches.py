"""Batches of a rank: its share of every step, each sample with a seed of its own."""

import contextlib
import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, default_collate

from armillary.feeds import FeedState, SampleOrder, Share, mix
from armillary.spec import SpecError
from armillary.step.workers import held_back, leave_stopping_to_the_rank

Key = tuple[int, int, int]  # epoch, position, index of the sample
Collate = Callable[[list[Any]], Any]

CAN_FORK = sys.platform == "linux"
NUM_FINGERPRINT_SAMPLES = 16
NUM_BATCHES_AHEAD = 64
NUM_EXAMPLES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One rank's part of an optimiser step over `num_samples` samples of all ranks.

    `micro_batches` yields (batch, number of samples that count); a rank for which no sample is
    left computes one that counts 0, so that its collectives match the others'.
    """

    epoch: int
    start: int
    num_samples: int
    num_micro_batches: int
    micro_batches: Iterator[tuple[Any, int]]


class Feed:
    """The steps of an epoch for one share of the batch, from any position on.

    `state` is the position and the data's hash; a feed of another world size given the same state
    goes on with the next sample.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        share: Share,
        seed: int = 0,
        shuffle: bool = False,
        collate: Collate | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.share = dataset, batch_size, share
        self.order = SampleOrder(num_samples=len(dataset), seed=seed, shuffle=shuffle)
        self.collate: Collate = collate or default_collate
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.fingerprint = fingerprint(dataset)
        self.epoch, self.position = 0, 0

    @property
    def num_steps(self) -> int:
        """The number of steps in an epoch, the last of them perhaps smaller."""
        return -(-len(self.dataset) // self.batch_size)

    @property
    def state(self) -> FeedState:
        """Where the feed stands."""
        return FeedState(
            epoch=self.epoch,
            position=self.position,
            seed=self.order.seed,
            fingerprint=self.fingerprint,
        )

    def restore(self, state: FeedState) -> None:
        """Go on from `state`.

        Raises: `SpecError` if the state counts other data or another order.
        """
        for name, own in (("fingerprint", self.fingerprint), ("seed", self.order.seed)):
            if getattr(state, name) != own:
                raise SpecError(
                    f"feed.{name}",
                    f"{getattr(state, name)} in the checkpoint, {own} now",
                    "a run goes on with the data and seed it began with",
                    "restore the data or the seed, or start a new run",
                )
        self.epoch, self.position = state.epoch, state.position

    def example(self) -> tuple[Any, int]:
        """A batch of the first samples in the data's own order, and how many; the feed stays."""
        count = min(len(self.dataset), NUM_EXAMPLES)
        batches = Batches(self.dataset, self.order.seed, self.collate)
        return _sound(batches[[(0, i, i) for i in range(count)]]), count

    def steps(self) -> Iterator[Step]:
        """The remaining steps of the epoch; the feed stands behind a step once it is yielded."""
        starts = range(self.position, len(self.dataset), self.batch_size)
        plan = [(start, min(start + self.batch_size, len(self.dataset))) for start in starts]
        parts = [self.share.micro_batches(*bounds) for bounds in plan]
        with held_back() if self.num_workers else contextlib.nullcontext():
            batches = iter(self._loader([positions for step in parts for positions in step]))
        for (start, stop), micro_batches in zip(plan, parts, strict=True):
            self.position = stop
            yield Step(
                epoch=self.epoch,
                start=start,
                num_samples=stop - start,
                num_micro_batches=len(micro_batches),
                micro_batches=(
                    (_sound(next(batches)), len(positions)) for positions in micro_batches
                ),
            )
        self.epoch, self.position = self.epoch + 1, 0

    def _loader(self, parts: list[NDArray[np.int64]]) -> DataLoader[Any]:
        """A loader of the batches at `parts`; where one is empty, of the first sample instead."""
        return DataLoader(
            cast(Dataset[Any], Batches(self.dataset, self.order.seed, self.collate)),
            batch_size=None,
            sampler=_Keys(self.order, self.epoch, parts),
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            worker_init_fn=leave_stopping_to_the_rank,
            # A recipe is no module that a fresh process could import by name.
            multiprocessing_context="fork" if self.num_workers and CAN_FORK else None,
            pin_memory=self.pin_memory,
        )


class _Keys:
    """The sample keys of every batch, computed some batches ahead: one batch at a time costs more
    in calls than in hashes.
    """

    def __init__(self, order: SampleOrder, epoch: int, parts: list[NDArray[np.int64]]) -> None:
        self.order, self.epoch, self.parts = order, epoch, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[list[Key]]:
        first = np.zeros(1, dtype=np.int64)
        for start in range(0, len(self.parts), NUM_BATCHES_AHEAD):
            parts = [p if len(p) else first for p in self.parts[start : start + NUM_BATCHES_AHEAD]]
            indices = self.order.at(self.epoch, np.concatenate(parts))
            ends = np.cumsum([len(part) for part in parts])
            for positions, found in zip(parts, np.split(indices, ends[:-1]), strict=True):
                pairs = zip(positions.tolist(), found.tolist(), strict=True)
                yield [(self.epoch, position, index) for position, index in pairs]


class Batches:
    """Batches by the keys of their samples. A user's mistake is handed over, not raised: a process
    that loads data could raise only its words.
    """

    def __init__(self, dataset: Any, seed: int, collate: Collate) -> None:
        self.dataset, self.seed, self.collate = dataset, seed, collate

    def __getitem__(self, keys: list[Key]) -> Any:
        try:
            return self._collated([seeded(self.dataset, self.seed, key) for key in keys])
        except SpecError as error:
            return error

    def _collated(self, samples: list[Any]) -> Any:
        try:
            return self.collate(samples)
        except (RuntimeError, TypeError) as error:
            raise SpecError(
                "recipe.collate",
                f"the samples do not make a batch: {error}",
                "the samples of a batch have equal shapes, or collate() joins them",
                "set `collate = armillary.pad_collate`, or write collate(samples)",
            ) from error


def seeded(dataset: Any, seed: int, key: Key) -> Any:
    """A sample, whose random augmentation is a function of seed, epoch and position alone."""
    epoch, position, index = key
    seed_all(mix(seed, epoch, position))
    return dataset[index]


def seed_all(seed: int, device: torch.device | None = None) -> None:
    """Seed the random numbers of Python, NumPy and torch, and those of `device`.

    torch.manual_seed would also note, for every backend that has no device here, the seed and a
    traceback: 0.5 ms a step.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _as_it_is(batch: Any) -> Any:
    return batch


def _sound(batch: Any) -> Any:
    if isinstance(batch, SpecError):
        raise batch
    return batch


def fingerprint(dataset: Any) -> str:
    """A hash of a dataset: its own `fingerprint`, or that of its length and some samples."""
    own = getattr(dataset, "fingerprint", None)
    if own is not None:
        return str(own)
    digest = hashlib.sha256(str(len(dataset)).encode())
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), NUM_FINGERPRINT_SAMPLES))
    for index in chosen.astype(int).tolist():
        for leaf in tree_leaves(seeded(dataset, 0, (0, index, index))):
            digest.update(_leaf_bytes(leaf))
    return digest.hexdigest()


def _leaf_bytes(leaf: Any) -> bytes:
    if isinstance(leaf, torch.Tensor):
        leaf = leaf.detach().cpu().contiguous().view(torch.uint8) if leaf.ndim else leaf.item()
    values = np.asarray(leaf)
    return f"{values.dtype}{values.shape}".encode() + values.tobytes()


def pad_collate(samples: Sequence[Any]) -> Any:
    """Samples of unequal length as one batch: a dict whose arrays are padded with zeros.

    A sample is a dict of arrays, tensors or numbers. Arrays are padded along their first dim to
    the longest, shape [batch, longest, ...]; "lengths" [batch] is the true first dim of each
    sample's first array.
    """
    batch = {}
    lengths: list[int] = []
    for name in samples[0]:
        entries = [torch.as_tensor(sample[name]) for sample in samples]
        if entries[0].ndim == 0:
            batch[name] = torch.stack(entries)
            continue
        batch[name] = pad_sequence(entries, batch_first=True)
        lengths = lengths or [len(entry) for entry in entries]
    return batch | {"lengths": torch.tensor(lengths)}
