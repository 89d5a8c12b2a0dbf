"""Residual networks for pictures: ResNet-50 v1.5, wide ones, and ResNeXt-50.

Sources: He et al. 2015 (arXiv 1512.03385), Table 1; the stride in the 3 x 3 convolution of a
bottleneck is what v1.5 means (Goyal et al. 2017, arXiv 1706.02677, section 5.1). Wide ones:
Zagoruyko and Komodakis 2016 (arXiv 1605.07146). ResNeXt: Xie et al. 2016 (arXiv 1611.05431),
Table 1.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together

# Shapes: B samples, C channels, H rows, W columns, K classes

STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
EXPANSION = 4


def normed(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias and a batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut; a wide one widens in the second."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        stride: int = 1,
        groups: int = 1,
        width: int = 1,
    ) -> None:
        super().__init__()
        self.reduce = normed(inputs, inner, 1)
        self.mix = normed(inner, inner * width, 3, stride, groups)
        self.expand = normed(inner * width, outputs, 1)
        self.shortcut = (
            normed(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.reduce(x_BCHW), inplace=True)
        y = F.relu(self.mix(y), inplace=True)
        return F.relu(self.expand(y) + self.shortcut(x_BCHW), inplace=True)


def stage(
    inputs: int, inner: int, outputs: int, count: int, stride: int, groups: int = 1, width: int = 1
) -> nn.Sequential:
    """`count` bottlenecks, the first of which changes the size."""
    rest = [(outputs, inner, outputs, 1, groups, width)] * (count - 1)
    sizes = [(inputs, inner, outputs, stride, groups, width), *rest]
    return nn.Sequential(*(Bottleneck(*size) for size in sizes))


class Trunk(nn.Module):
    """Stem and four stages; gives what each stage gives."""

    def __init__(
        self, base: int = 64, inner: int = 64, groups: int = 1, width: int = 1, layers: int = 50
    ) -> None:
        super().__init__()
        self.stem = normed(3, base, 7, 2)
        widths = [base * EXPANSION * 2**i for i in range(4)]
        self.stages = nn.ModuleList(
            stage(
                widths[i - 1] if i else base,
                inner * 2**i,
                widths[i],
                STAGES[layers][i],
                2 if i else 1,
                groups,
                width,
            )
            for i in range(4)
        )

    def forward(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(F.relu(self.stem(x_BCHW), inplace=True), 3, 2, 1)
        found = []
        for part in self.stages:
            x = part(x)
            found.append(x)
        return found


class Classifier(nn.Module):
    """A trunk, the mean over positions, and a linear map to the classes."""

    def __init__(
        self, base: int = 64, width: int = 1, num_classes: int = 1000, layers: int = 50
    ) -> None:
        super().__init__()
        self.trunk = Trunk(base, base, width=width, layers=layers)
        self.head = nn.Linear(base * EXPANSION * 8, num_classes)

    def forward(self, x_BCHW: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        last = self.trunk(x_BCHW)[-1]
        return F.cross_entropy(self.head(last.mean((2, 3))), label_B)


WIDE_SOURCE = "Zheng et al. 2022 (Alpa, arXiv 2201.12023), section 8.1"
WIDE = (
    *((50, 160, 2, 254.123e6), (50, 224, 2, 495.046e6), (50, 320, 2, 1005.653e6)),
    *((50, 448, 2, 1965.011e6), (50, 640, 2, 4000.9e6), (50, 320, 16, 6.8e9), (101, 320, 16, 13e9)),
)
"""Layers, base channels, width factor, and the parameters that Alpa prints."""


def _wide(layers: int, base: int, width: int, count: float) -> Reference:
    return Reference(
        name=f"wide-resnet{layers}-c{base}-w{width}",
        build=lambda: Classifier(base, width, 1024, layers),
        batch=together(images(3, 224, 224), numbers()),
        source=f"{WIDE_SOURCE}: ResNet-{layers} with {base} base channels, times {width} in the "
        "3 x 3 convolutions as its artifact builds them",
        input="224 x 224 x 3, 1,024 classes: the artifact's suite of wide ResNets",
        num_parameters=count,
        figures="parameters: Alpa's artifact, results_intra_ablation.tsv and results_e2e.tsv; "
        "6.8 and 13 billion: its suite of wide ResNets",
        tolerance=0.05 if width > 2 else 0.001,
    )


REFERENCES = (
    Reference(
        name="resnet50",
        build=Classifier,
        batch=together(images(3, 224, 224), numbers()),
        source="He et al. 2015 (arXiv 1512.03385), Table 1, 50 layers; stride as in v1.5",
        input="224 x 224 x 3, 1,000 classes: ImageNet as in the paper's section 3.4",
        num_parameters=25.557e6,
        forward_flops=2 * 4.09e9,
        figures="parameters and 4.09 GMAC: torchvision's table of ResNet50_Weights",
    ),
    *(_wide(*sizes) for sizes in WIDE),
)
