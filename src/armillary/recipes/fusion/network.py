"""An ensemble of small causal networks that say, row by row, how a shot will end.

All members live in one module and train in one go: their weights carry a member dimension, every
member starts from its own random numbers and is shown its own share of the shots. A member group
is recurrent (GRU or LSTM, the family of FRNN: Kates-Harbeck, Svyatkovskiy & Tang 2019, Nature
568, 526: state carried from row to row, truncated backpropagation over 128 rows), a temporal
convolution (Bai, Kolter & Koltun 2018, arXiv:1803.01271), a causal transformer with a distance
penalty (Press, Smith & Lewis 2022, arXiv:2108.12409), or `rows`, which sees one row at a time.
`rows` members read piecewise linear codes of each feature (Gorishniy, Rubachev & Babenko 2022,
arXiv:2203.05556): steps at quantiles, as the thresholds of a tree.

Letters of shapes: K members, B shots, T rows, F features, C codes, E embedding, H hidden units,
O outputs, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from armillary.recipes.fusion.forest import Forest

NEAR_ROWS = (10, 20, 40)
"""The shot ends within this many rows (50, 100, 200 ms): auxiliary targets."""
SOON_ROWS = (20, 40)
"""The shot disrupts within this many rows."""
NUM_OUTPUTS = 1 + len(NEAR_ROWS) + len(SOON_ROWS)
ENDS_HARD, ENDS_SOON = 0, 1 + len(NEAR_ROWS)

NUM_QUANTILES = 7
SUBSPACE_SHARE = 0.5
CLIP = 3.0
TRUNCATION_ROWS = 128
NUM_HEADS = 4
DILATIONS = (1, 2, 4, 8, 16)
FOREST = "forest"
KINDS = ("gru", "lstm", "tcn", "transformer", "rows")

SOON_WEIGHT, SOON_LIMIT = 0.2, 4.0
NETWORK_WEIGHT, FOREST_WEIGHT, FOREST_SOON_WEIGHT = 0.9, 0.4, 0.2
FOREST_SOON_LIMITS = (-5.0, 2.0)
"""Chosen on shots below 24000 (docs/log/2026-11-22-fusion.md)."""
EARLY_LOGIT, EARLY_ROWS = 2.0, 20.0
"""The score begins 2 logits low and rises by the same curve in every shot (time constant
100 ms): in the first rows nothing is known, and an alarm there is noise."""


class MemberLinear(nn.Module):
    """A linear layer of each member: (K, M, in) -> (K, M, out)."""

    def __init__(self, members: int, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, inputs, outputs) * gain / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x_KMI: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias, x_KMI, self.weight)


class Recurrent(nn.Module):
    """GRU or LSTM of each member; the state is carried, its gradient cut every 128 rows."""

    def __init__(self, kind: str, members: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.kind, self.hidden = kind, hidden
        gates = 3 if kind == "gru" else 4
        self.from_input = MemberLinear(members, inputs, gates * hidden)
        self.from_state = MemberLinear(members, hidden, gates * hidden, 0.7)
        if kind == "lstm":
            nn.init.constant_(self.from_input.bias[:, :, hidden : 2 * hidden], 1.5)

    def forward(self, x_KBTE: torch.Tensor) -> torch.Tensor:
        K, B, T, E = x_KBTE.shape
        gates = self.from_input(x_KBTE.reshape(K, B * T, E)).view(K, B, T, -1).unbind(2)
        state = cell = x_KBTE.new_zeros(K, B, self.hidden)
        states = []
        for t, gate in enumerate(gates):
            if t and t % TRUNCATION_ROWS == 0:
                state, cell = state.detach(), cell.detach()
            state, cell = self._step(gate, state, cell)
            states.append(state)
        return torch.stack(states, 2)

    def _step(
        self, gate: torch.Tensor, state: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        H, past = self.hidden, self.from_state(state)
        if self.kind == "gru":
            reset, keep = torch.sigmoid(gate[..., : 2 * H] + past[..., : 2 * H]).chunk(2, -1)
            new = torch.tanh(gate[..., 2 * H :] + reset * past[..., 2 * H :])
            return new + keep * (state - new), cell
        gate = gate + past
        enter, keep, leave = torch.sigmoid(gate[..., : 3 * H]).chunk(3, -1)
        cell = keep * cell + enter * torch.tanh(gate[..., 3 * H :])
        return leave * torch.tanh(cell), cell


class Convolutional(nn.Module):
    """Dilated causal convolutions of each member, 125 rows back."""

    def __init__(self, members: int, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.members, self.hidden, self.dropout = members, hidden, dropout
        sizes = [inputs, *[hidden] * (len(DILATIONS) - 1)]
        self.layers = nn.ModuleList(
            nn.Conv1d(members * size, members * hidden, 3, dilation=dilation, groups=members)
            for size, dilation in zip(sizes, DILATIONS, strict=True)
        )

    def forward(self, x_KBTE: torch.Tensor) -> torch.Tensor:
        K, B, T, E = x_KBTE.shape
        z = x_KBTE.permute(1, 0, 3, 2).reshape(B, K * E, T)
        for layer, dilation in zip(self.layers, DILATIONS, strict=True):
            past = F.pad(F.dropout(z, self.dropout, self.training), (2 * dilation, 0))
            y = torch.tanh(layer(past))
            z = y + z if z.shape == y.shape else y
        return z.view(B, K, self.hidden, T).permute(1, 0, 3, 2)


class Attentive(nn.Module):
    """Two causal attention blocks of each member; near rows weigh more, by learned slopes."""

    def __init__(self, members: int, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden, self.dropout = hidden, dropout
        self.enter = MemberLinear(members, inputs, hidden)
        self.slope = nn.Parameter(torch.tensor([0.02, 0.05, 0.15, 0.4]).view(NUM_HEADS, 1, 1))
        self.qkv = nn.ModuleList(MemberLinear(members, hidden, 3 * hidden) for _ in range(2))
        self.join = nn.ModuleList(MemberLinear(members, hidden, hidden, 0.5) for _ in range(2))
        self.widen = nn.ModuleList(MemberLinear(members, hidden, 2 * hidden) for _ in range(2))
        self.narrow = nn.ModuleList(
            MemberLinear(members, 2 * hidden, hidden, 0.5) for _ in range(2)
        )

    def forward(self, x_KBTE: torch.Tensor) -> torch.Tensor:
        K, B, T, E = x_KBTE.shape
        H, head = self.hidden, self.hidden // NUM_HEADS
        age = torch.arange(T, device=x_KBTE.device)
        age = (age[:, None] - age[None]).to(x_KBTE.dtype)
        bias = torch.where(age < 0, -torch.inf, -self.slope.abs() * age.clamp(min=0))
        z = self.enter(x_KBTE.reshape(K, B * T, E))
        for qkv, join, widen, narrow in zip(
            self.qkv, self.join, self.widen, self.narrow, strict=True
        ):
            parts = qkv(F.layer_norm(z, (H,))).view(K * B, T, 3, NUM_HEADS, head)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(head) + bias, -1)
            seen = (weights @ v).transpose(1, 2).reshape(K, B * T, H)
            z = z + F.dropout(join(seen), self.dropout, self.training)
            z = z + F.dropout(
                narrow(F.gelu(widen(F.layer_norm(z, (H,))))), self.dropout, self.training
            )
        return z.view(K, B, T, H)


class RowWise(nn.Module):
    """A hidden layer of each member over one row at a time."""

    def __init__(self, members: int, inputs: int, hidden: int) -> None:
        super().__init__()
        self.layer = MemberLinear(members, inputs, hidden)

    def forward(self, x_KBTE: torch.Tensor) -> torch.Tensor:
        K, B, T, E = x_KBTE.shape
        return torch.tanh(self.layer(x_KBTE.reshape(K, B * T, E))).view(K, B, T, -1)


class Group(nn.Module):
    """Members of one kind: logits (K, B, T, O) from coded rows (B, T, C).

    Each member sees a random half of the features, drawn once, with all of a feature's codes
    (Ho 1998, IEEE Trans. Pattern Anal. Mach. Intell. 20, 832): what drifts from one campaign to
    the next then misleads only some of them.
    """

    def __init__(
        self,
        kind: str,
        members: int,
        num_features: int,
        num_codes: int,
        hidden: int,
        dropout: float,
        noise: float,
    ) -> None:
        super().__init__()
        inputs = num_features * num_codes
        self.members, self.dropout, self.noise = members, dropout, noise
        seen = (torch.rand(members, 1, 1, num_features) < SUBSPACE_SHARE).float() / SUBSPACE_SHARE
        self.seen: torch.Tensor
        self.register_buffer("seen", seen.repeat_interleave(num_codes, -1))
        self.embed = MemberLinear(members, inputs, hidden)
        self.body = _body(kind, members, hidden, dropout)
        self.head = MemberLinear(members, hidden, NUM_OUTPUTS, 0.3)
        self.skip = MemberLinear(members, hidden, NUM_OUTPUTS, 0.3)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        B, T, C = x_BTC.shape
        K = self.members
        x = x_BTC.expand(K, B, T, C) * self.seen
        if self.training:
            channels = torch.rand(K, B, 1, C, device=x.device, dtype=x.dtype) > self.noise
            x = x * channels / (1 - self.noise) + self.noise * torch.randn_like(x)
        e = torch.tanh(self.embed(x.reshape(K, B * T, C)))
        e = F.dropout(e, self.dropout, self.training)
        z = self.body(e.view(K, B, T, -1)).reshape(K, B * T, -1)
        z = F.dropout(z, self.dropout, self.training)
        return (self.head(z) + self.skip(e)).view(K, B, T, NUM_OUTPUTS)


class Ensemble(nn.Module):
    """Logits (K, B, T, O) of all members from physics features (B, T, F); NaN is missing.

    With the kind "forest", trees stand beside the members (`second_opinion`).

    `quantiles` (F, Q) are those of the training rows: the middle is a feature's zero, the
    outermost but one are its unit, and all are the steps of its code. They are buffers, so a
    checkpoint carries them; a module built without any gives NaN until one is loaded.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        members: int,
        quantiles_FQ: NDArray[np.floating],
        hidden: int = 24,
        dropout: float = 0.3,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        num_features, num_quantiles = quantiles_FQ.shape
        self.quantiles: torch.Tensor
        self.register_buffer("quantiles", torch.tensor(quantiles_FQ, dtype=torch.float32))
        self.forests = nn.ModuleList(Forest() for _ in range(2 * (FOREST in kinds)))
        self.kinds = tuple(kind for kind in kinds if kind != FOREST)
        codes = [num_quantiles - 1 if kind == "rows" else 1 for kind in self.kinds]
        self.groups = nn.ModuleList(
            Group(kind, members, num_features, num_codes, hidden, dropout, noise)
            for kind, num_codes in zip(self.kinds, codes, strict=True)
        )

    def forward(self, features_BTF: torch.Tensor) -> torch.Tensor:
        scaled, coded = scale(features_BTF, self.quantiles), None
        found = []
        for kind, group in zip(self.kinds, self.groups, strict=True):
            if kind == "rows" and coded is None:
                coded = code(features_BTF, self.quantiles)
            found.append(group(coded if kind == "rows" else scaled))
        return torch.cat(found)

    def second_opinion(self, features_BTF: torch.Tensor) -> torch.Tensor | None:
        """Logits (B, T, 2) of the forests: the shot ends in a disruption, and does so within
        100 ms; None without forests."""
        found = [forest(features_BTF) for forest in self.forests]
        return torch.stack(found, -1) if found else None


