"""Faults of the axes that cut tensors: tensor and sequence, and both together."""

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch.distributed.tensor import DTensor, Replicate

from armillary.axes.attention import ring
from armillary.axes.regions import vocabulary
from armillary.axes.regions.mode import Cut
from armillary.recipes import gpt
from armillary.step import stepper
from armillary.step.stepper import Stepper
from armillary.verify import program
from tests.parity.sabotage import fault, replaced

Context = AbstractContextManager[Any]


def relabelled(tensor: Any, placements: Any) -> Any:
    """The rank's part of a DTensor, said to lie otherwise; nothing is sent."""
    local = tensor.to_local(grad_placements=tensor.placements)
    return DTensor.from_local(local, tensor.device_mesh, placements, run_check=False)


# -------------------------------------------------------------------------------------- tensor
@fault("sabotage_decoder", "data=2,tensor=2", "tensor", "copies differ along tensor")
def row_output_not_summed() -> Context:
    """The second map of a pair hands on the rank's partial sum as if it were the whole."""

    def make(real: Any) -> Any:
        def left(self: Any, tensor: Any, token_dim: int) -> Any:
            partial_dims = [p.is_partial() for p in tensor.placements]
            if not any(partial_dims):
                return real(self, tensor, token_dim)
            whole = [Replicate() if p.is_partial() else p for p in tensor.placements]
            local = tensor.to_local(grad_placements=whole)
            return DTensor.from_local(local, tensor.device_mesh, whole, run_check=False)

        return left

    return replaced(Cut, "left", make)


class _NotSummed(torch.autograd.Function):
    """The identity, whose gradient, a partial sum, is taken for the whole."""

    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Any:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        found = gradients[0]
        if isinstance(found, DTensor) and any(p.is_partial() for p in found.placements):
            whole = [Replicate() if p.is_partial() else p for p in found.placements]
            return DTensor.from_local(found.to_local(), found.device_mesh, whole, run_check=False)
        return found


@fault("sabotage_decoder", "data=2,tensor=2", "tensor", thread="pytorch/torchtitan#1373")
def column_input_gradient_not_summed() -> Context:
    """The first map of a pair returns the gradient of its own features only; forward is right."""
    return replaced(
        Cut, "entered", lambda real: lambda self, tensor: _NotSummed.apply(real(self, tensor))
    )


@fault("sabotage_decoder", "tensor=2,tensor.norms=cut", "tensor", thread="NVIDIA/Megatron-LM#1446")
def norm_gradients_not_summed() -> Context:
    """Norms see some tokens on each rank, and their gradients stay those of these tokens."""
    return replaced(stepper, "add_up_gradients", _forget_to_add_up)


def _forget_to_add_up(real: Any) -> Any:
    def add_up(parameters: Any) -> None:
        for parameter in parameters:
            gradient = parameter.grad
            if isinstance(gradient, DTensor) and gradient.placements != parameter.placements:
                parameter.grad = relabelled(gradient, parameter.placements)

    return add_up


@fault("sabotage_decoder", "tensor=2", "tensor", kind="parameter")
def query_heads_against_other_key_heads() -> Context:
    """A rank loads the query heads of the other, and its own heads of keys."""

    def make(real: Any) -> Any:
        def built(*args: Any, **options: Any) -> Any:
            module, graph = real(*args, **options)
            for path, parameter in module.named_parameters():
                if path.endswith("attention.q.weight"):
                    shards = parameter.data.full_tensor().chunk(2)
                    parameter.data.to_local().copy_(shards[1 - dist.get_rank()])
            return module, graph

        return built

    return replaced(program, "build_on_ranks", make)


@fault("sabotage_decoder", "tensor=2", "tensor", thread="NVIDIA/Megatron-LM#1754")
def vocabulary_offset_wrong() -> Context:
    """The second rank's words begin one too early."""

    def make(real: Any) -> Any:
        def words(*args: Any) -> tuple[int, int]:
            first, number = real(*args)
            return first - (first > 0), number

        return words

    return replaced(vocabulary, "_words", make)


@fault("sabotage_decoder", "data=2,tensor=2", "tensor")
def other_samples_along_tensor() -> Context:
    """The sampler counts all ranks, so those that share a layer train on different samples."""

    def make(real: Any) -> Any:
        def feed(given: Any, recipe: Any, world: Any, layout: Any) -> Any:
            shift = world.rank % layout.degree("tensor")
            moved = given.samples[shift:] + given.samples[:shift]
            return real(dataclasses.replace(given, samples=moved), recipe, world, layout)

        return feed

    return replaced(program, "_feed", make)


@fault("sabotage_decoder", "sequence=2,tensor=2", "sequence", thread="pytorch/torchtitan#3412")
def weight_gradient_mislabelled() -> Context:
    """A weight's gradient, a sum over some positions, is labelled as the whole."""

    def make(real: Any) -> Any:
        return lambda self, weight, x: None if weight is None else weight.to_local()

    return replaced(Cut, "local_weight", make)


