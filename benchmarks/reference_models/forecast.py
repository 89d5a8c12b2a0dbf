"""The Temporal Fusion Transformer.

Source: Lim et al. 2019 (arXiv 1912.09363), section 4 and Figure 2, sizes as NVIDIA
DeepLearningExamples, TFT README: 128 hidden, 4 heads, 168 hours behind and 24 ahead.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together

# Shapes: B samples, T hours, H hidden, N variables, Q quantiles

SIZE, HEADS, PAST, AHEAD = 128, 4, 168, 24


class Gate(nn.Module):
    """A gated linear map added to what went around it, and a norm. Source: equations 3 and 5."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(size, 2 * size), nn.LayerNorm(size)

    def forward(self, x: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        return self.norm(F.glu(self.map(x), -1) + around)


class Grn(nn.Module):
    """A gated residual network. Source: equations 2 to 4."""

    def __init__(self, inputs: int, outputs: int = SIZE, *, context: bool = False) -> None:
        super().__init__()
        self.enter, self.inner = nn.Linear(inputs, SIZE), nn.Linear(SIZE, outputs)
        inner = SIZE if inputs == outputs else outputs
        self.inner = nn.Linear(SIZE, inner)
        self.context = nn.Linear(SIZE, SIZE, bias=False) if context else None
        self.around = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()
        self.gate = Gate(outputs)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        y = self.enter(x)
        if self.context is not None and context is not None:
            y = y + self.context(context)
        y = F.dropout(self.inner(F.elu(y)), 0.1, self.training)
        return self.gate(y, self.around(x))


class Select(nn.Module):
    """Weights of the variables, and their sum so weighted. Source: equations 6 to 8."""

    def __init__(self, count: int, context: bool) -> None:
        super().__init__()
        self.joint = Grn(count * SIZE, count, context=context)
        self.each = nn.ModuleList(Grn(SIZE) for _ in range(count))

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        weight = self.joint(x.flatten(-2), context).softmax(-1)
        parts = torch.stack([grn(x[..., i, :]) for i, grn in enumerate(self.each)], -1)
        return (parts @ weight[..., None]).squeeze(-1)


class Attend(nn.Module):
    """Attention whose heads share their values. Source: equations 13 to 16."""

    def __init__(self) -> None:
        super().__init__()
        self.size = SIZE // HEADS
        self.packed = nn.Linear(SIZE, (2 * HEADS + 1) * self.size, bias=False)
        self.out = nn.Linear(self.size, SIZE, bias=False)

    def forward(self, x_BTH: torch.Tensor) -> torch.Tensor:
        q, k, v = self.packed(x_BTH).split([SIZE, SIZE, self.size], 2)
        q, k = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (q, k))
        score = q @ k.transpose(2, 3) * self.size**-0.5
        later = torch.ones(score.shape[2:], dtype=torch.bool, device=score.device).triu(1)
        weight = score.masked_fill(later, float("-inf")).softmax(3)
        return self.out((weight @ v[:, None]).mean(1))


class Forecast(nn.Module):
    """Variables chosen, an LSTM over both spans, attention over all, and three quantiles."""

    def __init__(self, series: int, known: int = 3) -> None:
        super().__init__()
        self.series = nn.Embedding(series, SIZE)
        self.scale = nn.Parameter(torch.empty(known + 1, SIZE))
        self.shift = nn.Parameter(torch.empty(known + 1, SIZE))
        self.contexts = nn.ModuleList(Grn(SIZE) for _ in range(4))
        self.static = Select(1, context=False)
        self.past, self.ahead = Select(known + 1, context=True), Select(known, context=True)
        self.read = nn.LSTM(SIZE, SIZE, batch_first=True)
        self.write = nn.LSTM(SIZE, SIZE, batch_first=True)
        self.gates = nn.ModuleList(Gate(SIZE) for _ in range(3))
        self.enrich, self.attend, self.feed = Grn(SIZE, context=True), Attend(), Grn(SIZE)
        self.head = nn.Linear(SIZE, 3)

    def forward(
        self, series_B: torch.Tensor, x_BTN: torch.Tensor, target_BT: torch.Tensor
    ) -> torch.Tensor:
        static = self.static(self.series(series_B)[:, None])
        choose, enrich, hidden, cell = (grn(static) for grn in self.contexts)
        x = x_BTN[..., None] * self.scale + self.shift
        past = self.past(x[:, :PAST], choose[:, None])
        ahead = self.ahead(x[:, PAST:, 1:], choose[:, None])
        read, state = self.read(past, (hidden[None], cell[None]))
        both = torch.cat([read, self.write(ahead, state)[0]], 1)
        kept = self.gates[0](both, torch.cat([past, ahead], 1))
        rich = self.enrich(kept, enrich[:, None])
        x = F.dropout(self.attend(rich), 0.1, self.training)[:, PAST:]
        x = self.feed(self.gates[1](x, rich[:, PAST:]))
        off = target_BT[..., None] - self.head(self.gates[2](x, kept[:, PAST:]))
        share = torch.tensor([0.1, 0.5, 0.9], device=off.device)
        return torch.maximum(share * off, (share - 1) * off).mean()


README = "NVIDIA DeepLearningExamples, TFT README and configuration: 168 hours behind, 24 ahead"

REFERENCES = tuple(
    Reference(
        name=f"tft-{name}",
        build=lambda series=series: Forecast(series),
        batch=together(numbers(), images(PAST + AHEAD, 4), images(AHEAD)),
        source="Lim et al. 2019 (arXiv 1912.09363), section 4; 128 hidden, 4 heads",
        input=f"{README}; {series} series, three known variables and the target",
        units={"items": 1.0},
    )
    for name, series in (("traffic", 963), ("electricity", 369))
)
