"""Two-dimensional turbulence one eddy turnover ahead: a ResNet or a U-Net on a periodic grid.

Vortices stir each other and merge. From the vorticity and velocity of one moment a convolutional
network says the vorticity two frames later. Its rivals know the same moment: the field once more
(persistence), the best linear forecast of each wave, and the equation itself with half the waves.

Data: computed here in seconds. The vorticity w of a fluid of constant density on a doubly periodic
square of side 2 pi, without force: dw/dt + u.grad w = viscosity * laplacian w, div u = 0. Scheme:
Fourier series cut at a third of the grid, so that no product is aliased (Orszag 1971, J. Atmos.
Sci. 28, 1074); the transport in Basdevant's form, which needs four transforms (1983, J. Comput.
Phys. 50, 209); the classical Runge-Kutta method of fourth order in time.

Split by trajectory: the frames of one resemble each other, so whole trajectories are resampled.
"""

from collections.abc import Iterable

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import default_collate

from armillary.spec import SpecError

# Shapes: B samples, C channels, Y and X the grid; R trajectories, T frames; K half of X's waves.
SIZE = 32  # points a side
VISCOSITY, SPREAD_AT_START = 0.01, 3.0  # in units where the side is 2 pi
STEP, STEPS_A_FRAME = 0.1, 5  # of time
FIRST_FRAME, NUM_FRAMES, LEAD = 4, 13, 2  # the flow forgets its random start before the first
Arrays = dict[str, np.ndarray]
Sample = dict[str, torch.Tensor]  # now [C, Y, X], later [Y, X], the trajectory's number
settings = {"epochs": 6, "global_batch_size": 16, "clip_norm": 1.0}
monitor = "min:relative_rmse"


def convolution(num_in: int, num_out: int, stride: int = 1) -> nn.Conv2d:
    """The only kind of layer that looks at neighbours; the grid has no edge."""
    return nn.Conv2d(num_in, num_out, 3, stride, padding=1, padding_mode="circular")


class Block(nn.Module):
    """Channels [B, C, Y, X] and a change to them."""

    def __init__(self, c: int) -> None:
        super().__init__()
        norm = nn.GroupNorm(4, c)
        self.change = nn.Sequential(convolution(c, c), norm, nn.SiLU(), convolution(c, c))

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        return x_BCYX + self.change(x_BCYX)


class Level(nn.Module):
    """Channels [B, C, Y, X] by two blocks here and whatever is inside on half the grid."""

    def __init__(self, c: int, inside: nn.Module) -> None:
        super().__init__()
        self.left, self.right = Block(c), Block(c)
        self.down, self.inside = convolution(c, 2 * c, stride=2), inside
        self.up, self.merge = nn.Upsample(scale_factor=2), convolution(3 * c, c)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        kept_BCYX = self.left(x_BCYX)
        found_BCYX = self.up(self.inside(self.down(kept_BCYX)))
        return self.right(self.merge(torch.cat([kept_BCYX, found_BCYX], dim=1)))


class Forecaster(nn.Module):
    """Change of the vorticity [B, 1, Y, X] from vorticity and velocity [B, 3, Y, X]."""

    def __init__(self, c: int, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = convolution(3, c), body, convolution(c, 1)

    def forward(self, now_BCYX: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(now_BCYX)))


def model(network: str = "resnet", num_channels: int = 32, num_blocks: int = 4) -> nn.Module:
    if network not in ("resnet", "unet"):
        raise SpecError("cnn.network", network, "it is resnet or unet", "use network=resnet")
    if num_channels < 4 or num_channels % 4:
        found, rule = f"{num_channels}", "a norm has four equal groups of channels"
        raise SpecError("cnn.num_channels", found, rule, "use a multiple of 4")
    c, deep = num_channels, network == "unet"
    chain = nn.Sequential(*(Block(4 * c if deep else c) for _ in range(num_blocks)))
    return Forecaster(c, Level(c, Level(2 * c, chain)) if deep else chain)


def tiny(network: str = "resnet") -> nn.Module:
    """The smallest model of the same structure."""
    return model(network, num_channels=8, num_blocks=2)


def data(num_trajectories: int = 128) -> dict[str, list[Sample]]:
    square, shape = wave_numbers()[2], (num_trajectories, SIZE, SIZE)
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal(shape))
    start_RYX = np.fft.irfft2(noise * np.sqrt(square) * np.exp(-square / 18))  # most near wave 4
    start_RYX *= SPREAD_AT_START / start_RYX.std(axis=(1, 2), keepdims=True)
    frames_RTYX = simulate(start_RYX, FIRST_FRAME + NUM_FRAMES)[:, FIRST_FRAME:]
    n = max(1, num_trajectories // 8)
    train, validation, test = map(pairs, np.split(frames_RTYX, [-2 * n, -n]))
    return {"train": train, "validation": validation, "test": test}


def loss(model: nn.Module, batch: Sample) -> torch.Tensor:
    return (forecast(model, batch) - batch["later"]).square().mean()


def optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.003)


def scheduler(optimizer: torch.optim.Optimizer, num_steps: int) -> OneCycleLR:
    rise = 0.1 if num_steps != 10 else 0.2  # torch divides by its steps but one
    return OneCycleLR(optimizer, 0.003, num_steps, pct_start=rise)


