"""Transformer-XL.

Source: Dai et al. 2019 (arXiv 1901.02860), section 3.3 and appendix B; adaptive input and softmax:
Grave et al. 2016 (arXiv 1609.04309), Baevski and Auli 2018 (arXiv 1809.10853). Sizes as NVIDIA
DeepLearningExamples, Transformer-XL README.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together

# Shapes: B samples, T tokens, M of memory, S both, H hidden, N heads, D of a head

CLUSTERS = ((20000, 1), (20000, 4), (160000, 16), (67735, 64))
"""Words of WikiText-103 by frequency, and the divisor of their width."""
GUESS_SHARES = (1.0, 1 / 12, 1 / 12, 1 / 48)
"""Of the tokens, about how many need the scores of each cluster. A word of the first costs only
the first; the share of rarer words changes the step by some percent."""


class Relative(nn.Module):
    """Attention to the segment and the memory by contents and by distance."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        inner = heads * 64
        self.packed = nn.Linear(size, 3 * inner, bias=False)
        self.distance = nn.Linear(size, inner, bias=False)
        self.out = nn.Linear(inner, size, bias=False)
        self.by_content = nn.Parameter(torch.empty(heads, 1, 64))
        self.by_place = nn.Parameter(torch.empty(heads, 1, 64))
        self.heads, self.dropout = heads, dropout

    def forward(
        self, x_BTH: torch.Tensor, memory_BMH: torch.Tensor, wave_SH: torch.Tensor
    ) -> torch.Tensor:
        length = x_BTH.shape[1]
        packed = self.packed(torch.cat([memory_BMH, x_BTH], 1)).unflatten(2, (3, self.heads, -1))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        q = q[:, :, -length:]
        place = self.distance(wave_SH).unflatten(1, (self.heads, -1)).transpose(0, 1)
        near = (q + self.by_content) @ k.transpose(2, 3)
        far = (q + self.by_place) @ place.transpose(1, 2)
        score = (near + self._shifted(far)) * q.shape[3] ** -0.5
        later = torch.ones(score.shape[2:], dtype=torch.bool, device=score.device)
        score = score.masked_fill(later.triu(1 + memory_BMH.shape[1]), float("-inf"))
        weight = F.dropout(score.softmax(3), self.dropout, self.training)
        return self.out((weight @ v).transpose(1, 2).flatten(2))

    @staticmethod
    def _shifted(score: torch.Tensor) -> torch.Tensor:
        """Row i moved by its place. Source: appendix B."""
        *outer, rows, columns = score.shape
        padded = F.pad(score, (1, 0)).reshape(*outer, columns + 1, rows)
        return padded[..., 1:, :].reshape(*outer, rows, columns)


class Layer(nn.Module):
    """Attention and a feed-forward, norms behind both."""

    def __init__(self, size: int, heads: int, inner: int, dropout: float, of_scores: float) -> None:
        super().__init__()
        self.attend = Relative(size, heads, of_scores)
        self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)
        self.attend_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.dropout = dropout

    def forward(self, x: torch.Tensor, memory: torch.Tensor, wave: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.attend(x, memory, wave), self.dropout, self.training)
        x = self.attend_norm(x + y)
        y = F.dropout(F.relu(self.up(x)), self.dropout, self.training)
        return self.norm(x + F.dropout(self.down(y), self.dropout, self.training))


class TransformerXl(nn.Module):
    """Layers over a segment and what the layer below made of the one before."""

    def __init__(self, layers: int, size: int, heads: int, inner: int, drops: tuple) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(n, size // by) for n, by in CLUSTERS)
        self.widen = nn.ModuleList(nn.Linear(size // by, size, bias=False) for _, by in CLUSTERS)
        self.bias = nn.ParameterList(torch.empty(n) for n, _ in CLUSTERS)
        self.clusters = nn.Linear(size, len(CLUSTERS) - 1)
        self.layers = nn.ModuleList(Layer(size, heads, inner, *drops) for _ in range(layers))

    def _embedded(self, token_BT: torch.Tensor) -> torch.Tensor:
        """Every cluster's words of all tokens: those of other clusters count as none."""
        x = self.widen[0](self.words[0](token_BT))
        for share, words, widen in list(zip(GUESS_SHARES, self.words, self.widen, strict=True))[1:]:
            count = int(share * token_BT.shape[1])
            x = x + F.pad(widen(words(token_BT[:, :count])), (0, 0, 0, token_BT.shape[1] - count))
        return x

    def forward(
        self, token_BT: torch.Tensor, memory: torch.Tensor, wave_SH: torch.Tensor
    ) -> torch.Tensor:
        x = self._embedded(token_BT)
        for i, layer in enumerate(self.layers):
            x = layer(x, memory[:, i], wave_SH)
        total = x.new_zeros(())
        for place, share in enumerate(GUESS_SHARES):
            part = x[:, : int(share * x.shape[1])]
            narrow = part @ self.widen[place].weight
            score = F.linear(narrow, self.words[place].weight, self.bias[place])
            if place == 0:
                score = torch.cat([score, self.clusters(part)], 2)
            likely = F.log_softmax(score, 2)
            total = total - likely.gather(2, token_BT[:, : part.shape[1], None]).sum()
        return total


def _reference(
    name: str, sizes: tuple, drops: tuple, length: int, count: float | None, figures: str
) -> Reference:
    layers, size, _, _ = sizes

    def wave(num_samples: int) -> torch.Tensor:
        return torch.empty(2 * length, size, device="meta")

    return Reference(
        name=name,
        build=lambda: TransformerXl(*sizes, drops),
        batch=together(numbers(length), images(layers, length, size), wave),
        source="Dai et al. 2019 (arXiv 1901.02860), section 3.3 and appendix B",
        input=f"WikiText-103 in segments of {length} tokens with a memory of as many: NVIDIA "
        "DeepLearningExamples, Transformer-XL README, table of the default configuration",
        num_parameters=count,
        figures=figures,
        tolerance=0.04,
        units={"tokens": float(length)},
    )


REFERENCES = (
    _reference(
        *("transformer-xl-large", (18, 1024, 16, 4096), (0.2, 0.2), 384, None),
        "247 M besides the tables of words: listed with the published runs (dle)",
    ),
    _reference("transformer-xl-base", (16, 512, 8, 2048), (0.1, 0.0), 192, None, ""),
)