def scale(features_BTF: torch.Tensor, quantiles_FQ: torch.Tensor) -> torch.Tensor:
    """Features (B, T, F) in robust units, clipped to 3 of them; 0 where missing."""
    middle = quantiles_FQ[:, quantiles_FQ.shape[1] // 2]
    spread = (quantiles_FQ[:, -2] - quantiles_FQ[:, 1]) / 2
    whole = (quantiles_FQ[:, -1] - quantiles_FQ[:, 0]).clamp(min=1e-3)
    unit = torch.where(spread > 1e-3 * whole, spread, whole)
    scaled = ((features_BTF - middle) / unit).clamp(-CLIP, CLIP)
    return torch.where(features_BTF.isnan(), 0.0, scaled)


def code(features_BTF: torch.Tensor, quantiles_FQ: torch.Tensor) -> torch.Tensor:
    """Codes (B, T, F (Q - 1)) from -1 to 1: how far a feature has gone through each step."""
    low, high = quantiles_FQ[:, :-1], quantiles_FQ[:, 1:]
    whole = quantiles_FQ[:, -1:] - quantiles_FQ[:, :1]
    width = torch.maximum(high - low, 0.02 * whole + 1e-6)
    steps = ((features_BTF[..., None] - low) / width).clamp(0, 1) * 2 - 1
    return torch.where(features_BTF[..., None].isnan(), 0.0, steps).flatten(-2)


def training_quantiles(features_TF: NDArray[np.floating]) -> NDArray[np.float64]:
    """Quantiles (F, Q) from 2 % to 98 % of rows (T, F), NaN left out."""
    levels = np.linspace(0.02, 0.98, NUM_QUANTILES)
    return np.nan_to_num(np.nanquantile(features_TF, levels, axis=0).T)


def score_logit(logits_KBTO: torch.Tensor, forests_BT2: torch.Tensor | None = None) -> torch.Tensor:
    """The alarm's logit (B, T): the members' mean belief that the shot ends in a disruption,
    nudged by the belief that it does so within 100 ms, joined with the forests' beliefs if there
    are forests, and held low in the first rows."""
    mean = logits_KBTO.mean(0)
    soon = mean[..., ENDS_SOON].clamp(-SOON_LIMIT, SOON_LIMIT)
    found = mean[..., ENDS_HARD] + SOON_WEIGHT * soon
    if forests_BT2 is not None:
        found = NETWORK_WEIGHT * found + forest_logit(forests_BT2)
    return held_low(found)


def forest_logit(forests_BT2: torch.Tensor) -> torch.Tensor:
    """What the forests add to the alarm's logit (B, T)."""
    ends, soon = forests_BT2.unbind(-1)
    return FOREST_WEIGHT * ends + FOREST_SOON_WEIGHT * soon.clamp(*FOREST_SOON_LIMITS)


def held_low(logit_BT: torch.Tensor) -> torch.Tensor:
    """The logit (B, T) lowered in the first rows, by the same curve in every shot."""
    row = torch.arange(logit_BT.shape[1], device=logit_BT.device)
    return logit_BT - EARLY_LOGIT * torch.exp(-row / EARLY_ROWS)


def _body(kind: str, members: int, hidden: int, dropout: float) -> nn.Module:
    if kind in ("gru", "lstm"):
        return Recurrent(kind, members, hidden, hidden)
    if kind == "tcn":
        return Convolutional(members, hidden, hidden, dropout)
    if kind == "transformer":
        return Attentive(members, hidden, hidden, dropout)
    return RowWise(members, hidden, hidden)
