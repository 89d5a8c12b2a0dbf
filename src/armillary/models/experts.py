"""Routed experts: the layer in which every token is computed by a few of many feed-forwards.

`Experts` takes the choice of a router and does three steps: sort the tokens by expert, compute each
expert on its rows, and put the weighted results back in the tokens' places. A parallel form that
exchanges tokens between ranks replaces the middle step alone. `balance_loss` and `BalanceBias` keep
a router from choosing the same few experts.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

# Shapes: N tokens, H hidden, K experts chosen for a token, E experts, F inner size of an expert;
# R rows sorted by expert: one for each choice that is kept, R = N K unless a capacity drops some


class Experts(nn.Module):
    """SwiGLU experts with grouped weights; the weighted sum [N, H] of each token's chosen ones.

    Dropless where `capacity_factor` is None. Otherwise an expert takes no more than
    `capacity(N K)` rows of one call; choices beyond it, counted in the order of the tokens, are
    dropped and add zero. The capacity belongs to all tokens of the call: the same tokens given in
    two calls may drop others, and a parallel form that gives each rank a part of them has to count
    over the whole (override `capacity` and `sort`).

    The weights are plain parameters: `gate` and `up` [E, H, F], `down` [E, F, H].

    Shapes: x [N, H], weight [N, K], chosen [N, K] (the experts' numbers, all different for one
    token) -> [N, H].

    Source: SwiGLU, Shazeer 2020, arXiv 2002.05202, eq. 6; capacity, Fedus et al. 2021 (Switch
    Transformer), arXiv 2101.03961, eq. 3, with K choices a token.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        expert_size: int,
        *,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.num_experts, self.capacity_factor = num_experts, capacity_factor
        self.gate = nn.Parameter(torch.empty(num_experts, hidden_size, expert_size))
        self.up = nn.Parameter(torch.empty(num_experts, hidden_size, expert_size))
        self.down = nn.Parameter(torch.empty(num_experts, expert_size, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1/sqrt(inputs), as `nn.Linear` does for each expert."""
        for weight_EIO in (self.gate, self.up, self.down):
            bound = 1 / math.sqrt(weight_EIO.shape[1])
            nn.init.uniform_(weight_EIO, -bound, bound)

    def forward(
        self, x_NH: torch.Tensor, weight_NK: torch.Tensor, chosen_NK: torch.Tensor
    ) -> torch.Tensor:
        choice_R, counts_E = self.sort(chosen_NK)
        rows_RH = x_NH[choice_R // chosen_NK.shape[1]]
        return self.scatter(self.compute(rows_RH, counts_E), choice_R, weight_NK)

    def sort(self, chosen_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The kept choices by expert, [R] places in the flattened [N K]; rows an expert, [E].

        Choices of one expert stay in the order of the tokens. Where tensors carry no values all
        experts are chosen alike.
        """
        expert_C = chosen_NK.flatten()
        choice_R = expert_C.argsort(stable=True)
        counts_E = count(expert_C, self.num_experts)
        if self.capacity_factor is None:
            return choice_R, counts_E
        capacity = self.capacity(len(expert_C))
        if not _has_values(counts_E):
            return choice_R[: capacity * self.num_experts], counts_E.clamp(max=capacity)
        start_E = counts_E.cumsum(0) - counts_E
        expert_R = expert_C[choice_R]
        place_R = torch.arange(len(choice_R), device=choice_R.device) - start_E[expert_R]
        return choice_R[place_R < capacity], counts_E.clamp(max=capacity)

    def capacity(self, num_choices: int) -> int:
        """Rows that one expert takes of `num_choices` = N K, rounded up."""
        assert self.capacity_factor is not None
        return math.ceil(self.capacity_factor * num_choices / self.num_experts)

    def compute(self, rows_RH: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        """Each expert on its rows [R, H], which stand one expert after another, `counts_E` each.

        It is the experts alone: nothing of a token's place or weight is known here.
        """
        sizes = _sizes(counts_E, len(rows_RH))
        parts = [
            (F.silu(rows @ gate_HF) * (rows @ up_HF)) @ down_FH
            for rows, gate_HF, up_HF, down_FH in zip(
                rows_RH.split(sizes), self.gate, self.up, self.down, strict=True
            )
        ]
        return torch.cat(parts)

    def scatter(
        self, rows_RH: torch.Tensor, choice_R: torch.Tensor, weight_NK: torch.Tensor
    ) -> torch.Tensor:
        """The sum [N, H] over a token's choices of weight times row; a dropped one adds zero.

        A token's rows are added in the order of its choices, so that the sum does not depend on
        which other tokens are there.
        """
        num_tokens, top_k = weight_NK.shape
        found_CH = rows_RH.new_zeros(num_tokens * top_k, rows_RH.shape[1])
        found_NKH = found_CH.index_copy(0, choice_R, rows_RH).unflatten(0, (num_tokens, top_k))
        return (weight_NK[..., None] * found_NKH).sum(1)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        num_experts, hidden_size, expert_size = self.gate.shape
        kept = "dropless" if self.capacity_factor is None else f"capacity {self.capacity_factor}"
        return f"{num_experts} of {hidden_size} x {expert_size}, {kept}"


def count(chosen: torch.Tensor, num_experts: int) -> torch.Tensor:
    """How often each expert is chosen, [E]: by comparison, the same on every device and run."""
    each_E = torch.arange(num_experts, device=chosen.device)
    return (chosen.flatten()[:, None] == each_E).sum(0)


def balance_loss(probabilities_NE: torch.Tensor, chosen_NK: torch.Tensor) -> torch.Tensor:
    """E times the sum over experts of (share of choices) x (mean probability); 1 if even.

    The smaller, the evener; the gradient flows through the probabilities alone. Dims before the
    last two are kept: [B, T, E] gives one number for each of B sequences, whose mean over samples
    is exact however a batch is split over ranks and micro batches. One number over all tokens
    [N, E] is a product of two means, and the mean of such numbers over ranks is not the number of
    the whole batch.

    Source: Fedus et al. 2021 (Switch Transformer), arXiv 2101.03961, eq. 4-6 without the factor
    alpha; for each sequence, DeepSeek-V3, arXiv 2412.19437, eq. 17-20.
    """
    num_experts = probabilities_NE.shape[-1]
    each_E = torch.arange(num_experts, device=chosen_NK.device)
    share_NE = (chosen_NK[..., None] == each_E).to(probabilities_NE.dtype).mean(-2)
    # one mean for both, so that ranks that hold parts of the tokens add up once
    share_E, mean_E = token_mean(torch.cat([share_NE, probabilities_NE], -1)).chunk(2, -1)
    return num_experts * (share_E * mean_E).sum(-1)


def token_mean(values_NE: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens [..., N, E] -> [..., E].

    It is a function of its own so that it can be told, and replaced where ranks hold parts of N.
    """
    if has_torch_function_unary(values_NE):
        found: torch.Tensor = handle_torch_function(token_mean, (values_NE,), values_NE)
        return found
    return values_NE.mean(-2)


class BalanceBias(nn.Module):
    """The `top_k` experts [N, K] by score plus a bias that rises where too few tokens go.

    The bias takes part in the choice only: weights come from the scores themselves. In training
    every call adds to `load_E`; `after_step`, called once after each optimiser step, moves the bias
    of every expert by `speed` against its load and starts counting anew. No gradient is involved.

    `bias` is a buffer and is saved with the model. `load_E` is not: between steps it is empty.

    Shapes: scores [N, E] or [..., E] -> [N, K] or [..., K].

    Source: DeepSeek-V3, arXiv 2412.19437, section 2.1.2, eq. 16, which trains with speed 0.001.
    """

    bias: torch.Tensor

    def __init__(self, num_experts: int, speed: float = 0.001) -> None:
        super().__init__()
        self.speed = speed
        self.register_buffer("bias", torch.zeros(num_experts))
        self.load_E: torch.Tensor | None = None

    def forward(self, scores_NE: torch.Tensor, top_k: int) -> torch.Tensor:
        chosen_NK = (scores_NE.detach() + self.bias).topk(top_k, dim=-1).indices
        if self.training:
            counts_E = count(chosen_NK, len(self.bias))
            self.load_E = counts_E if self.load_E is None else self.load_E + counts_E
        return chosen_NK

    @torch.no_grad()
    def after_step(self, total: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        """Move the bias by the load since the last call, and forget it.

        `total` sums a tensor over the ranks that hold other samples of the step, so that all move
        alike. Every rank calls it, also one that has counted nothing.
        """
        load_E = torch.zeros_like(self.bias) if self.load_E is None else self.load_E
        load_E = load_E.to(torch.float64)
        if total is not None:
            load_E = total(load_E)
        self.bias += self.speed * (load_E.mean() - load_E).sign().to(self.bias)
        self.load_E = None


def _sizes(counts_E: torch.Tensor, num_rows: int) -> list[int]:
    """Rows of each expert as numbers; an even share where the tensors carry no values.

    That is so where a model is only traced: shapes and work are then those of a balanced load.
    """
    if not _has_values(counts_E):
        num_experts = len(counts_E)
        return [num_rows // num_experts + (e < num_rows % num_experts) for e in range(num_experts)]
    return [int(size) for size in counts_E.tolist()]


def _has_values(tensor: torch.Tensor) -> bool:
    """Whether numbers can be read from `tensor`, which has more than a shape."""
    from torch._subclasses.fake_tensor import FakeTensor

    return not (tensor.is_meta or isinstance(tensor, FakeTensor))
