"""DeepCAM: DeepLabv3+ on an Xception trunk, decoded at full resolution; and CosmoFlow.

Sources: Chen et al. 2018 (arXiv 1802.02611), Figures 2 and 4; Kurth et al. 2018
(arXiv 1810.01993), section V and Figure 2, as the MLPerf HPC benchmark DeepCAM states it.
CosmoFlow: Mathuriya et al. 2018 (arXiv 1808.04728), Figure 2, with the sizes of MLPerf HPC.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together
from benchmarks.reference_models.residual import normed

# Shapes: B samples, C channels, H rows, W columns, D depth


class Separable(nn.Module):
    """A 3 x 3 convolution of each channel, then a mix of the channels; norms behind both."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.each = nn.Conv2d(
            inputs, inputs, 3, stride, dilation, dilation, groups=inputs, bias=False
        )
        self.each_norm = nn.BatchNorm2d(inputs)
        self.mix = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.mix_norm = nn.BatchNorm2d(outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.mix_norm(self.mix(self.each_norm(self.each(x_BCHW))))


class Stack(nn.Module):
    """Three separable convolutions, ReLU ahead of each, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            Separable(inputs, outputs, dilation=dilation),
            Separable(outputs, outputs, dilation=dilation),
            Separable(outputs, outputs, stride, 1 if stride > 1 else dilation),
        )
        changes = stride > 1 or inputs != outputs
        self.shortcut = normed(inputs, outputs, 1, stride) if changes else nn.Identity()

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = x_BCHW
        for part in self.parts:
            y = part(F.relu(y))
        return y + self.shortcut(x_BCHW)


class Pools(nn.Module):
    """Convolutions of four dilations and the mean of the picture, side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.near = normed(inputs, outputs, 1)
        self.far = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 1, rate, rate, bias=False), nn.BatchNorm2d(outputs)
            )
            for rate in (6, 12, 18)
        )
        self.mean = normed(inputs, outputs, 1)
        self.join = normed(5 * outputs, outputs, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        found = [F.relu(part(x_BCHW)) for part in (self.near, *self.far)]
        mean = F.relu(self.mean(x_BCHW.mean((2, 3), keepdim=True)))
        found.append(mean.expand_as(found[0]))
        return F.relu(self.join(torch.cat(found, 1)))


def widen(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Twice as many rows and columns."""
    return nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, 1, bias=False)


def widened(inputs: int, outputs: int) -> nn.Sequential:
    """The same with a norm and ReLU."""
    return nn.Sequential(widen(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU())


class DeepCam(nn.Module):
    """Xception trunk with 16 middle stacks at a sixteenth of the size, pools, and a decoder."""

    def __init__(self, channels: int = 16, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(normed(channels, 32, 3, 2), nn.ReLU(), normed(32, 64, 3))
        self.entry = Stack(64, 128, 2)
        self.deeper = nn.Sequential(Stack(128, 256, 2), Stack(256, 728, 2))
        self.middle = nn.Sequential(*(Stack(728, 728) for _ in range(16)))
        self.leave = Stack(728, 1024)
        self.last = nn.Sequential(
            *(Separable(a, b, dilation=2) for a, b in ((1024, 1536), (1536, 1536), (1536, 2048)))
        )
        self.pools = Pools(2048, 256)
        self.low = normed(128, 48, 1)
        self.up = nn.Sequential(widened(256, 256), widened(256, 256))
        self.mix = nn.Sequential(
            normed(304, 256, 3), nn.ReLU(), normed(256, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 1)
        )
        self.full = nn.Sequential(widened(256, 256), widen(256, num_classes))

    def forward(self, x_BCHW: torch.Tensor, label_BHW: torch.Tensor) -> torch.Tensor:
        low = self.entry(F.relu(self.stem(x_BCHW)))
        x = self.leave(self.middle(self.deeper(low)))
        for part in self.last:
            x = F.relu(part(x))
        x = self.up(self.pools(x))
        x = self.mix(torch.cat([x, F.relu(self.low(low))], 1))
        return F.cross_entropy(self.full(x), label_BHW)


class CosmoFlow(nn.Module):
    """Five 3D convolutions that double the channels and halve the cube, and three linear maps."""

    def __init__(self, channels: int = 4, base: int = 32, num_targets: int = 4) -> None:
        super().__init__()
        widths = (channels, *(base * 2**i for i in range(5)))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv3d(a, b, 3, 1, 1), nn.LeakyReLU(), nn.MaxPool3d(2))
                for a, b in itertools.pairwise(widths)
            )
        )
        self.head = nn.Sequential(
            *(nn.Linear(widths[-1] * 64, 128), nn.LeakyReLU(), nn.Dropout(0.5)),
            *(nn.Linear(128, 64), nn.LeakyReLU(), nn.Dropout(0.5)),
            *(nn.Linear(64, num_targets), nn.Tanh()),
        )

    def forward(self, x_BCDHW: torch.Tensor, target_BK: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(1.2 * self.head(self.stages(x_BCDHW).flatten(1)), target_BK)


REFERENCES = (
    Reference(
        name="deepcam",
        build=DeepCam,
        batch=together(images(16, 768, 1152), numbers(768, 1152)),
        source="Kurth et al. 2018 (arXiv 1810.01993), section V; Chen et al. 2018 "
        "(arXiv 1802.02611), Figure 4, as MLPerf HPC's DeepCAM states its layers",
        input="768 x 1,152 x 16, 3 classes: MLPerf HPC, deepcam README",
        num_parameters=56.6e6,
        figures="56.6 M: listed with the published runs (mlperf-hpc)",
        tolerance=0.02,
    ),
    Reference(
        name="cosmoflow",
        build=CosmoFlow,
        batch=together(images(4, 128, 128, 128), images(4)),
        source="Mathuriya et al. 2018 (arXiv 1808.04728); five layers of 32 to 512 channels and "
        "linear maps of 128 and 64 as MLPerf HPC's cosmoflow configuration states",
        input="128 x 128 x 128 x 4: the same configuration",
        num_parameters=8.9e6,
        figures="8.9 M: listed with the published runs (mlperf-hpc)",
    ),
)
