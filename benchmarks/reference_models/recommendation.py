"""Recommendation: DLRM, and DLRM-DCNv2.

Sources: DLRM: Naumov et al. 2019 (arXiv 1906.00091), Figure 1; DCNv2: Wang et al. 2020
(arXiv 2008.13535), section 3.2, low-rank crosses.

Tables of words are held once across all ranks by the programs whose runs are published, and the
looked-up rows are exchanged; a rank neither holds nor reduces them all. So each table has a few
rows here, whose number changes no step's time: what is looked up is counted, what is held is not.
Rows are looked up and added as two ops: what that moves, three times the rows, stands for one read
in the forward pass and the update of weights in place behind it, which programs fuse.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together

# Shapes: B samples, N dense numbers, I looked-up rows, D of a row, P places in a row

ROWS, SIZE, NUMBERS = 8, 128, 13
HOT = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Rows that each of the 26 tables gives: MLPerf Training, recommendation_v2 README."""


def layers(*sizes: int) -> nn.Sequential:
    """Linear maps with ReLU, without one behind the last."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Tables(nn.Module):
    """26 tables as one; each gives the sum of the rows that a sample asks for."""

    def __init__(self, hot: tuple[int, ...]) -> None:
        super().__init__()
        self.rows = nn.Embedding(ROWS, SIZE)
        self.hot = hot

    def forward(self, index_BI: torch.Tensor) -> torch.Tensor:
        rows_BID = self.rows(index_BI)
        if len(self.hot) == rows_BID.shape[1]:
            return rows_BID
        return torch.stack([part.sum(1) for part in rows_BID.split(self.hot, 1)], 1)


class Dlrm(nn.Module):
    """Products of all pairs of features between a smaller and a larger stack of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables((1,) * 26)
        self.bottom = layers(NUMBERS, 512, 256, SIZE)
        self.top = layers(480, 1024, 1024, 512, 256, 1)

    def forward(
        self, x_BN: torch.Tensor, index_BI: torch.Tensor, place_P: torch.Tensor, y_B: torch.Tensor
    ) -> torch.Tensor:
        dense = F.relu(self.bottom(x_BN))
        both = torch.cat([dense[:, None], self.tables(index_BI)], 1)
        pairs = torch.bmm(both, both.transpose(1, 2)).flatten(1)
        given = torch.cat([dense, pairs.index_select(1, place_P), dense[:, :1]], 1)
        return F.binary_cross_entropy_with_logits(self.top(given).squeeze(1), y_B)


class Cross(nn.Module):
    """x0 (V U x + b) + x. Source: Wang et al. 2020, equation 2 with a low rank."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, size)

    def forward(self, first: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return first * self.up(self.down(x)) + x


class DlrmDcn(nn.Module):
    """Three crosses between the stacks of maps, and many rows a table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables(HOT)
        self.bottom = layers(NUMBERS, 512, 256, SIZE)
        size = 27 * SIZE
        self.crosses = nn.ModuleList(Cross(size, 512) for _ in range(3))
        self.top = layers(size, 1024, 1024, 512, 256, 1)

    def forward(
        self, x_BN: torch.Tensor, index_BI: torch.Tensor, y_B: torch.Tensor
    ) -> torch.Tensor:
        dense = F.relu(self.bottom(x_BN))
        first = torch.cat([dense[:, None], self.tables(index_BI)], 1).flatten(1)
        x = first
        for cross in self.crosses:
            x = cross(first, x)
        return F.binary_cross_entropy_with_logits(self.top(x).squeeze(1), y_B)


def _pairs(num_samples: int) -> torch.Tensor:
    return torch.empty(351, dtype=torch.int64, device="meta")


REFERENCES = (
    Reference(
        name="dlrm",
        build=Dlrm,
        batch=together(images(NUMBERS), numbers(26), _pairs, images()),
        source="Naumov et al. 2019 (arXiv 1906.00091); rows of 128, maps 512-256-128 and "
        "1024-1024-512-256-1 as NVIDIA DeepLearningExamples, DLRM",
        input="13 numbers and 26 rows of Criteo Terabyte: NVIDIA DeepLearningExamples, DLRM README",
    ),
    Reference(
        name="dlrm-dcnv2",
        build=DlrmDcn,
        batch=together(images(NUMBERS), numbers(sum(HOT)), images()),
        source="Wang et al. 2020 (arXiv 2008.13535); rows of 128, three crosses of rank 512, maps "
        "as MLPerf Training's recommendation_v2 README states",
        input="13 numbers and 214 rows of 26 tables of Criteo 1TB multi-hot: the same README",
    ),
)
