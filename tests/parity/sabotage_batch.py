"""Faults of the axes that take other samples: data and sharded, micro batches, the optimiser."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from armillary.axes import reduction
from armillary.axes.batch import norm as batch_norm
from armillary.axes.batch import routed
from armillary.step import clip, stepper, world
from armillary.step.stepper import Stepper
from armillary.verify import program
from tests.parity.sabotage import fault, replaced, together

Context = AbstractContextManager[Any]
SHARDED = "sharded"
COPIES_DIFFER = "copies differ along data"


@fault("mlp", "data=2", "data", COPIES_DIFFER)
def gradients_never_reduced() -> Context:
    """Each rank keeps its own gradients: the switch that skips the reduction stays on."""
    return replaced(
        stepper, "synchronize", lambda real: lambda module, is_last: real(module, False)
    )


@fault(
    "blocks",
    "data=2,sharded=2",
    "data",
    COPIES_DIFFER,
    thread="Lightning-AI/pytorch-lightning#20385",
)
def replicas_of_shards_apart() -> Context:
    """Shards are reduced within one set of them; the sets are never averaged."""

    def make(real: Any) -> Any:
        def reduce(module: Any, mesh: Any, names: Any, *others: Any) -> None:
            real(module, mesh, ["sharded"] if "sharded" in names else names, *others)

        return reduce

    return replaced(reduction, "_reduce", make)


@fault("blocks", "data=2", "data", COPIES_DIFFER, thread="deepspeedai/DeepSpeed#7718")
def one_block_not_reduced() -> Context:
    """One block of the model was left out of the buckets of the reduction."""

    def make(real: Any) -> Any:
        @functools.wraps(real)
        def replicate(part: Any, **options: Any) -> Any:
            return real(part, ignored_modules=[part.blocks[1]], **options)

        return replicate

    return replaced("torch.distributed._composable.replicate", "replicate", make)


@fault(
    "mlp", "data=2", "data", "a mean of means", kind="norm",
    thread="huggingface/transformers#34242, #24725",
)  # fmt: skip
def mean_of_means_over_ranks() -> Context:
    """Each rank's loss is a mean over its own samples, whose numbers are not equal."""

    def make(real: Any) -> Any:
        def weighted(self: Any, model: Any, batch: Any, count: int, total: int, sums: Any) -> Any:
            return real(self, model, batch, count, count * self.world.batch_count, sums)

        return weighted

    return replaced(Stepper, "_weighted", make)


@fault("mlp", "data=2,sharded=2", "data")
def same_samples_along_data() -> Context:
    """The sampler knows of one axis only, so replicas train on the same samples."""

    def make(real: Any) -> Any:
        def coordinate(mesh: Any) -> tuple[int, int]:
            index, count = real(mesh)
            return index % mesh[SHARDED].size() if SHARDED in mesh.mesh_dim_names else 0, count

        return coordinate

    return replaced(world, "_batch_coordinate", make)


@fault("mlp", "data=2,sharded=2", "data", "seeds are equal along data", kind="seed")
def dropout_seeds_equal_along_data() -> Context:
    """The seed of a step is made of the coordinate along the innermost axis alone."""

    return replaced(
        stepper, "mix", lambda real: lambda seed, index, place, i: real(seed, index, place % 2, i)
    )


@fault(
    "sabotage_decoder",
    "data=2",
    "data",
    "sqrt(2) times",
    kind="norm",
    thread="pytorch/torchtitan#2318",
)
def norm_counts_every_replica() -> Context:
    """The norm adds up all ranks' gradients, as if each rank held others."""
    return replaced(clip, "_count_copies", lambda real: lambda parameter, mesh: 1)


@fault("mlp", "data=2", "data", COPIES_DIFFER, kind="parameter")
def one_rank_does_not_step() -> Context:
    """A rank skips the update, as one does that alone found an overflow."""

    def make(real: Any) -> Any:
        def update(self: Any, loss: float, factor: float) -> Any:
            if self.world.rank == 1:
                with replaced(self.optimizer, "step", lambda _: lambda: None):
                    return real(self, loss, factor)
            return real(self, loss, factor)

        return update

    return replaced(Stepper, "update", make)


@fault("sabotage_decoder", "data=2", "data", COPIES_DIFFER, kind="parameter")
def decay_on_one_rank_only() -> Context:
    """Parameters were put into groups on the first rank alone, so only it decays them."""

    def make(real: Any) -> Any:
        def update(self: Any, loss: float, factor: float) -> Any:
            for group in self.optimizer.param_groups if self.world.rank else ():
                group["weight_decay"] = 0.0
            return real(self, loss, factor)

        return update

    return replaced(Stepper, "update", make)


