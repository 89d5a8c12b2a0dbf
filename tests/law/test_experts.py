"""Routed experts: equal to a loop over tokens, gradients too; capacity; the ways to balance."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from armillary.models.experts import BalanceBias, Experts, balance_loss, count

Case = tuple[Experts, torch.Tensor, torch.Tensor, torch.Tensor]


@st.composite
def cases(draw: st.DrawFn, factors: st.SearchStrategy[float | None]) -> Case:
    """Experts in float64, tokens [N, H], weights [N, K], and a choice [N, K] that may be skewed."""
    num_experts, hidden_size = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    expert_size, num_tokens = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    top_k, seed = draw(st.integers(1, num_experts)), draw(st.integers(0, 9999))
    torch.manual_seed(seed)
    experts = Experts(num_experts, hidden_size, expert_size, capacity_factor=draw(factors)).double()
    scores = torch.rand(num_tokens, num_experts).double()
    scores = scores + draw(st.sampled_from([0.0, 3.0])) * torch.arange(num_experts)
    x = torch.randn(num_tokens, hidden_size).double().requires_grad_()
    weight, chosen = scores.topk(top_k)
    return experts, x, weight.requires_grad_(), chosen


def token_by_token(
    experts: Experts, x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """The same as `Experts`, one token and one choice after the other."""
    factor = experts.capacity_factor
    limit = float("inf") if factor is None else experts.capacity(chosen.numel())
    taken = [0] * experts.num_experts
    out = []
    for n in range(len(x)):
        total = torch.zeros_like(x[n])
        for k in range(chosen.shape[1]):
            e = int(chosen[n, k])
            taken[e] += 1
            if taken[e] <= limit:
                inner = F.silu(x[n] @ experts.gate[e]) * (x[n] @ experts.up[e])
                total = total + weight[n, k] * (inner @ experts.down[e])
        out.append(total)
    return torch.stack(out)


def with_gradients(case: Case, found: torch.Tensor) -> list[torch.Tensor]:
    """What was found, and the gradient of a number made of it by every input and parameter."""
    experts, x, weight, _ = case
    mark = torch.linspace(1, 2, found.numel(), dtype=torch.float64).view_as(found)
    inputs = [x, weight, *experts.parameters()]
    grads = torch.autograd.grad((found * mark).sum(), inputs, allow_unused=True)
    return [found] + [
        torch.zeros_like(i) if g is None else g for i, g in zip(inputs, grads, strict=True)
    ]


@given(cases(st.sampled_from([None, 0.3, 0.5, 1.0, 1.5])))
def test_experts_equal_a_loop_over_tokens(case: Case) -> None:
    experts, *inputs = case
    ours = with_gradients(case, experts(*inputs))
    naive = with_gradients(case, token_by_token(experts, *inputs))
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@given(cases(st.none()), st.integers(0, 99))
def test_the_order_of_tokens_and_the_company_they_keep_change_nothing(
    case: Case, seed: int
) -> None:
    experts, x, weight, chosen = case
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    whole = experts(x, weight, chosen)
    torch.testing.assert_close(
        experts(x[order], weight[order], chosen[order]), whole[order], rtol=1e-12, atol=1e-12
    )
    first = experts(x[:1], weight[:1], chosen[:1])
    torch.testing.assert_close(first, whole[:1], rtol=1e-12, atol=1e-12)


def test_a_token_beyond_the_capacity_gets_zero_and_gives_no_gradient() -> None:
    torch.manual_seed(0)
    experts = Experts(2, 3, 4, capacity_factor=1.0).double()
    x = torch.randn(4, 3).double().requires_grad_()
    chosen = torch.tensor([[0], [0], [0], [1]])  # two rows an expert: the third token is too many
    out = experts(x, torch.ones(4, 1).double(), chosen)
    assert experts.capacity(4) == 2
    assert (out[2] == 0).all() and (out[[0, 1, 3]] != 0).all()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad[2] == 0).all() and (grad[[0, 1, 3]] != 0).all()


def test_a_parallel_form_replaces_the_middle_step_alone() -> None:
    class Halved(Experts):
        """Each half of the experts computed apart, as two ranks would."""

        def compute(self, rows_RH: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
            parts, start = [], 0
            for half in (slice(0, 2), slice(2, 4)):
                one = Experts(2, 3, 5).double()
                for name, weight in self.named_parameters():
                    setattr(one, name, nn.Parameter(weight[half]))
                stop = start + int(counts_E[half].sum())
                parts.append(one.compute(rows_RH[start:stop], counts_E[half]))
                start = stop
            return torch.cat(parts)

    torch.manual_seed(0)
    whole = Experts(4, 3, 5).double()
    halved = Halved(4, 3, 5).double()
    halved.load_state_dict(whole.state_dict())
    x, (weight, chosen) = torch.randn(9, 3).double(), torch.rand(9, 4).double().topk(2)
    torch.testing.assert_close(halved(x, weight, chosen), whole(x, weight, chosen))


def test_experts_start_as_linear_maps_do_and_are_plain_parameters() -> None:
    experts = Experts(3, 64, 16)
    assert {n: tuple(p.shape) for n, p in experts.named_parameters()} == {
        "gate": (3, 64, 16),
        "up": (3, 64, 16),
        "down": (3, 16, 64),
    }
    assert 0.12 < experts.gate.abs().max() <= 1 / 8 and 0.24 < experts.down.abs().max() <= 1 / 4
    before = copy.deepcopy(experts.state_dict())
    torch.manual_seed(1)
    experts.reset_parameters()
    assert not torch.equal(before["gate"], experts.gate)


def test_a_model_that_is_only_traced_has_a_balanced_load() -> None:
    with FakeTensorMode():
        experts = Experts(4, 8, 6)
        out = experts(torch.randn(10, 8), torch.rand(10, 2), torch.zeros(10, 2, dtype=torch.long))
    assert out.shape == (10, 8)


def test_the_balance_loss_is_the_papers() -> None:
    torch.manual_seed(0)
    probability = torch.rand(12, 4).double().softmax(-1)
    chosen = probability.argmax(-1, keepdim=True)
    share = [(chosen == e).double().mean() for e in range(4)]
    expected = 4 * sum(f * probability[:, e].mean() for e, f in enumerate(share))
    torch.testing.assert_close(balance_loss(probability, chosen), expected)


def test_an_even_choice_costs_one_and_a_single_expert_costs_their_number() -> None:
    even = torch.full((8, 4), 0.25)
    assert balance_loss(even, torch.arange(16).view(8, 2) % 4) == pytest.approx(1.0)
    one = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(8, 4)
    assert balance_loss(one, torch.zeros(8, 1, dtype=torch.long)) == pytest.approx(4.0)


def test_for_each_sequence_it_is_additive_over_a_split_of_the_batch_and_over_all_tokens_not() -> (
    None
):
    torch.manual_seed(0)
    probability = torch.randn(4, 6, 5).double().softmax(-1)
    chosen = probability.topk(2).indices
    each = balance_loss(probability, chosen)
    alone = torch.stack([balance_loss(probability[i], chosen[i]) for i in range(4)])
    torch.testing.assert_close(each, alone)
    halves = [balance_loss(probability[i : i + 2], chosen[i : i + 2]).mean() for i in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, each.mean())
    whole = balance_loss(probability.flatten(0, 1), chosen.flatten(0, 1))
    assert abs(whole - each.mean()) > 1e-3


def test_the_bias_evens_a_skewed_router_and_leaves_the_scores_alone() -> None:
    torch.manual_seed(0)
    balance = BalanceBias(8, speed=0.01)
    skew = torch.linspace(0, 1, 8)
    loads = []
    for _ in range(200):
        scores = torch.rand(256, 8) + skew
        chosen = balance(scores, 2)
        loads.append(count(chosen, 8).float())
        balance.after_step()
    first, last = loads[0], torch.stack(loads[-20:]).mean(0)
    assert first.max() > 2 * first.mean() and first.min() < 0.1 * first.mean()
    assert last.max() < 1.15 * last.mean() and last.min() > 0.85 * last.mean()
    assert list(balance.state_dict()) == ["bias"] and not list(balance.parameters())


def test_the_bias_moves_once_a_step_by_the_load_of_all_micro_batches_and_ranks() -> None:
    scores = torch.rand(2, 3, 30, 4)  # two ranks, three micro batches
    serial = BalanceBias(4)
    serial(scores.flatten(0, 2), 2)
    ranks = [BalanceBias(4), BalanceBias(4)]
    for rank, own in zip(ranks, scores, strict=True):
        for micro_batch in own:
            rank(micro_batch, 2)
    total = sum(rank.load_E.double() for rank in ranks if rank.load_E is not None)
    for rank in ranks:
        rank.after_step(lambda load: total)
    serial.after_step()
    assert serial.bias.abs().max() == pytest.approx(0.001)
    assert all(torch.equal(rank.bias, serial.bias) for rank in ranks)


def test_the_bias_counts_in_training_alone_and_an_empty_step_leaves_it() -> None:
    balance = BalanceBias(4).eval()
    balance(torch.rand(30, 4), 2)
    assert balance.load_E is None
    balance.after_step()
    assert (balance.bias == 0).all()


def test_the_bias_changes_the_choice_but_not_the_gradient() -> None:
    balance = BalanceBias(3)
    balance.bias += torch.tensor([0.0, 0.0, 5.0])
    scores = torch.rand(6, 3, requires_grad=True)
    chosen = balance(scores, 1)
    assert (chosen == 2).all() and not chosen.requires_grad
