"""The SE(3)-Transformer on molecules.

Sources: Fuchs et al. 2020 (arXiv 2006.10503), sections 3 and 4; tensor field networks: Thomas et
al. 2018 (arXiv 1802.08219). Sizes as NVIDIA DeepLearningExamples, SE(3)-Transformer README: 7
layers, degrees 0 to 3, 32 channels, 8 heads, channels halved in attention. As there, a convolution
from all degrees to all degrees is one product by the basis and one by the radial weights, and keys
and values are one convolution. The basis of spherical harmonics comes with the batch.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Batch, Reference

# Shapes: B molecules, N atoms, E bonds in both directions, C channels, D orders of all degrees

ATOMS, BONDS = 18, 37
DEGREES = (0, 1, 2, 3)
ORDERS = sum(2 * degree + 1 for degree in DEGREES)
CHANNELS, HEADS = 32, 8


def paths(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> int:
    """How many kernels there are from degrees to degrees: 2 min(k, l) + 1 a pair."""
    return sum(2 * min(a, b) + 1 for a in inputs for b in outputs)


class Convolution(nn.Module):
    """Messages along bonds: radial weights times the basis times what the sources have."""

    def __init__(
        self, inputs: int, outputs: int, of: tuple[int, ...], to: tuple[int, ...], bond: int = 5
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.paths = inputs, outputs, paths(of, to)
        self.of = sum(2 * degree + 1 for degree in of)
        self.to = sum(2 * degree + 1 for degree in to)
        self.radial = nn.Sequential(
            *(nn.Linear(bond, 32), nn.LayerNorm(32), nn.ReLU()),
            *(nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU()),
            nn.Linear(32, self.paths * inputs * outputs, bias=False),
        )

    def forward(self, x_ECD: torch.Tensor, bond: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        weight = self.radial(bond).view(-1, self.outputs, self.inputs * self.paths)
        part = basis[:, : self.of, : self.paths * self.to]
        return weight @ (x_ECD @ part).view(-1, self.inputs * self.paths, self.to)


class ByDegree(nn.Module):
    """A linear map of the channels of every degree."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        shape = (outputs, inputs)
        self.weights = nn.ParameterList(torch.empty(shape) for _ in DEGREES)

    def forward(self, x_NCD: torch.Tensor) -> torch.Tensor:
        parts = x_NCD.split([2 * degree + 1 for degree in DEGREES], 2)
        return torch.cat([w @ part for w, part in zip(self.weights, parts, strict=True)], 2)


class Norm(nn.Module):
    """The length of every feature normed over the channels, and the feature scaled to it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(len(DEGREES), CHANNELS * len(DEGREES))

    def forward(self, x_NCD: torch.Tensor) -> torch.Tensor:
        parts = x_NCD.split([2 * degree + 1 for degree in DEGREES], 2)
        lengths = [part.norm(dim=2, keepdim=True).clamp(min=1e-6) for part in parts]
        scales = F.relu(self.norm(torch.cat(lengths, 1).squeeze(2))).chunk(len(DEGREES), 1)
        found = zip(parts, lengths, scales, strict=True)
        return torch.cat([part / length * scale[..., None] for part, length, scale in found], 2)


class Attend(nn.Module):
    """Attention of atoms to those that they are bound to."""

    def __init__(self, inputs: int = CHANNELS, of: tuple[int, ...] = DEGREES) -> None:
        super().__init__()
        self.kept = CHANNELS // 2
        self.both = Convolution(inputs, 2 * self.kept, of, DEGREES)
        first = of != DEGREES
        self.query = nn.Linear(inputs, self.kept) if first else ByDegree(CHANNELS, self.kept)
        self.out = ByDegree(self.kept + (0 if first else CHANNELS), CHANNELS)
        self.is_first = first

    def forward(
        self,
        x: torch.Tensor,
        ends: tuple[torch.Tensor, torch.Tensor],
        bond: torch.Tensor,
        basis: torch.Tensor,
    ) -> torch.Tensor:
        source, target = ends
        key, value = self.both(x[source], bond, basis).chunk(2, 1)
        if self.is_first:
            query = F.pad(self.query(x.transpose(1, 2)).transpose(1, 2), (0, ORDERS - 1))
        else:
            query = self.query(x)
        score = (query[target] * key).unflatten(1, (HEADS, -1)).sum((2, 3)) * ORDERS**-0.5
        power = score.exp()
        total = power.new_zeros(len(x), HEADS).index_add_(0, target, power)
        weight = (power / total[target]).repeat_interleave(self.kept // HEADS, 1)
        mixed = value.new_zeros(len(x), self.kept, ORDERS)
        mixed = mixed.index_add_(0, target, weight[..., None] * value)
        return self.out(mixed if self.is_first else torch.cat([mixed, x], 1))


class Layer(nn.Module):
    """Attention and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.norm = Attend(), Norm()

    def forward(self, x: torch.Tensor, *bonds: torch.Tensor) -> torch.Tensor:
        return self.norm(self.attend(x, bonds[:2], *bonds[2:]))


class Se3Transformer(nn.Module):
    """Seven layers, a convolution to scalars, the greatest over atoms, and two linear maps."""

    def __init__(self, layers: int = 7) -> None:
        super().__init__()
        self.first, self.first_norm = Attend(6, (0,)), Norm()
        self.layers = nn.ModuleList(Layer() for _ in range(layers - 1))
        wide = CHANNELS * len(DEGREES)
        self.last = Convolution(CHANNELS, wide, DEGREES, (0,))
        self.head = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 1))

    def forward(
        self,
        atom: torch.Tensor,
        source: torch.Tensor,
        target: torch.Tensor,
        bond: torch.Tensor,
        basis: torch.Tensor,
        y_B: torch.Tensor,
    ) -> torch.Tensor:
        first = torch.arange(len(atom), device=atom.device)[:, None] * ATOMS
        ends = ((source + first).flatten(), (target + first).flatten())
        bond, basis = bond.flatten(0, 1), basis.flatten(0, 1)
        x = self.first_norm(self.first(atom.flatten(0, 1)[..., None], ends, bond, basis))
        for layer in self.layers:
            x = layer(x, *ends, bond, basis)
        message = self.last(x[ends[0]], bond, basis).squeeze(2)
        summed = message.new_zeros(len(x), message.shape[1]).index_add_(0, ends[1], message)
        most = summed.unflatten(0, (-1, ATOMS)).amax(1)
        return F.l1_loss(self.head(most).squeeze(1), y_B)


def molecules(num_samples: int) -> Batch:
    """Atoms, the ends of bonds, bonds, their basis, and what is asked for."""
    ends = (num_samples, BONDS)
    wide = paths(DEGREES, DEGREES) * ORDERS
    return (
        torch.empty(num_samples, ATOMS, 6, device="meta"),
        *(torch.empty(ends, dtype=torch.int64, device="meta") for _ in range(2)),
        torch.empty(*ends, 5, device="meta"),
        torch.empty(*ends, ORDERS, wide, device="meta"),
        torch.empty(num_samples, device="meta"),
    )


REFERENCES = (
    Reference(
        name="se3-qm9",
        build=Se3Transformer,
        batch=molecules,
        source="Fuchs et al. 2020 (arXiv 2006.10503); sizes of NVIDIA DeepLearningExamples, "
        "SE(3)-Transformer README",
        input="QM9: 18 atoms and 37 directed bonds a molecule, the mean of the data set as "
        "PyTorch Geometric lists it (18.0 and 37.3)",
        units={"molecules": 1.0},
    ),
)
