"""Heat in plates with holes: a graph network on meshes of unequal size, with torch alone.

Heat sources sit on a thin plate of two materials, with a seam and holes anywhere; heat spreads in
the plate and leaves through its faces, not its edges. A network that sends messages along the
edges of the mesh (as MeshGraphNets: Pfaff et al. 2021, arXiv 2010.03409) says the temperature at
every point. Its rivals: the training mean, the best linear blend of averages over neighbours, and
Jacobi's method on the equations themselves; the last two see exactly as far as the network.

Data: computed here in a second, each sample a plate of its own. -div(k grad u) + LOSS u = q, where
u is the temperature above the room's and mesh spacings are about 1, by linear finite elements on
triangles with lumped masses (Strang and Fix 1973, "An Analysis of the Finite Element Method").
"""

from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR

# Shapes: B plates; N points and E directed edges of all plates of a batch; H hidden units;
# F = 3 features, of a point: source, log of conductivity, area; of an edge: y, x, length.
CONDUCTIVITIES, LOSS, NUM_SWEEPS = (0.3, 3.0), 0.2, 8  # of the rivals: one for each layer
Array = np.ndarray
Arrays = dict[str, Array]
Plate = dict[str, Tensor]
settings = {"epochs": 16, "global_batch_size": 8, "clip_norm": 1.0}
monitor = "min:relative_rmse"


def perceptron(num_in: int, h: int) -> nn.Sequential:
    """Two linear maps to H features, normed."""
    return nn.Sequential(nn.Linear(num_in, h), nn.SiLU(), nn.Linear(h, h), nn.LayerNorm(h))


class Layer(nn.Module):
    """Nodes [N, H] and edges [E, H] after one exchange of messages."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.edge, self.node = (perceptron(n * hidden_size, hidden_size) for n in (3, 2))

    def forward(self, nodes_NH: Tensor, edges_EH: Tensor, ends_2E: Tensor) -> tuple[Tensor, Tensor]:
        sender, receiver = ends_2E[0], ends_2E[1]
        along = [edges_EH, nodes_NH[sender], nodes_NH[receiver]]
        edges_EH = edges_EH + self.edge(torch.cat(along, dim=-1))
        heard_NH = edges_EH.new_zeros(nodes_NH.shape).index_add(0, receiver, edges_EH)
        return nodes_NH + self.node(torch.cat([nodes_NH, heard_NH], dim=-1)), edges_EH


class MeshNet(nn.Module):
    """Temperature [N] of every point."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.encode_nodes, self.encode_edges = (perceptron(3, hidden_size) for _ in range(2))
        self.layers = nn.ModuleList(Layer(hidden_size) for _ in range(num_layers))
        self.decode = nn.Linear(hidden_size, 1)

    def forward(self, nodes_NF: Tensor, edges_EF: Tensor, ends_2E: Tensor) -> Tensor:
        nodes_NH, edges_EH = self.encode_nodes(nodes_NF), self.encode_edges(edges_EF)
        for layer in self.layers:
            nodes_NH, edges_EH = layer(nodes_NH, edges_EH, ends_2E)
        return self.decode(nodes_NH).squeeze(-1)


def model(hidden_size: int = 32, num_layers: int = 8) -> nn.Module:
    return MeshNet(hidden_size, num_layers)


def tiny() -> nn.Module:
    """The smallest model of the same structure."""
    return model(hidden_size=8, num_layers=2)


def data(num_plates: int = 800) -> dict[str, list[Plate]]:
    plates = [make_plate(np.random.default_rng(seed)) for seed in range(num_plates)]
    n = max(1, num_plates // 8)
    return {"train": plates[: -2 * n], "validation": plates[-2 * n : -n], "test": plates[-n:]}


def collate(samples: Sequence[Plate]) -> Plate:
    """All plates as one graph: the points of each are numbered after those before."""
    names = ("nodes", "edges", "points", "temperature")
    joined = {name: torch.cat([plate[name] for plate in samples]) for name in names}
    lengths = torch.tensor([len(plate["nodes"]) for plate in samples])
    ends = [p["ends"] + n for p, n in zip(samples, lengths.cumsum(0) - lengths, strict=True)]
    return joined | {"ends": torch.cat(ends, dim=1), "lengths": lengths}


def loss(model: nn.Module, batch: Plate) -> tuple[Tensor, int]:
    """Sum over the points, and their number: a small plate counts for less than a large one."""
    error_N = model(batch["nodes"], batch["edges"], batch["ends"]) - batch["temperature"]
    return error_N.square().sum(), len(error_N)


def optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.003)


def scheduler(optimizer: torch.optim.Optimizer, num_steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, 0.003, num_steps, pct_start=0.1 if num_steps != 10 else 0.2)


def predict(model: nn.Module, batch: Plate) -> Plate:
    """Plates first, [B, points of the largest]; "lengths" says how much of a row is a plate."""
    found = {"forecast": model(batch["nodes"], batch["edges"], batch["ends"])}
    found |= {"temperature": batch["temperature"], "points": batch["points"]}
    sizes = batch["lengths"].tolist()
    rows = {name: pad_sequence(t.split(sizes), batch_first=True) for name, t in found.items()}
    return rows | {"lengths": batch["lengths"]}


def metrics(predictions: Arrays) -> dict[str, float]:
    """Error of all points relative to their spread; error of the hottest point of each plate."""
    forecast, truth = predictions["forecast"], predictions["temperature"]
    forecast_N, truth_N = np.concatenate(list(forecast)), np.concatenate(list(truth))
    error = np.sqrt(np.mean((forecast_N - truth_N) ** 2))
    peaks = [abs(f.max() - t.max()) for f, t in zip(forecast, truth, strict=True)]
    return {"relative_rmse": float(error / truth_N.std()), "peak_mae": float(np.mean(peaks))}


