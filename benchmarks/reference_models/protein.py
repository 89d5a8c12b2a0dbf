"""AlphaFold 2, as OpenFold trains it.

Source: Jumper et al. 2021 (Nature 596, 583), supplementary methods 1.5 to 1.9, by the numbers of
their algorithms; sizes of initial training: supplementary table 4. One cycle is traced: the one to
three further forward passes of recycling, which keep no gradient, are left out, and so are the
frames of the structure module, whose points count here as numbers by the head.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, together

# Shapes: B proteins, S sequences of an alignment, R residues, T templates, H heads, C channels

RESIDUES, SEQUENCES, EXTRA, TEMPLATES = 256, 128, 1024, 4
MSA, PAIR, SINGLE, SMALL = 256, 128, 384, 64
TYPES, MSA_FEATURES, EXTRA_FEATURES, PLACES = 22, 49, 25, 65
ANGLES, PAIR_FEATURES, DISTANCES = 57, 88, 15


class Attention(nn.Module):
    """Attention over the last dim but one, with a gate and a bias. Source: algorithm 7."""

    def __init__(self, size: int, head_size: int, heads: int, of: int = 0, to: int = 0) -> None:
        super().__init__()
        inner = head_size * heads
        self.heads, self.head_size = heads, head_size
        self.query = nn.Linear(size, inner, bias=False)
        self.key = nn.Linear(of or size, inner, bias=False)
        self.value = nn.Linear(of or size, inner, bias=False)
        self.gate = nn.Linear(size, inner)
        self.out = nn.Linear(inner, to or size)

    def forward(
        self, x: torch.Tensor, of: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        source = x if of is None else of
        query, key, value = self.query(x), self.key(source), self.value(source)
        parts = [t.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for t in (query, key, value)]
        scores = parts[0] @ parts[1].transpose(-1, -2) * self.head_size**-0.5
        scores = scores if bias is None else scores + bias
        taken = (scores.softmax(-1) @ parts[2]).transpose(-2, -3).flatten(-2)
        return self.out(taken * torch.sigmoid(self.gate(x)))


class GlobalAttention(nn.Module):
    """One query a column, of the mean, and one key and value a head. Source: algorithm 19."""

    def __init__(self, size: int, head_size: int, heads: int) -> None:
        super().__init__()
        self.heads, inner = heads, head_size * heads
        self.norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, inner, bias=False)
        self.key, self.value = (nn.Linear(size, head_size, bias=False) for _ in range(2))
        self.gate, self.out = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x_BRSC: torch.Tensor) -> torch.Tensor:
        x = self.norm(x_BRSC)
        query = self.query(x.mean(-2)).unflatten(-1, (self.heads, -1))
        scores = (query @ self.key(x).transpose(-1, -2)).softmax(-1)
        taken = (scores @ self.value(x)).flatten(-2)[..., None, :]
        return self.out(taken * torch.sigmoid(self.gate(x)))


class Row(nn.Module):
    """Attention along the residues with a bias by pair. Source: algorithm 7."""

    def __init__(self, size: int, head_size: int, heads: int) -> None:
        super().__init__()
        self.norm, self.pair_norm = nn.LayerNorm(size), nn.LayerNorm(PAIR)
        self.bias = nn.Linear(PAIR, heads, bias=False)
        self.attention = Attention(size, head_size, heads)

    def forward(self, m_BSRC: torch.Tensor, z_BRRC: torch.Tensor) -> torch.Tensor:
        bias = self.bias(self.pair_norm(z_BRRC)).movedim(-1, 1)[:, None]
        return self.attention(self.norm(m_BSRC), bias=bias)


class Column(nn.Module):
    """Attention along the sequences. Source: algorithm 8."""

    def __init__(self, size: int, head_size: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(size), Attention(size, head_size, heads)

    def forward(self, m_BRSC: torch.Tensor) -> torch.Tensor:
        return self.attention(self.norm(m_BRSC))


class Outer(nn.Module):
    """The mean over the sequences of products of residues. Source: algorithm 10."""

    def __init__(self, size: int, inner: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.left, self.right = nn.Linear(size, inner), nn.Linear(size, inner)
        self.out = nn.Linear(inner * inner, PAIR)

    def forward(self, m_BSRC: torch.Tensor) -> torch.Tensor:
        m = self.norm(m_BSRC)
        left, right = (
            part(m).transpose(1, 2).flatten(2).unflatten(2, (m.shape[1], -1))
            for part in (self.left, self.right)
        )
        left = left.transpose(2, 3).flatten(1, 2)
        right = right.transpose(1, 2).flatten(2)
        both = (left @ right).unflatten(2, (m.shape[2], -1)).unflatten(1, (m.shape[2], -1))
        return self.out(both.transpose(2, 3).flatten(3) / m.shape[1])


class Multiplication(nn.Module):
    """Products of the edges of triangles. Source: algorithms 11 and 12."""

    def __init__(self, size: int, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.norm, self.out_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.edges = nn.ModuleList(nn.Linear(size, size) for _ in range(4))
        self.gate, self.out = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, z_BRRC: torch.Tensor) -> torch.Tensor:
        z = self.norm(z_BRRC)
        a, gate_a, b, gate_b = (edge(z) for edge in self.edges)
        a, b = (e * torch.sigmoid(g) for e, g in ((a, gate_a), (b, gate_b)))
        a, b = a.movedim(-1, 1), b.movedim(-1, 1)
        both = a @ b.transpose(-1, -2) if self.outgoing else a.transpose(-1, -2) @ b
        return self.out(self.out_norm(both.movedim(1, -1))) * torch.sigmoid(self.gate(z))


class Triangle(nn.Module):
    """Attention along the edges that begin, or end, at a residue. Source: algorithms 13 and 14."""

    def __init__(self, size: int, head_size: int, heads: int, starting: bool) -> None:
        super().__init__()
        self.starting = starting
        self.norm, self.bias = nn.LayerNorm(size), nn.Linear(size, heads, bias=False)
        self.attention = Attention(size, head_size, heads)

    def forward(self, z_BRRC: torch.Tensor) -> torch.Tensor:
        z = self.norm(z_BRRC if self.starting else z_BRRC.transpose(1, 2))
        found = self.attention(z, bias=self.bias(z).movedim(-1, 1)[:, None])
        return found if self.starting else found.transpose(1, 2)


class Transition(nn.Module):
    """Two maps with ReLU between. Source: algorithms 9 and 15."""

    def __init__(self, size: int, times: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up, self.down = nn.Linear(size, times * size), nn.Linear(times * size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(self.norm(x))))


class Pairs(nn.Module):
    """What a block does with the pairs. Source: algorithm 6, lines 6 to 10; algorithm 16."""

    def __init__(self, size: int, head_size: int, times: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [
                *(Multiplication(size, outgoing) for outgoing in (True, False)),
                *(Triangle(size, head_size, 4, starting) for starting in (True, False)),
                Transition(size, times),
            ]
        )

    def forward(self, z_BRRC: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            z_BRRC = z_BRRC + part(z_BRRC)
        return z_BRRC


class Block(nn.Module):
    """A block of the Evoformer, or of the stack before it. Source: algorithms 6 and 18."""

    def __init__(self, size: int, head_size: int, is_extra: bool = False) -> None:
        super().__init__()
        self.row = Row(size, head_size, 8)
        column = GlobalAttention if is_extra else Column
        self.column = column(size, head_size, 8)
        self.transition, self.outer = Transition(size, 4), Outer(size)
        self.pairs = Pairs(PAIR, 32, 4)

    def forward(
        self, m_BSRC: torch.Tensor, z_BRRC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        m = m_BSRC + self.row(m_BSRC, z_BRRC)
        m = m + self.column(m.transpose(1, 2)).transpose(1, 2)
        m = m + self.transition(m)
        return m, self.pairs(z_BRRC + self.outer(m))


class Templates(nn.Module):
    """Pairs of known structures, taken by attention. Source: algorithms 16 and 17."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(PAIR_FEATURES, SMALL)
        self.blocks = nn.ModuleList(Pairs(SMALL, 16, 2) for _ in range(2))
        self.norm, self.taken = nn.LayerNorm(SMALL), Attention(PAIR, 16, 4, of=SMALL)
        self.taken.gate = nn.Identity()  # the pointwise attention has none

    def forward(self, z_BRRC: torch.Tensor, template_BTRRC: torch.Tensor) -> torch.Tensor:
        t = self.into(template_BTRRC).flatten(0, 1)
        for block in self.blocks:
            t = block(t)
        t = self.norm(t).unflatten(0, template_BTRRC.shape[:2]).movedim(1, 3)
        query = self.taken.query(z_BRRC)[..., None, :].unflatten(-1, (4, -1)).transpose(-2, -3)
        key, value = (
            part(t).unflatten(-1, (4, -1)).transpose(-2, -3)
            for part in (self.taken.key, self.taken.value)
        )
        scores = (query @ key.transpose(-1, -2) / 4).softmax(-1)
        return self.taken.out((scores @ value).transpose(-2, -3).flatten(-3))