@fault("expert_tokens", "data=2", "data", kind="buffer", balance="bias")
def buffer_updated_from_own_samples() -> Context:
    """A buffer that moves with what all samples did moves with the rank's own."""
    return replaced(routed, "_balance_over", lambda real: lambda module, ranks: real(module, None))


@fault("expert_tokens", "data=2", "data", "stale", kind="buffer", balance="bias")
def buffer_never_updated() -> Context:
    """A buffer that moves after each step stays as the model was built."""

    def make(real: Any) -> Any:
        def balance(module: Any, ranks: Any) -> None:
            real(module, ranks)
            module.after_step = lambda: None

        return balance

    return replaced(routed, "_balance_over", make)


@fault(
    "mlp", "data=2,micro_batch_size=4", "micro_batch_size", COPIES_DIFFER,
    thread="pytorch/torchtitan#1733",
)  # fmt: skip
def reduced_at_the_first_micro_batch() -> Context:
    """Gradients are reduced once a step, after the first micro batch in place of the last."""
    seen: list[int] = []

    def make(real: Any) -> Any:
        def switch(module: Any, is_last: bool) -> None:
            is_first = not seen
            seen.append(1) if not is_last else seen.clear()
            real(module, is_first)

        return switch

    return replaced(stepper, "synchronize", make)