def predict(model: nn.Module, batch: Sample) -> Sample:
    found = {"forecast": forecast(model, batch)}
    return found | {"observed": batch["later"], "trajectory": batch["trajectory"]}


def metrics(predictions: Arrays) -> dict[str, float]:
    """Error relative to the field's own size, and correlation of the patterns, whose mean is 0."""
    forecast, observed = predictions["forecast"], predictions["observed"]
    error, size = np.mean((forecast - observed) ** 2), np.mean(observed**2)
    alike = np.mean(forecast * observed) / np.sqrt(np.mean(forecast**2) * size)
    return {"relative_rmse": float(np.sqrt(error / size)), "correlation": float(alike)}


def groups(predictions: Arrays) -> np.ndarray:
    return predictions["trajectory"]


def rivals(data: dict[str, list[Sample]]) -> dict[str, Arrays]:
    train, test = default_collate(data["train"]), default_collate(data["test"])
    present = test["now"][:, 0]
    now, later = torch.fft.rfft2(train["now"][:, 0]), torch.fft.rfft2(train["later"])
    size = now.abs().square().mean(0)  # the least-squares gain of each wave; some waves are empty
    gain = (now.conj() * later).mean(0).real / size.clamp(min=1e-6 * size.max())
    coarse = simulate(present.numpy(), LEAD + 1, cut=SIZE / 6)[:, LEAD]
    forecasts = {
        "persistence": present.numpy(),
        "linear in each wave": torch.fft.irfft2(gain * torch.fft.rfft2(present)).numpy(),
        "the equation with half the waves": coarse.astype(np.float32),
    }
    known = {"observed": test["later"].numpy(), "trajectory": test["trajectory"].numpy()}
    return {name: {"forecast": field, **known} for name, field in forecasts.items()}


def figures(predictions: Arrays, rivals: dict[str, Arrays]) -> dict[str, go.Figure]:
    now, truth = rivals["persistence"]["forecast"][0], predictions["observed"][0]
    found = predictions["forecast"][0]
    fields = {"present": now, "forecast": found, "truth": truth, "error": found - truth}
    maps = make_subplots(1, 4, subplot_titles=list(fields), horizontal_spacing=0.02)
    for column, field in enumerate(fields.values(), start=1):
        maps.add_heatmap(z=field, coloraxis="coloraxis", row=1, col=column)
    maps.update_layout(coloraxis={"colorscale": "RdBu_r", "cmid": 0}, height=320)
    maps.update_xaxes(visible=False, constrain="domain")
    maps.update_yaxes(visible=False, scaleanchor="x", constrain="domain")
    return {"Vorticity: one forecast": maps}


def forecast(model: nn.Module, batch: Sample) -> torch.Tensor:
    """Later vorticity [B, Y, X]; the model gives its change. Both are of order one as they are."""
    return batch["now"][:, 0] + model(batch["now"])[:, 0]


def pairs(frames_RTYX: np.ndarray) -> list[Sample]:
    """Every frame that has one to be forecast: vorticity and velocity now, vorticity later."""
    state = np.stack([frames_RTYX, *velocity(np.fft.rfft2(frames_RTYX))], axis=2)
    return [
        {"now": path[t], "later": path[t + LEAD, 0], "trajectory": torch.tensor(number)}
        for number, path in enumerate(torch.from_numpy(state.astype(np.float32)))
        for t in range(len(path) - LEAD)
    ]


def wave_numbers() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wave numbers [Y, 1] and [1, K] of a real transform, and the sum of their squares."""
    y, x = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None]
    return y, x, y**2 + x**2


def velocity(w_RYK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Velocity along y and along x, from the stream function p: -p_x and p_y, laplacian p = -w."""
    y, x, square = wave_numbers()
    stream = w_RYK / np.maximum(square, 1)
    return np.fft.irfft2(-1j * x * stream), np.fft.irfft2(1j * y * stream)


def simulate(
    start_RYX: np.ndarray, num_frames: int, viscosity: float = VISCOSITY, cut: float = SIZE / 3
) -> np.ndarray:
    """Frames [R, T, Y, X] of the vorticity, of the waves whose numbers are below `cut`."""
    y, x, square = wave_numbers()
    kept = np.maximum(np.abs(y), x) < cut

    def tendency(w_RYK: np.ndarray) -> np.ndarray:
        """Basdevant: (uv)_yy - (uv)_xx + (uu - vv)_xy, and decay."""
        v, u = velocity(w_RYK)
        moved = (x**2 - y**2) * np.fft.rfft2(u * v) + x * y * np.fft.rfft2(v**2 - u**2)
        return kept * moved - viscosity * square * w_RYK

    w = np.fft.rfft2(start_RYX) * kept
    frames = [np.fft.irfft2(w)]
    for _ in range(num_frames - 1):
        for _ in range(STEPS_A_FRAME):
            a = tendency(w)
            b = tendency(w + STEP / 2 * a)
            c = tendency(w + STEP / 2 * b)
            w = w + STEP / 6 * (a + 2 * b + 2 * c + tendency(w + STEP * c))
        frames.append(np.fft.irfft2(w))
    return np.stack(frames, axis=1)
