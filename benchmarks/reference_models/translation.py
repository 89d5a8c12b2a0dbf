"""Translation and sequence models: GNMT, the big Transformer, BART and Transformer-XL.

Sources: GNMT: Wu et al. 2016 (arXiv 1609.08144), section 3, with NVIDIA's GNMT v2 changes (its
README): attention by the first decoder layer, normalised Bahdanau scores. Transformer: Vaswani et
al. 2017 (arXiv 1706.03762), Table 3. BART: Lewis et al. 2019 (arXiv 1910.13461), section 2.
Transformer-XL: Dai et al. 2019 (arXiv 1901.02860), section 3.3.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, numbers, together

# Shapes: B samples, S source tokens, T target tokens, H hidden, N heads, D of a head, V words


class Gnmt(nn.Module):
    """Four LSTM layers that read, the first in both directions, and four that write."""

    def __init__(self, words: int = 32320, size: int = 1024) -> None:
        super().__init__()
        self.words = nn.Embedding(words, size)
        self.both = nn.LSTM(size, size, batch_first=True, bidirectional=True)
        self.read = nn.ModuleList(
            nn.LSTM(2 * size if i == 0 else size, size, batch_first=True) for i in range(3)
        )
        self.write = nn.ModuleList(
            nn.LSTM(size if i == 0 else 2 * size, size, batch_first=True) for i in range(4)
        )
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, 1, bias=False)
        self.bias = nn.Parameter(torch.empty(size))
        self.head = nn.Linear(size, words)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.2, self.training)

    def _encode(self, source_BS: torch.Tensor) -> torch.Tensor:
        x = self.both(self._drop(self.words(source_BS)))[0]
        x = self.read[0](self._drop(x))[0]
        for layer in self.read[1:]:
            x = layer(self._drop(x))[0] + x
        return x

    def forward(
        self, source_BS: torch.Tensor, target_BT: torch.Tensor, next_BT: torch.Tensor
    ) -> torch.Tensor:
        memory_BSH = self._encode(source_BS)
        x = self.write[0](self._drop(self.words(target_BT)))[0]
        sums = self.query(x)[:, :, None] + self.key(memory_BSH)[:, None] + self.bias
        weight_BTS = self.score(torch.tanh(sums)).squeeze(3).softmax(2)
        context = torch.bmm(weight_BTS, memory_BSH)
        for i, layer in enumerate(self.write[1:]):
            y = layer(self._drop(torch.cat([x, context], 2)))[0]
            x = y + x if i else y
        likely = F.log_softmax(self.head(x), 2)
        right = likely.gather(2, next_BT[..., None])
        return -(0.9 * right.sum() + 0.1 * likely.mean(2).sum())


class Attend(nn.Module):
    """Attention of `heads` heads, its scores written out as programs of that time did."""

    def __init__(self, size: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(size, size), nn.Linear(size, size)
        self.value, self.out = nn.Linear(size, size), nn.Linear(size, size)
        self.heads, self.dropout, self.causal = heads, dropout, causal

    def forward(self, x_BTH: torch.Tensor, memory_BSH: torch.Tensor) -> torch.Tensor:
        q = self.query(x_BTH).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k = self.key(memory_BSH).unflatten(2, (self.heads, -1)).transpose(1, 2)
        v = self.value(memory_BSH).unflatten(2, (self.heads, -1)).transpose(1, 2)
        score = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        if self.causal:
            later = torch.ones(score.shape[2:], dtype=torch.bool, device=score.device).triu(1)
            score = score.masked_fill(later, float("-inf"))
        weight = F.dropout(score.softmax(3), self.dropout, self.training)
        return self.out((weight @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer of an encoder, or with attention to a memory one of a decoder; norms behind."""

    def __init__(self, size: int, heads: int, inner: int, kind: str, dropout: float) -> None:
        super().__init__()
        name, rate = kind.partition(":")[::2]
        self.own = Attend(size, heads, dropout, causal=name == "decoder")
        self.cross = Attend(size, heads, dropout, causal=False) if name == "decoder" else None
        self.up, self.down = nn.Linear(size, inner), nn.Linear(inner, size)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3 if self.cross else 2))
        self.gelu, self.dropout = rate == "gelu", dropout

    def _added(self, place: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.norms[place](x + F.dropout(y, self.dropout, self.training))

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        x = self._added(0, x, self.own(x, x))
        if self.cross is not None and memory is not None:
            x = self._added(1, x, self.cross(x, memory))
        y = F.gelu(self.up(x)) if self.gelu else F.relu(self.up(x))
        return self._added(-1, x, self.down(F.dropout(y, self.dropout, self.training)))


class EncoderDecoder(nn.Module):
    """So many layers that read and as many that write, with one table of words."""

    def __init__(self, words: int, layers: int, positions: int, gelu: bool) -> None:
        super().__init__()
        size, kind = 1024, ":gelu" if gelu else ""
        self.words = nn.Embedding(words, size)
        self.positions = nn.Embedding(positions, size) if positions else None
        sizes = (size, 16, 4096)
        self.reading = nn.ModuleList(Layer(*sizes, f"encoder{kind}", 0.1) for _ in range(layers))
        self.writing = nn.ModuleList(Layer(*sizes, f"decoder{kind}", 0.1) for _ in range(layers))

    def _embedded(self, token: torch.Tensor) -> torch.Tensor:
        x = self.words(token)
        if self.positions is not None:
            x = x + self.positions.weight[: token.shape[1]]
        return F.dropout(x, 0.1, self.training)

    def forward(
        self, source_BS: torch.Tensor, target_BT: torch.Tensor, next_BT: torch.Tensor
    ) -> torch.Tensor:
        memory, x = self._embedded(source_BS), self._embedded(target_BT)
        for layer in self.reading:
            memory = layer(memory)
        for layer in self.writing:
            x = layer(x, memory)
        score = F.linear(x, self.words.weight)
        return F.cross_entropy(score.flatten(0, 1), next_BT.flatten(), label_smoothing=0.1)


GUESS_PADDED, GUESS_TOKENS = 28, 50.6
"""Tokens a side to which a sentence of WMT is padded in its bucket, and those of both sides."""

REFERENCES = (
    Reference(
        name="gnmt",
        varies=True,
        build=Gnmt,
        batch=together(numbers(GUESS_PADDED), numbers(GUESS_PADDED), numbers(GUESS_PADDED)),
        source="Wu et al. 2016 (arXiv 1609.08144), section 3, as NVIDIA DeepLearningExamples, "
        "GNMT README (default configuration) changes it; 32,320 words",
        input="WMT16 English to German up to 50 tokens: an epoch has 177 M tokens of both sides "
        "(the README's rate times its time to train); how many pairs is not printed: taken as "
        "50.6 tokens a pair, padded in buckets to 28 a side",
        num_parameters=160e6,
        figures="0.16 G: listed with the published runs (dle)",
        tolerance=0.02,
        units={"tokens": GUESS_TOKENS},
    ),
    Reference(
        name="transformer-big",
        build=lambda: EncoderDecoder(33712, 6, 0, False),
        batch=together(numbers(GUESS_PADDED), numbers(GUESS_PADDED), numbers(GUESS_PADDED)),
        source="Vaswani et al. 2017 (arXiv 1706.03762), Table 3, big",
        input="WMT14 English to German in batches of so many padded target tokens: NVIDIA "
        "DeepLearningExamples, Transformer README; a sample is a pair of 28 tokens a side",
        num_parameters=213e6,
        figures="213 M: Vaswani et al. 2017, Table 3",
        tolerance=0.02,
        units={"tokens": float(GUESS_PADDED)},
    ),
    *(
        Reference(
            name="bart-large" if length == 128 else f"bart-large-{length}",
            build=lambda: EncoderDecoder(50265, 12, 1026, True),
            batch=together(numbers(length), numbers(length), numbers(length)),
            source="Lewis et al. 2019 (arXiv 1910.13461), section 2.1; 50,265 words",
            input=f"{length} tokens a side, phase {phase} of NVIDIA DeepLearningExamples, BART "
            "README",
            num_parameters=406e6,
            figures="406 M: listed with the published runs (dle)",
        )
        for phase, length in ((1, 128), (2, 512))
    ),
)
