"""Stable Diffusion v2: the U-Net that is trained in latent space, and the text encoder that is not.

Sources: Rombach et al. 2021 (arXiv 2112.10752), section 3 and Table 15; the sizes of version 2 as
MLPerf Training's reference configuration states them. Text encoder: OpenCLIP ViT-H/14, Cherti et
al. 2022 (arXiv 2212.07143), Table 1 of its text tower: 24 layers of width 1,024, 77 tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.reference_models.reference import Reference, images, numbers, together

# Shapes: B samples, C channels, H rows, W columns, T positions, L text tokens, E text width

BASE, TEXT, HEAD = 320, 1024, 64


def norm(channels: int) -> nn.GroupNorm:
    """A norm of 32 groups."""
    return nn.GroupNorm(32, channels)


class Residual(nn.Module):
    """Two convolutions, between which the time is added."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = norm(inputs), norm(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.time = nn.Linear(4 * BASE, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x_BCHW: torch.Tensor, time_BE: torch.Tensor) -> torch.Tensor:
        y = self.first(F.silu(self.first_norm(x_BCHW)))
        y = y + self.time(F.silu(time_BE))[:, :, None, None]
        return self.second(F.silu(self.second_norm(y))) + self.shortcut(x_BCHW)


class Attend(nn.Module):
    """Attention of heads of 64 to itself or to the text."""

    def __init__(self, size: int, memory: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size, bias=False)
        self.key, self.value = (nn.Linear(memory, size, bias=False) for _ in range(2))
        self.out = nn.Linear(size, size)

    def forward(self, x_BTC: torch.Tensor, memory_BLE: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part(y).unflatten(2, (-1, HEAD)).transpose(1, 2)
            for part, y in (
                *((self.query, x_BTC), (self.key, memory_BLE)),
                (self.value, memory_BLE),
            )
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Spatial(nn.Module):
    """A transformer layer over positions: itself, the text, a gated feed-forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = norm(size), nn.Linear(size, size), nn.Linear(size, size)
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(3))
        self.own, self.text = Attend(size, size), Attend(size, TEXT)
        self.up, self.down = nn.Linear(size, 8 * size), nn.Linear(4 * size, size)

    def forward(self, x_BCHW: torch.Tensor, text_BLE: torch.Tensor) -> torch.Tensor:
        x = self.enter(self.norm(x_BCHW).flatten(2).transpose(1, 2))
        y = self.norms[0](x)
        x = x + self.own(y, y)
        x = x + self.text(self.norms[1](x), text_BLE)
        kept, gate = self.up(self.norms[2](x)).chunk(2, 2)
        x = x + self.down(kept * F.gelu(gate))
        return self.leave(x).transpose(1, 2).reshape(x_BCHW.shape) + x_BCHW


class Level(nn.Module):
    """A residual part and, where it has one, a transformer layer."""

    def __init__(self, inputs: int, outputs: int, attends: bool) -> None:
        super().__init__()
        self.residual = Residual(inputs, outputs)
        self.spatial = Spatial(outputs) if attends else None

    def forward(self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.residual(x, time)
        return x if self.spatial is None else self.spatial(x, text)


class UNet(nn.Module):
    """Four levels of 320 to 1,280 channels; the three larger ones attend."""

    WIDTHS = (BASE, 2 * BASE, 4 * BASE, 4 * BASE)

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        wide = 4 * BASE
        self.time = nn.Sequential(nn.Linear(BASE, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.first = nn.Conv2d(channels, BASE, 3, 1, 1)
        kept, width, down = [BASE], BASE, list[nn.Module]()
        for level, outputs in enumerate(self.WIDTHS):
            for _ in range(2):
                down.append(Level(width, outputs, level < 3))
                width = outputs
                kept.append(width)
            if level < 3:
                down.append(nn.Conv2d(width, width, 3, 2, 1))
                kept.append(width)
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList([Level(width, width, True), Residual(width, width)])
        up = list[nn.Module]()
        for level in (3, 2, 1, 0):
            for i in range(3):
                up.append(Level(width + kept.pop(), self.WIDTHS[level], level < 3))
                width = self.WIDTHS[level]
                if level and i == 2:
                    up.append(nn.Conv2d(width, width, 3, 1, 1))
        self.up = nn.ModuleList(up)
        self.norm, self.last = norm(BASE), nn.Conv2d(BASE, channels, 3, 1, 1)

    def forward(self, x_BCHW: torch.Tensor, wave: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        time, x = self.time(wave), self.first(x_BCHW)
        kept = [x]
        for part in self.down:
            x = part(x, time, text) if isinstance(part, Level) else part(x)
            kept.append(x)
        x = self.middle[1](self.middle[0](x, time, text), time)
        for part in self.up:
            if isinstance(part, Level):
                x = part(torch.cat([x, kept.pop()], 1), time, text)
            else:
                x = part(F.interpolate(x, scale_factor=2.0))
        return self.last(F.silu(self.norm(x)))


class TextLayer(nn.Module):
    """A layer of the text encoder; norms ahead."""

    def __init__(self, size: int = TEXT) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.packed, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        packed = self.packed(self.attention_norm(x_BLE)).unflatten(2, (3, -1, HEAD))
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x_BLE + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Text(nn.Module):
    """The text encoder up to its last layer but one."""

    def __init__(self, words: int = 49408) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, TEXT), nn.Embedding(77, TEXT)
        self.layers = nn.ModuleList(TextLayer() for _ in range(23))
        self.norm = nn.LayerNorm(TEXT)

    def forward(self, token_BL: torch.Tensor) -> torch.Tensor:
        x = self.words(token_BL) + self.positions.weight
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def hold(module: nn.Module) -> nn.Module:
    """The module with its parameters as buffers: no step changes them and no rank reduces them."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


class StableDiffusion(nn.Module):
    """A step: text encoded without gradients, noise added to a latent, and told by the U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.unet = hold(Text()), UNet()

    def forward(
        self, latent: torch.Tensor, noise: torch.Tensor, wave: torch.Tensor, token: torch.Tensor
    ) -> torch.Tensor:
        with torch.no_grad():
            text = self.text(token)
        return F.mse_loss(self.unet(latent + noise, wave, text), noise)


REFERENCES = (
    Reference(
        name="stable-diffusion-v2",
        build=StableDiffusion,
        batch=together(images(4, 64, 64), images(4, 64, 64), images(BASE), numbers(77)),
        source="Rombach et al. 2021 (arXiv 2112.10752); version 2's sizes as MLPerf Training's "
        "reference configuration states them; text: Cherti et al. 2022 (arXiv 2212.07143)",
        input="latents of 64 x 64 x 4, encoded beforehand, and 77 text tokens, encoded in the "
        "step: MLPerf Training, stable_diffusion README",
        num_parameters=865.91e6,
        figures="866 M of the U-Net: Podell et al. 2023 (arXiv 2307.01952), Table 1: 865 M",
    ),
)