@fault(
    "mlp", "data=2,micro_batch_size=3", "micro_batch_size",
    thread="huggingface/transformers#34242",
)  # fmt: skip
def mean_of_means_over_micro_batches() -> Context:
    """Eight samples in micro batches of 3, 3 and 2, each of which weighs a third."""
    now: dict[str, int] = {}

    def noting(real: Any) -> Any:
        def run_each(self: Any, step: Any, index: int) -> Any:
            place, count = self.world.batch_index, self.world.batch_count
            bounds = [step.num_samples * (place + i) // count for i in range(2)]
            now.update(num_micro=step.num_micro_batches, num_samples=bounds[1] - bounds[0])
            return real(self, step, index)

        return run_each

    def weighing(real: Any) -> Any:
        def weighted(self: Any, model: Any, batch: Any, count: int, total: int, sums: Any) -> Any:
            seen = max(count, 1) * now["num_micro"] / now["num_samples"] * total
            return real(self, model, batch, count, seen, sums)

        return weighted

    return together(
        replaced(Stepper, "_run_each", noting), replaced(Stepper, "_weighted", weighing)
    )


@fault("batch_norm_maps", "data=2", "data", thread="Lightning-AI/pytorch-lightning#6789")
def batch_norm_of_own_samples() -> Context:
    """Batch norm takes its statistics over the rank's samples, as plain DDP has it."""
    return replaced(batch_norm, "batch_ranks", lambda real: lambda mesh: None)


@fault("matrix", "data=2,sharded=2", "sharded", kind="parameter")
def optimizer_of_whole_matrices_sees_shards() -> Context:
    """An optimiser that works on whole matrices (Muon) is given a rank's rows of them."""
    return replaced(stepper, "whole_matrices", lambda real: lambda optimizer: nullcontext())


# ------------------------------------------------------------------------------------- sharded
COLLECTIVES = "torch.distributed.fsdp._fully_shard._fsdp_collectives"


@fault(
    "sabotage_decoder", "data=2,sharded=2", "sharded", "2 times the right one: a factor",
    thread="pytorch/pytorch#162338",
)  # fmt: skip
def shards_summed_not_averaged() -> Context:
    """The reduction to shards adds up where it should average, as gloo's AVG once did."""

    def make(real: Any) -> Any:
        def factors(scatter: Any, replicas: Any, *others: Any, **options: Any) -> Any:
            pre, post, *kinds = real(scatter, replicas, *others, **options)
            return (pre, (post or 1.0) / scatter.size() if scatter else post, *kinds)

        return factors

    return replaced(COLLECTIVES, "_get_gradient_divide_factors", make)


@fault("sabotage_decoder", "data=2,sharded=2", "sharded", "a permuted shard")
def two_shards_swapped() -> Context:
    """The ranks number the shards of a reduction the other way round."""

    def make(real: Any) -> Any:
        def scatter(*args: Any, output: Any, input: Any, group: Any, **others: Any) -> Any:
            swapped = input.view(group.size(), -1).flip(0).reshape(-1)
            return real(*args, output=output, input=swapped, group=group, **others)

        return scatter

    return replaced(dist, "reduce_scatter_single", make)


@fault("twice", "data=2,sharded=2", "sharded", thread="deepspeedai/DeepSpeed#8224")
def second_use_of_a_module_dropped() -> Context:
    """A submodule that is used more than once a step keeps the gradient of some uses only."""

    def make(real: Any) -> Any:
        def reduce(part: Any, mesh: Any, layout: Any, graph: Any) -> None:
            real(part, mesh, layout, graph)
            for module in part.modules() if "sharded" in mesh.mesh_dim_names else ():
                if isinstance(module, torch.nn.Linear):
                    module.forward = _every_other_use(module)

        return reduce

    return replaced("armillary.axes.compose", "reduce_gradients", make)


def _every_other_use(linear: Any) -> Any:
    uses: list[int] = []

    def forward(x: Any) -> Any:
        uses.append(1)
        weight, bias = linear.weight, linear.bias
        if len(uses) % 2:
            weight, bias = weight.detach(), bias.detach()
        return torch.nn.functional.linear(x, weight, bias)

    return forward


@fault(
    "sabotage_decoder", "data=2,sharded=2", "sharded", "copies differ along sharded", kind="norm",
    thread="deepspeedai/DeepSpeed#7837",
)  # fmt: skip
def norm_of_the_rank_s_shard() -> Context:
    """Clipping takes the norm of what the rank holds."""

    def make(real: Any) -> Any:
        def clipped(parameters: Any, clip_norm: float, mesh: Any) -> float:
            gradients = [getattr(p.grad, "_local_tensor", p.grad) for p in parameters]
            norm = float(torch.stack([g.norm() for g in gradients]).norm())
            torch._foreach_mul_(gradients, min(1.0, clip_norm / (norm + 1e-6)))
            return norm

        return clipped

    return replaced(stepper, "clip_gradients", make)


@fault("sabotage_decoder", "sharded=2", "sharded", "stale", kind="norm")
def norm_of_the_step_before() -> Context:
    """Clipping uses the norm that the last step left behind, from the second step on."""
    kept: list[float] = []

    def make(real: Any) -> Any:
        def clipped(parameters: Any, clip_norm: float, mesh: Any) -> float:
            kept.append(real(parameters, 0.0 * clip_norm + 1e30, mesh))
            norm = kept[max(len(kept) - 2, 0)]
            torch._foreach_mul_([p.grad for p in parameters], min(1.0, clip_norm / norm))
            return norm

        return clipped

    return replaced(stepper, "clip_gradients", make)


@fault("mlp", "sharded=2", "sharded", kind="loss")
def initial_values_of_a_seed_of_the_rank() -> Context:
    """Each rank seeds itself before it builds the model, and shards are of different models."""

    def make(real: Any) -> Any:
        def built(*args: Any, seed: int, **options: Any) -> Any:
            return real(*args, seed=seed + dist.get_rank(), **options)

        return built

    return replaced(program, "build_on_ranks", make)


# -------------------------------------------------------------------------------------- expert
@fault(
    "expert_tokens", "data=2,expert=2", "expert", "2 times the right one: a factor of the degree",
    thread="deepspeedai/DeepSpeed#5618, pytorch/pytorch#160285",
)  # fmt: skip
def expert_gradients_times_the_degree() -> Context:
    """Experts add up the gradients of all ranks' tokens and are not averaged over their number."""
    return replaced(
        routed,
        "give_gradient",
        lambda real: lambda tensor, factor, *groups: real(tensor, 1.0, *groups),
    )


@fault(
    "expert_tokens", "data=2,expert=2", "expert", "1/2 times the right one: a factor of the degree",
    thread="NVIDIA/Megatron-LM#5916",
)  # fmt: skip
def expert_gradients_averaged_twice() -> Context:
    """Expert gradients are divided by the degree once more."""
    return replaced(
        routed,
        "give_gradient",
        lambda real: lambda tensor, factor, *groups: real(tensor, factor**2, *groups),
    )


@fault("expert_tokens", "data=2,expert=2", "expert")
def experts_averaged_over_the_wrong_ranks() -> Context:
    """Expert gradients are averaged over ranks that hold other experts."""

    def make(real: Any) -> Any:
        def local(self: Any, tokens: Any) -> Any:
            made = real(self, tokens)
            groups = [self.exchange.group] if self.exchange else []
            made.__dict__["_parameters"] = {
                name: routed.give_gradient(value, 1.0, *groups)
                for name, value in made.__dict__["_parameters"].items()
            }
            return made

        return local

    return replaced(routed.InParts, "_local", make)


@fault("expert_tokens", "data=2,expert=2", "expert")
def tokens_returned_to_other_tokens() -> Context:
    """What experts computed comes back in the order of arrival, not in that of the tokens."""
    return replaced(
        "armillary.axes.expert",
        "_by_expert",
        lambda real: lambda counts, num_rows: torch.arange(num_rows - 1, -1, -1),
    )


@fault("sabotage_capacity", "data=2", "data")
def capacity_counted_locally() -> Context:
    """An expert's capacity is taken of the tokens of one rank."""

    def make(real: Any) -> Any:
        return lambda self, local, tokens, chosen: self.kind.sort(local, chosen)

    return replaced(routed.InParts, "_sort", make)