class Points(nn.Module):
    """Invariant point attention. Source: algorithm 22: 12 heads of 16, 4 and 8 points."""

    HEADS, SIZE, QUERIES, VALUES = 12, 16, 4, 8

    def __init__(self) -> None:
        super().__init__()
        inner = self.HEADS * self.SIZE
        self.query, self.both = nn.Linear(SINGLE, inner), nn.Linear(SINGLE, 2 * inner)
        points = 3 * self.HEADS
        self.query_points = nn.Linear(SINGLE, points * self.QUERIES)
        self.both_points = nn.Linear(SINGLE, points * (self.QUERIES + self.VALUES))
        self.bias, self.weights = nn.Linear(PAIR, self.HEADS), nn.Parameter(torch.ones(self.HEADS))
        self.out = nn.Linear(self.HEADS * (PAIR + self.SIZE + 4 * self.VALUES), SINGLE)

    def forward(self, s_BRC: torch.Tensor, z_BRRC: torch.Tensor) -> torch.Tensor:
        def by_head(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.HEADS, -1)).transpose(1, 2)

        query, (key, value) = by_head(self.query(s_BRC)), by_head(self.both(s_BRC)).chunk(2, -1)
        scores = query @ key.transpose(-1, -2) + self.bias(z_BRRC).movedim(-1, 1)
        near, both = by_head(self.query_points(s_BRC)), by_head(self.both_points(s_BRC))
        others, moved = both.split([3 * self.QUERIES, 3 * self.VALUES], -1)
        apart = (near[:, :, :, None] - others[:, :, None]).square().sum(-1)
        scores = (scores - apart * F.softplus(self.weights)[:, None, None]).softmax(-1)
        points = scores @ moved
        sizes = points.unflatten(-1, (-1, 3)).square().sum(-1).sqrt()
        pairs = (scores.transpose(1, 2) @ z_BRRC).transpose(1, 2)
        taken = torch.cat([scores @ value, points, sizes, pairs], -1)
        return self.out(taken.transpose(1, 2).flatten(2))


