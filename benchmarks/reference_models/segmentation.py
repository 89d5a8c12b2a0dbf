"""Networks that label every position: U-Net in two and three dims, DeepLabv3+.

Sources: U-Net: Ronneberger et al. 2015 (arXiv 1505.04597), Figure 1; in three dims Isensee et al.
2018 (arXiv 1809.10483), with strided convolutions. DeepLabv3+: Chen et al. 2018
(arXiv 1802.02611), Figures 2 and 4, as Kurth et al. 2018 (arXiv 1810.01993) decode it: at full
resolution.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together

# Shapes: B samples, C channels, then positions

UNET3D_WIDTHS = (32, 64, 128, 256, 320)


class UnpaddedPair(nn.Sequential):
    """Two 3 x 3 convolutions with ReLU that lose two positions at every edge."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3),
            nn.ReLU(inplace=True),
        )


class Unet(nn.Module):
    """Four halvings and four doublings, each with a pair of convolutions."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        ahead = (1, *widths[:-1])
        self.down = nn.ModuleList(UnpaddedPair(a, w) for a, w in zip(ahead, widths, strict=True))
        ups = widths[-2::-1]
        self.widen = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in ups)
        self.up = nn.ModuleList(UnpaddedPair(2 * w, w) for w in ups)
        self.head = nn.Conv2d(64, num_classes, 1)

    def forward(self, x_BCHW: torch.Tensor, label_BHW: torch.Tensor) -> torch.Tensor:
        kept, x = [], x_BCHW
        for i, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for widen, pair, wide in zip(self.widen, self.up, kept[-2::-1], strict=True):
            x = widen(x)
            edge = (wide.shape[-1] - x.shape[-1]) // 2
            x = pair(torch.cat([wide[..., edge:-edge, edge:-edge], x], 1))
        return F.cross_entropy(self.head(x), label_BHW)


def normed3d(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 x 3 convolution, an instance norm and an activation."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.LeakyReLU(inplace=True),
    )


class Pair3d(nn.Sequential):
    """Two such convolutions, the first with a stride."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(normed3d(inputs, outputs, stride), normed3d(outputs, outputs))


class Unet3d(nn.Module):
    """Five halvings by strided convolutions and five doublings."""

    def __init__(self, channels: int, num_classes: int, head: int) -> None:
        super().__init__()
        widths = (*UNET3D_WIDTHS, UNET3D_WIDTHS[-1])
        ahead = (channels, *widths[:-1])
        self.down = nn.ModuleList(
            Pair3d(a, w, 2 if i else 1) for i, (a, w) in enumerate(zip(ahead, widths, strict=True))
        )
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.widen = nn.ModuleList(nn.ConvTranspose3d(a, w, 2, 2) for a, w in ups)
        self.up = nn.ModuleList(Pair3d(2 * w, w) for _, w in ups)
        self.head = nn.Conv3d(widths[0], num_classes, head, padding=head // 2)

    def forward(self, x_BCDHW: torch.Tensor, label_BDHW: torch.Tensor) -> torch.Tensor:
        kept, x = [], x_BCDHW
        for pair in self.down:
            x = pair(x)
            kept.append(x)
        for widen, pair, wide in zip(self.widen, self.up, kept[-2::-1], strict=True):
            x = pair(torch.cat([widen(x), wide], 1))
        score = self.head(x)
        share = score.softmax(1)
        chosen = F.one_hot(label_BDHW, score.shape[1]).movedim(-1, 1).to(score.dtype)
        dice = 2 * (share * chosen).sum((2, 3, 4)) / (share + chosen).sum((2, 3, 4))
        return F.cross_entropy(score, label_BDHW) - dice.mean()


CUBE = (128, 128, 128)

REFERENCES = (
    Reference(
        name="unet-medical",
        build=Unet,
        batch=together(images(1, 572, 572), numbers(388, 388)),
        source="Ronneberger et al. 2015 (arXiv 1505.04597), Figure 1",
        input="572 x 572 x 1 to 388 x 388 x 2: the paper's Figure 1; NVIDIA DeepLearningExamples, "
        "TensorFlow2 UNet_Medical README",
        num_parameters=31.03e6,
        figures="31 M: listed with the published runs (dle)",
    ),
    Reference(
        name="unet3d-brats",
        build=lambda: Unet3d(4, 4, 3),
        batch=together(images(4, *CUBE), numbers(*CUBE)),
        source="Isensee et al. 2018 (arXiv 1809.10483); widths 32 to 320 as NVIDIA "
        "DeepLearningExamples, TensorFlow UNet_3D_Medical builds it",
        input="128 x 128 x 128 x 4: that README's section on data",
    ),
    Reference(
        name="unet3d-kits19",
        build=lambda: Unet3d(1, 3, 1),
        batch=together(images(1, *CUBE), numbers(*CUBE)),
        source="Isensee et al. 2018 (arXiv 1809.10483); widths 32 to 320 as MLPerf Training's "
        "3D U-Net reference",
        input="128 x 128 x 128 x 1 crops, 3 classes of KiTS19: MLPerf Training's reference README",
    ),
)
