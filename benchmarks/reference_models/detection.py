"""Detectors: RetinaNet on ResNeXt-50, and SSD on ResNet-50.

Sources: RetinaNet: Lin et al. 2017 (arXiv 1708.02002), section 4 and Figure 3, with a feature
pyramid (Lin et al. 2016, arXiv 1612.03144); SSD: Liu et al. 2015 (arXiv 1512.02325), Figure 2, on
the ResNet-50 trunk of Huang et al. 2016 (arXiv 1611.10012).
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together
from benchmarks.reference_models.residual import Trunk, normed, stage

# Shapes: B samples, C channels, A boxes, K classes

PYRAMID = 256
ANCHORS = 9


class Pyramid(nn.Module):
    """Features of five scales, 256 channels each."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(nn.Conv2d(width, PYRAMID, 1) for width in widths)
        self.outer = nn.ModuleList(nn.Conv2d(PYRAMID, PYRAMID, 3, 1, 1) for _ in widths)
        self.sixth = nn.Conv2d(PYRAMID, PYRAMID, 3, 2, 1)
        self.seventh = nn.Conv2d(PYRAMID, PYRAMID, 3, 2, 1)

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        tops = [inner(x) for inner, x in zip(self.inner, features, strict=True)]
        for i in range(len(tops) - 2, -1, -1):
            tops[i] = tops[i] + F.interpolate(tops[i + 1], size=tops[i].shape[-2:])
        found = [outer(top) for outer, top in zip(self.outer, tops, strict=True)]
        found.append(self.sixth(found[-1]))
        found.append(self.seventh(F.relu(found[-1])))
        return found


def tower(outputs: int) -> nn.Sequential:
    """Four convolutions with ReLU and one to the outputs, shared by all scales."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Conv2d(PYRAMID, PYRAMID, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(PYRAMID, outputs, 3, 1, 1))


def along_boxes(outputs: list[torch.Tensor], size: int) -> torch.Tensor:
    """[B, boxes of all scales, size]."""
    return torch.cat([o.flatten(2).transpose(1, 2).reshape(len(o), -1, size) for o in outputs], 1)


class RetinaNet(nn.Module):
    """Trunk, pyramid, and two towers at every scale; stem and first stage are not trained."""

    def __init__(self, num_classes: int = 264) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.trunk = Trunk(64, 128, groups=32)
        for part in (self.trunk.stem, self.trunk.stages[0]):
            part.requires_grad_(False)
        self.pyramid = Pyramid((512, 1024, 2048))
        self.classes, self.boxes = tower(ANCHORS * num_classes), tower(ANCHORS * 4)

    def forward(
        self, x_BCHW: torch.Tensor, target_BAK: torch.Tensor, box_BA4: torch.Tensor
    ) -> torch.Tensor:
        scales = self.pyramid(self.trunk(x_BCHW)[1:])
        score_BAK = along_boxes([self.classes(x) for x in scales], self.num_classes)
        found_BA4 = along_boxes([self.boxes(x) for x in scales], 4)
        return focal(score_BAK, target_BAK) + F.l1_loss(found_BA4, box_BA4)


def focal(score: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The focal loss; Source: Lin et al. 2017, equation 5."""
    entropy = F.binary_cross_entropy_with_logits(score, target, reduction="none")
    right = torch.sigmoid(score)
    missed = right + target - 2 * right * target
    return (entropy * missed * missed).sum()


class Ssd(nn.Module):
    """A trunk up to its third stage, five smaller scales, and a pair of heads at each."""

    WIDTHS = (1024, 512, 512, 256, 256, 256)
    INNER = (256, 256, 128, 128, 128)
    BOXES = (4, 6, 6, 6, 4, 4)

    def __init__(self, num_classes: int = 81) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = normed(3, 64, 7, 2)
        self.stages = nn.Sequential(
            stage(64, 64, 256, 3, 1), stage(256, 128, 512, 4, 2), stage(512, 256, 1024, 6, 1)
        )
        self.smaller = nn.ModuleList(self._smaller(i, inner) for i, inner in enumerate(self.INNER))
        pairs = list(zip(self.WIDTHS, self.BOXES, strict=True))
        self.boxes = nn.ModuleList(nn.Conv2d(w, 4 * n, 3, 1, 1) for w, n in pairs)
        self.classes = nn.ModuleList(nn.Conv2d(w, num_classes * n, 3, 1, 1) for w, n in pairs)

    def _smaller(self, place: int, inner: int) -> nn.Sequential:
        strided = place < 3
        return nn.Sequential(
            *normed(self.WIDTHS[place], inner, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(
                inner, self.WIDTHS[place + 1], 3, 2 if strided else 1, int(strided), bias=False
            ),
            nn.BatchNorm2d(self.WIDTHS[place + 1]),
            nn.ReLU(inplace=True),
        )

    def forward(
        self, x_BCHW: torch.Tensor, label_BA: torch.Tensor, box_BA4: torch.Tensor
    ) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.stem(x_BCHW), inplace=True), 3, 2, 1)
        scales = [self.stages(x)]
        for part in self.smaller:
            scales.append(part(scales[-1]))
        found_BA4 = along_boxes([h(x) for h, x in zip(self.boxes, scales, strict=True)], 4)
        scores = [h(x) for h, x in zip(self.classes, scales, strict=True)]
        score_BAK = along_boxes(scores, self.num_classes)
        entropy_BA = F.cross_entropy(score_BAK.transpose(1, 2), label_BA, reduction="none")
        hardest = entropy_BA.sort(1, descending=True).values
        near = F.smooth_l1_loss(found_BA4, box_BA4, reduction="none").sum(2)
        return hardest.sum() + near.sum()


RETINANET_BOXES = ANCHORS * sum(side * side for side in (100, 50, 25, 13, 7))
SSD_BOXES = 8732

REFERENCES = (
    Reference(
        name="retinanet",
        build=RetinaNet,
        batch=together(
            images(3, 800, 800), images(RETINANET_BOXES, 264), images(RETINANET_BOXES, 4)
        ),
        source="Lin et al. 2017 (arXiv 1708.02002), section 4; trunk ResNeXt-50 32x4d, Xie et al. "
        "2016 (arXiv 1611.05431), Table 1",
        input="800 x 800 x 3, 264 classes of OpenImages: MLPerf Training's single stage detector",
        num_parameters=37.0e6,
        figures="37 M: listed with the published runs (mlperf)",
        tolerance=0.02,
    ),
    Reference(
        name="ssd300",
        build=Ssd,
        batch=together(images(3, 300, 300), numbers(SSD_BOXES), images(SSD_BOXES, 4)),
        source="Liu et al. 2015 (arXiv 1512.02325), Figure 2; trunk as NVIDIA's SSD300 v1.1 README "
        "says: ResNet-50 without its fourth stage, stride 1 in the third",
        input="300 x 300 x 3, 81 classes of COCO: NVIDIA DeepLearningExamples, SSD README",
    ),
)