class Structure(nn.Module):
    """Eight times the same layer, which moves the residues. Source: algorithms 20 and 23."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.pair_norm = nn.LayerNorm(SINGLE), nn.LayerNorm(PAIR)
        self.into, self.points = nn.Linear(SINGLE, SINGLE), Points()
        self.maps = nn.ModuleList(nn.Linear(SINGLE, SINGLE) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(SINGLE) for _ in range(2))
        self.frame, self.first = nn.Linear(SINGLE, 6), nn.Linear(SINGLE, 128)
        self.now, self.angles = nn.Linear(SINGLE, 128), nn.Linear(128, 14)
        self.residual = nn.ModuleList(nn.Linear(128, 128) for _ in range(4))

    def forward(self, s_BRC: torch.Tensor, z_BRRC: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, z = self.norm(s_BRC), self.pair_norm(z_BRRC)
        s, found = self.into(first), []
        for _ in range(8):
            s = self.norms[0](s + self.points(s, z))
            inner = self.maps[1](F.relu(self.maps[0](s)))
            s = self.norms[1](s + self.maps[2](F.relu(inner)))
            a = self.first(F.relu(first)) + self.now(F.relu(s))
            for one, two in (self.residual[:2], self.residual[2:]):
                a = a + two(F.relu(one(F.relu(a))))
            found += [self.frame(s).square().mean(), self.angles(F.relu(a)).square().mean()]
        return s, torch.stack(found).sum()


class AlphaFold(nn.Module):
    """Features of a protein to its structure. Source: algorithm 2."""

    def __init__(self) -> None:
        super().__init__()
        self.pair_left, self.pair_right = nn.Linear(TYPES, PAIR), nn.Linear(TYPES, PAIR)
        self.of_target, self.of_msa = nn.Linear(TYPES, MSA), nn.Linear(MSA_FEATURES, MSA)
        self.place, self.before = nn.Linear(PLACES, PAIR), nn.Linear(DISTANCES, PAIR)
        self.norms = nn.ModuleList([nn.LayerNorm(MSA), nn.LayerNorm(PAIR)])
        self.templates = Templates()
        self.angles = nn.Sequential(nn.Linear(ANGLES, MSA), nn.ReLU(), nn.Linear(MSA, MSA))
        self.of_extra = nn.Linear(EXTRA_FEATURES, SMALL)
        self.extra = nn.ModuleList(Block(SMALL, 8, is_extra=True) for _ in range(4))
        self.blocks = nn.ModuleList(Block(MSA, 32) for _ in range(48))
        self.single, self.structure = nn.Linear(MSA, SINGLE), Structure()
        self.distogram, self.masked = nn.Linear(PAIR, 64), nn.Linear(MSA, 23)
        self.resolved, self.confidence = (
            nn.Linear(SINGLE, 37),
            nn.Sequential(
                *(nn.LayerNorm(SINGLE), nn.Linear(SINGLE, 128), nn.ReLU()),
                *(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 50)),
            ),
        )

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        target_BRC, msa_BSRC, extra_BSRC, place_BRRC, far_BRRC, template_BTRRC, angle_BTRC = given
        z = self.pair_left(target_BRC)[:, :, None] + self.pair_right(target_BRC)[:, None]
        z = z + self.place(place_BRRC) + self.norms[1](self.before(far_BRRC))
        z = z + self.templates(z, template_BTRRC)
        m = self.norms[0](self.of_msa(msa_BSRC) + self.of_target(target_BRC)[:, None])
        m, extra = torch.cat([m, self.angles(angle_BTRC)], 1), self.of_extra(extra_BSRC)
        for block in self.extra:
            extra, z = block(extra, z)
        for block in self.blocks:
            m, z = block(m, z)
        s, loss = self.structure(self.single(m[:, 0]), z)
        heads = [self.masked(m[:, : SEQUENCES - TEMPLATES]), self.resolved(s), self.confidence(s)]
        heads.append(self.distogram(z + z.transpose(1, 2)))
        return loss + sum(-head.log_softmax(-1).mean() for head in heads)


REFERENCES = (
    Reference(
        name="openfold",
        build=AlphaFold,
        batch=together(
            *(images(RESIDUES, TYPES), images(SEQUENCES - TEMPLATES, RESIDUES, MSA_FEATURES)),
            *(images(EXTRA, RESIDUES, EXTRA_FEATURES), images(RESIDUES, RESIDUES, PLACES)),
            images(RESIDUES, RESIDUES, DISTANCES),
            images(TEMPLATES, RESIDUES, RESIDUES, PAIR_FEATURES),
            images(TEMPLATES, RESIDUES, ANGLES),
        ),
        source="Jumper et al. 2021 (Nature 596, 583), supplementary algorithms 2 to 23",
        input="256 residues, 128 sequences with 4 templates among them, 1,024 extra sequences, one "
        "cycle: supplementary table 4, initial training",
        num_parameters=93e6,
        figures="listed with the published runs (MLPerf HPC v3.0)",
        tolerance=0.01,
    ),
)