def rivals(data: dict[str, list[Plate]]) -> dict[str, Arrays]:
    test, temperature = data["test"], torch.cat([plate["temperature"] for plate in data["train"]])
    averages = torch.cat([plate["averages"] for plate in data["train"]]).double()
    blend = torch.linalg.lstsq(averages, temperature[:, None].double()).solution[:, 0].float()
    forecasts = {
        "training mean": [temperature.mean().expand(len(plate["nodes"])) for plate in test],
        "averages over neighbours": [plate["averages"] @ blend for plate in test],
        "Jacobi's method": [plate["jacobi"] for plate in test],
    }
    known = {name: rows([plate[name] for plate in test]) for name in ("temperature", "points")}
    return {name: {"forecast": rows(found), **known} for name, found in forecasts.items()}


def figures(predictions: Arrays, rivals: dict[str, Arrays]) -> dict[str, go.Figure]:
    i = int(np.argmax([len(plate) for plate in predictions["points"]]))
    truth, found = predictions["temperature"][i], predictions["forecast"][i]
    fields = {"truth": truth, "network": found, "error": found - truth}
    maps = make_subplots(1, 3, subplot_titles=list(fields), horizontal_spacing=0.02)
    x, y = predictions["points"][i].T
    for column, field in enumerate(fields.values(), start=1):
        marker = {"color": field, "coloraxis": "coloraxis", "size": 10}
        maps.add_scatter(x=x, y=y, mode="markers", marker=marker, row=1, col=column)
    maps.update_layout(coloraxis={"colorscale": "RdBu_r", "cmid": 0}, showlegend=False, height=320)
    maps.update_xaxes(visible=False, constrain="domain")
    maps.update_yaxes(visible=False, scaleanchor="x", constrain="domain")
    return {"Temperature: one plate": maps}


def rows(plates: list[Tensor]) -> Array:
    """An array of arrays, one a plate."""
    found = np.empty(len(plates), dtype=object)
    for i, plate in enumerate(plates):
        found[i] = plate.numpy()
    return found


def mesh(rng: np.random.Generator) -> tuple[Array, Array]:
    """Points [N, 2] and triangles [T, 3]: shaken squares cut either way, and two holes."""
    height, width = rng.integers(7, 14, 2).tolist()
    y, x = np.indices((height, width)).reshape(2, -1)
    inner = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    shift = rng.uniform(-0.2, 0.2, (len(inner), 2))  # from 0.25 on a triangle could turn over
    points = np.stack([y, x], axis=1) + inner[:, None] * shift
    a = np.flatnonzero((y < height - 1) & (x < width - 1))
    b, c, d = a + 1, a + width, a + width + 1
    falls = rng.random(len(a)) < 0.5
    halves = np.where(falls, [a, b, c], [a, b, d]), np.where(falls, [b, d, c], [a, d, c])
    triangles = np.concatenate(halves, axis=1).T
    for hole in rng.uniform(0, (height, width), (2, 2)):
        distance = np.linalg.norm(points[triangles].mean(axis=1) - hole, axis=1)
        triangles = triangles[distance > rng.uniform(0.8, 1.8)]
    used, triangles = np.unique(triangles, return_inverse=True)
    return points[used], triangles


def system(points: Array, triangles: Array, conductivity: Array) -> tuple[Array, Array]:
    """Matrix [N, N] of the equations, whose right side is area times source, and areas [N]."""
    corners = points[triangles]
    facing = np.roll(corners, -1, axis=1) - np.roll(corners, 1, axis=1)  # each corner's far side
    area = abs(facing[:, 0, 0] * facing[:, 1, 1] - facing[:, 0, 1] * facing[:, 1, 0]) / 2
    weight = conductivity[triangles].mean(axis=1) / (4 * area)
    areas = np.bincount(triangles.ravel(), np.repeat(area / 3, 3))
    matrix = np.diag(LOSS * areas)
    products = weight[:, None, None] * (facing @ facing.transpose(0, 2, 1))
    np.add.at(matrix, (triangles[:, :, None], triangles[:, None, :]), products)
    return matrix, areas


def make_plate(rng: np.random.Generator) -> Plate:
    """One plate drawn and solved."""
    points, triangles = mesh(rng)
    middle, across = rng.uniform(0.3, 0.7, 2) * points.max(axis=0), rng.normal(size=2)
    conductivity = np.where((points - middle) @ across > 0, *CONDUCTIVITIES)
    chips = points[rng.integers(len(points), size=rng.integers(1, 5))]
    square = ((points[:, None] - chips) ** 2).sum(axis=2)
    source = np.exp(-square / 2) @ rng.uniform(0.5, 2, len(chips))
    matrix, area = system(points, triangles, conductivity)
    near = np.zeros(matrix.shape)
    near[triangles[:, :, None], triangles[:, None, :]] = 1
    ends = np.stack(np.nonzero(near - np.eye(len(near))))
    along = points[ends[1]] - points[ends[0]]
    averages, jacobi = [np.ones(len(points)), source], source / LOSS
    for _ in range(NUM_SWEEPS):
        averages.append(near @ averages[-1] / near.sum(axis=1))
        jacobi = jacobi + (area * source - matrix @ jacobi) / np.diag(matrix)
    arrays = {
        "nodes": np.stack([source, np.log(conductivity), area], axis=1),
        "edges": np.c_[along, np.linalg.norm(along, axis=1)],
        "temperature": np.linalg.solve(matrix, area * source),
        "points": points,
        "averages": np.stack(averages, axis=1),
        "jacobi": jacobi,
    }
    plate = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    return plate | {"ends": torch.from_numpy(ends)}