# ------------------------------------------------------------------------------------ sequence
@fault("sabotage_decoder", "data=2,sequence=2", "sequence", thread="NVIDIA/Megatron-LM#1464")
def causal_offset_wrong() -> Context:
    """Rows of a tile are taken to stand one position further on: each sees one token ahead."""

    def make(real: Any) -> Any:
        def tiles(*args: Any) -> Iterator[Any]:
            for rows, columns, tile in real(*args):
                later = tile.rows._replace(start=tile.rows.start + 1)
                yield rows, columns, dataclasses.replace(tile, rows=later)

        return tiles

    return replaced(ring, "_tiles", make)


@fault("sabotage_decoder", "data=2,sequence=2", "sequence")
def ring_step_skipped() -> Context:
    """The last block of keys that comes round is not attended to."""

    def make(real: Any) -> Any:
        def tiles(turns: Any, source: int, *others: Any) -> Iterator[Any]:
            if (turns.rank - source) % turns.degree != turns.degree - 1:
                yield from real(turns, source, *others)

        return tiles

    return replaced(ring, "_tiles", make)


@fault("sabotage_decoder", "sequence=2", "sequence", thread="NVIDIA/Megatron-LM#1464")
def gradients_of_keys_not_returned() -> Context:
    """What other ranks add to the gradients of keys and values does not come home."""

    def make(real: Any) -> Any:
        class Lost(real):  # type: ignore[misc]
            def __init__(self, sent: Any, arriving: Any, group: Any, tag: int) -> None:
                super().__init__(sent, arriving, group, tag)
                self.is_lost = tag == ring.GRADIENTS_TAG

            def wait(self) -> Any:
                found = super().wait()
                return found * 0 if self.is_lost else found

        return Lost

    return replaced(ring, "Passing", make)


@fault("sabotage_decoder", "sequence=2", "sequence")
def tiles_added_without_their_log_sums() -> Context:
    """Tiles of a ring are averaged as if their softmaxes had one sum."""

    def make(real: Any) -> Any:
        def merge(out: Any, log_sum: Any, tile: Any, tile_log_sum: Any) -> None:
            seen = ~log_sum.isneginf()[..., None]
            real(out.clone(), log_sum, tile, tile_log_sum)
            out.copy_(torch.where(seen, (out + tile) / 2, tile))

        return merge

    return replaced(ring, "merge", make)


@fault("sabotage_decoder", "sequence=2", "sequence")
def positions_counted_on_each_rank() -> Context:
    """Rotary positions begin at 0 on every rank."""

    def make(real: Any) -> Any:
        def rotation(x: Any, size: int) -> Any:
            if not isinstance(x, DTensor):
                return real(x, size)
            place = torch.arange(x.shape[1]) % (x.shape[1] // dist.get_world_size())
            return tuple(values[place] for values in real(x, size))

        return rotation

    return replaced(gpt, "rotation", make)


@fault(
    "sabotage_decoder", "data=2,sequence=2", "sequence", "2 times the right one: a factor",
    thread="NVIDIA/Megatron-LM#673",
)  # fmt: skip
def loss_scaled_by_the_sequence_degree() -> Context:
    """The loss is multiplied by the number of ranks that share a sample."""

    def make(real: Any) -> Any:
        def weighted(self: Any, model: Any, batch: Any, count: int, total: Any, sums: Any) -> Any:
            shared = self.world.num_ranks // self.world.batch_count
            return real(self, model, batch, count, total / shared, sums)

        return weighted

    return replaced(Stepper, "_weighted", make)


@fault(
    "sabotage_decoder", "sequence=2", "sequence", "copies differ along sequence",
    thread="NVIDIA/Megatron-LM#7452",
)  # fmt: skip
def parameter_gradients_of_own_positions() -> Context:
    """Gradients of parameters are averaged over replicas, not added up over positions."""
    return replaced(stepper, "add_up_gradients", _forget_to_add_up)


@fault("sabotage_decoder", "sequence=2", "sequence", "seeds differ along sequence", kind="seed")
def dropout_seeds_by_rank_in_a_sample() -> Context:
    """Ranks that share a sample draw from seeds of their own where all must draw alike."""
    return replaced(
        stepper, "mix", lambda real: lambda seed, *place: real(seed, *place, dist.get_rank())
    )


@fault("sabotage_experts", "sequence=2", "sequence", "copies differ along sequence")
def gradients_of_experts_not_summed() -> Context:
    """An expert's gradient, of the tokens of one rank, is taken for that of all."""

    def make(real: Any) -> Any:
        return lambda parameter, tokens: parameter.to_local()

    return replaced("armillary.axes.batch.routed", "_local_part", make)


@fault("sabotage_experts", "data=2,sequence=2", "sequence")
def balance_of_own_tokens() -> Context:
    """The balance of experts is taken of the tokens that a rank holds."""

    class Alone(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, local: Any, group: Any) -> Any:
            return local * group.size()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0], None

    return replaced("armillary.axes.tokens", "_added", lambda real: lambda: Alone)


@fault("sabotage_grid", "sequence=2", "sequence")
def group_norm_of_own_rows() -> Context:
    """A norm by groups takes its mean and spread of the rows that a rank holds."""

    def make(real: Any) -> Any:
        return lambda local, num_groups, eps, group: functional.group_norm(
            local, num_groups, eps=eps
        )

    return replaced("armillary.axes.grids.layers", "norm_over_rows", make)
