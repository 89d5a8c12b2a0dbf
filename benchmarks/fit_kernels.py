"""Fits what devices reach, from measured kernels: matrix products, attention, copies, collectives.

    pip download --no-deps aiconfigurator-core==0.12.0 -d tables && cd tables && unzip *.whl
    python -m benchmarks.fit_kernels tables            # prints errors, writes machines/data/fits
    python -m benchmarks.fit_kernels tables --only h100_sxm --dry-run

The tables are those of the PyPI package aiconfigurator-core (NVIDIA, Apache-2.0), which this
project does not need to run. Each form is fitted on a fifth of its points and its error is that on
the other four fifths; the constants that are written are those of the fit on all points.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.fit_collectives import Fit, Written, collectives_of, gloo_lines

Array = NDArray[np.float64]
OUT = Path(__file__).parents[1] / "src/armillary/machines/data/fits"
RESULTS = Path(__file__).parent / "results"
SEED = 0
LARGE = 1024  # products of which all three sizes reach this are what errors are quoted on


@dataclass(frozen=True)
class Source:
    """The tables of one device: their folder in the package, which is also our file's name."""

    name: str
    network: str = "switch"  # the topology on which the collectives were measured
    dtypes: tuple[str, ...] = ("bfloat16", "float8")


BLACKWELL = ("bfloat16", "float8", "float4")
SOURCES = (
    Source("a100_sxm", dtypes=("bfloat16",)),
    Source("h100_sxm"),
    Source("h200_sxm"),
    Source("b200_sxm", dtypes=BLACKWELL),
    Source("b300_sxm", dtypes=BLACKWELL),
    Source("gb200", dtypes=BLACKWELL),
    Source("gb300", dtypes=BLACKWELL),
    Source("l40s", network="pcie"),
)
# Products: TensorRT-LLM's tables, of torch.nn.functional.linear in bfloat16, with the cast in
# float8 and float4. Attention: vLLM's, which are FlashAttention's. Copies: whoever is fastest.
FRAMEWORKS = {"gemm": ("trtllm",), "attention": ("vllm",), "quantize": ("trtllm", "vllm", "sglang")}
THEIRS = {"bfloat16": "bfloat16", "float8": "fp8", "float4": "nvfp4"}
ITEM_BYTES = {"bfloat16": 2.0, "float8": 1.0, "float4": 0.5625}  # a scale of 8 bits per 16 values


def newest(folder: Path, pattern: str) -> Path | None:
    """The table of the newest version that `pattern` finds, or none."""

    def version(path: Path) -> list[int]:
        words = path.parent.name.replace("rc", ".").replace("post", ".").split(".")
        return [int(word) for word in words if word.isdigit()]

    found = sorted(folder.glob(pattern), key=version)
    return found[-1] if found else None


def fit(
    form: Callable[[Array, dict[str, Array]], Array],
    points: dict[str, Array],
    start: list[float],
    most: list[float],
    counted: NDArray[np.bool_] | None = None,
) -> Fit:
    """The constants of `form` that are nearest to `points["t"]` by ratio, each at most `most`.

    Errors are of the points that are `counted`. A robust loss, since tables have outliers.
    """
    seconds = points["t"]
    is_fifth = np.random.default_rng(SEED).random(len(seconds)) < 0.2
    kept_out = ~is_fifth if counted is None else ~is_fifth & counted

    def solve(rows: NDArray[np.bool_]) -> Array:
        some = {name: column[rows] for name, column in points.items()}
        found = least_squares(
            lambda logs: np.log(form(np.exp(logs), some) / some["t"]),
            np.log(start),
            bounds=(np.log(start) - 12.0, np.log(most)),
            loss="soft_l1",
            f_scale=0.1,
        )
        return np.asarray(np.exp(found.x))

    error = np.abs(form(solve(is_fifth), points) / seconds - 1.0)[kept_out]
    constants = solve(np.ones(len(seconds), np.bool_))
    return Fit(constants, float(error.mean()), float(np.median(error)), len(seconds))


# ------------------------------------------------------------------------------- matrix products
def matmul_form(peak: float, rate: float, item: float) -> Callable[..., Array]:
    """Seconds of products as `spec.machine.Efficiency` says, of constants and columns m, n, k."""

    def seconds(c: Array, p: dict[str, Array]) -> Array:
        m, n, k = p["m"], p["n"], p["k"]
        compute = 2.0 * m * n * k / (peak * c[1]) * (1 + c[3] / m) * (1 + c[4] / n) * (1 + c[5] / k)
        memory = item * (m * k + k * n + m * n) / (rate * c[2])
        return np.asarray(c[0] + np.maximum(compute, memory))

    return seconds


def fit_matmul(table: pd.DataFrame, dtype: str, peak: float, rate: float) -> Fit:
    """The six constants of a product in `dtype`; the error is that of large products."""
    best = table.groupby(["m", "n", "k"], as_index=False).latency.min()
    points = {name: best[name].to_numpy(np.float64) for name in ("m", "n", "k")}
    points["t"] = best.latency.to_numpy(np.float64) * 1e-3
    useful = (points["m"] >= 64) & (points["n"] >= 64) & (points["k"] >= 64) & (points["t"] > 0)
    points = {name: column[useful] for name, column in points.items()}
    is_large = np.minimum(np.minimum(points["m"], points["n"]), points["k"]) >= LARGE
    start, most = [4e-6, 0.8, 0.8, 40.0, 40.0, 100.0], [1e-3, 1.0, 1.0, 1e4, 1e4, 1e4]
    return fit(matmul_form(peak, rate, ITEM_BYTES[dtype]), points, start, most, is_large)


# ------------------------------------------------------------------------- attention and copies
def fit_attention(table: pd.DataFrame, peak: float) -> Fit:
    """Start, and share of `peak` that causal attention reaches, of 1,024 words and more."""
    some = table[(table.isl >= LARGE) & (table.head_dim == 128) & (table.latency > 0)]
    some = some[some.attn_dtype.isin(["bfloat16", "float16"])]
    if "window_size" in some:
        some = some[some.window_size == 0]
    keys = ["batch_size", "isl", "num_heads"]
    best = some.groupby(keys, as_index=False).latency.min()
    batch, length, heads = (best[key].to_numpy(np.float64) for key in keys)
    points = {"flops": 2.0 * batch * heads * length**2 * 128.0}
    points["t"] = best.latency.to_numpy(np.float64) * 1e-3
    return fit(
        lambda c, p: np.asarray(c[0] + p["flops"] / (peak * c[1])),
        points,
        [2e-5, 0.5],
        [1e-2, 1.0],
    )


def fit_stream(table: pd.DataFrame, rate: float) -> Fit:
    """Start, and share of `rate` that reading 2 and writing 1 byte a value reaches, of 256 MiB up.

    The kernel casts bfloat16 to float8 with a given scale.
    """
    some = table[(table.latency > 0) & (3.0 * table.m * table.k >= 2**28)]
    points = {"bytes": 3.0 * (some.m * some.k).to_numpy(np.float64)}
    points["t"] = some.latency.to_numpy(np.float64) * 1e-3
    return fit(
        lambda c, p: np.asarray(c[0] + p["bytes"] / (rate * c[1])),
        points,
        [2e-6, 0.8],
        [1e-4, 1.0],
    )


# ------------------------------------------------------------------------------------- documents
MATMUL = (
    "matmul_start_s",
    "matmul_fraction",
    "matmul_memory_fraction",
    "half_rows",
    "half_columns",
    "half_inner",
)


def device_lines(source: Source, root: Path, version: str) -> Written:
    """The file of one device; prints each error."""
    systems = root / "aiconfigurator_core/systems"
    system = yaml.safe_load((systems / f"{source.name}.yaml").read_text())["gpu"]
    data = systems / "data" / source.name
    written = Written()
    package = f"aiconfigurator-core {version}"
    rate = float(system["mem_bw"])
    short = {"bfloat16": "bfloat16_tc_flops", "float8": "fp8_tc_flops", "float4": "fp4_tc_flops"}
    path = newest(data, f"gemm/{FRAMEWORKS['gemm'][0]}/*/gemm_perf.parquet")
    assert path is not None, f"no matrix products of {source.name}"
    table, label = pd.read_parquet(path), written.table(path, systems)
    for dtype in source.dtypes:
        peak = float(system[short[dtype]])
        found = fit_matmul(table[table.gemm_dtype == THEIRS[dtype]], dtype, peak, rate)
        tell(f"{source.name} matmul {dtype}", found)
        values: dict[str, Any] = dict(zip(MATMUL, map(float, found.constants), strict=True))
        if dtype == "bfloat16":
            values |= attention_and_stream(data, systems, written, peak, rate)
        values["source"] = (
            f"{package}: {label}, {THEIRS[dtype]}; of {peak / 1e12:.4g} Tflop/s and "
            f"{rate / 1e9:.4g} GB/s"
        )
        values["relative_error"] = found.held_out_error
        title = "[efficiency]" if dtype == "bfloat16" else f"[efficiencies.{dtype}]"
        written.section(title, values)
    collective_lines(source, data, systems, written, package)
    return written


def tell(what: str, found: Fit) -> None:
    """Print the error of a fit."""
    print(
        f"{what:46} {found.num_points:6} points  held out {found.held_out_error:6.1%} "
        f"(median {found.held_out_median:.1%})"
    )


def attention_and_stream(
    data: Path, systems: Path, written: Written, peak: float, rate: float
) -> dict[str, float]:
    """The shares of the peaks that attention and copies reach."""
    shares = {}
    for name, kind, form, most in (
        ("attention_fraction", "attention/{}/*/context_attention_perf", fit_attention, peak),
        ("stream_fraction", "quantize/{}/*/scale_matrix_perf", fit_stream, rate),
    ):
        frameworks = FRAMEWORKS[kind.split("/")[0]]
        paths = [newest(data, kind.format(one) + ".parquet") for one in frameworks]
        fits = [(form(pd.read_parquet(path), most), path) for path in paths if path is not None]
        if fits:
            found, path = max(fits, key=lambda one: float(one[0].constants[1]))
            written.table(path, systems)
            shares[name] = float(found.constants[1])
            tell(f"{data.name} {name} {shares[name]:.3f}", found)
    return shares


def collective_lines(
    source: Source, data: Path, systems: Path, written: Written, package: str
) -> None:
    """The collectives inside one node."""
    path = newest(data, "comm/nccl/*/nccl_perf.parquet")
    if path is None:
        return
    label = written.table(path, systems)
    for name, ranks, found in collectives_of(pd.read_parquet(path)):
        start, rate, root = map(float, found.constants)
        tell(f"{source.name} {name} {ranks}", found)
        written.section(
            f"[[collectives.{source.network}.{name}]]",
            {
                "degree": ranks,
                "start_s": start,
                "bytes_per_s": rate,
                "root_s_per_sqrt_byte": root,
                "source": f"{package}: {label}, half",
                "relative_error": found.held_out_error,
            },
        )


def head(version: str, written: Written) -> list[str]:
    """The comment at the top of a file: where its numbers come from."""
    lines = [
        "# Written by benchmarks/fit_kernels.py; run it again rather than change a number here.",
        f"# Package aiconfigurator-core {version} (NVIDIA, Apache-2.0), {date.today()}.",
        "# relative_error: mean absolute error on points that were not fitted; of products, those",
        f"# with all three sizes from {LARGE} up. Tables, with their sha256:",
    ]
    return lines + [f"#   {path} {digest}" for path, digest in written.tables.items()]


def write_samples(root: Path, version: str) -> None:
    """Keep a few hundred rows of the tables of A100 and H100 beside the results, for the tests."""
    data = root / "aiconfigurator_core/systems/data"
    products, collectives = [], []
    for system in ("a100_sxm", "h100_sxm"):
        path = newest(data / system, "gemm/trtllm/*/gemm_perf.parquet")
        table = pd.read_parquet(path)
        large = table[(table[["m", "n", "k"]].min(axis=1) >= LARGE)]
        large = large[large.gemm_dtype == "bfloat16"].groupby(["m", "n", "k"], as_index=False)
        rows = large.latency.min().sample(200, random_state=SEED).sort_values(["m", "n", "k"])
        products.append(rows.assign(device=system))
        path = newest(data / system, "comm/nccl/*/nccl_perf.parquet")
        table = pd.read_parquet(path)
        kept = ["op_name", "nccl_dtype", "num_gpus", "message_size", "latency"]
        collectives.append(table[kept].assign(device=system))
    for name, rows in (("kernels_matmul", products), ("kernels_nccl", collectives)):
        text = pd.concat(rows).to_csv(index=False, float_format="%.7g")
        about = (
            f"# A sample of tables of aiconfigurator-core {version}, (c) NVIDIA, Apache-2.0; "
            "latency in ms, message_size in values. Written by benchmarks/fit_kernels.py.\n"
        )
        (RESULTS / f"{name}.csv").write_text(about + text)


def main() -> None:
    parser = argparse.ArgumentParser(description="fit what devices reach")
    parser.add_argument("package", type=Path, help="folder of the unpacked aiconfigurator-core")
    parser.add_argument("--only", help="one of our files, such as h100_sxm or epyc_core")
    parser.add_argument("--sample", action="store_true", help="write the samples the tests read")
    parser.add_argument("--dry-run", action="store_true", help="print errors, write nothing")
    asked = parser.parse_args()
    info = next(asked.package.glob("aiconfigurator_core-*.dist-info"))
    version = info.name.removesuffix(".dist-info").split("-")[1]
    if asked.sample:
        write_samples(asked.package, version)
        return
    for source in SOURCES:
        if asked.only in (None, source.name):
            written = device_lines(source, asked.package, version)
            write(source.name, head(version, written) + written.lines, asked.dry_run)
    if asked.only in (None, "epyc_core"):
        write("epyc_core", gloo_lines(), asked.dry_run)


def write(name: str, lines: list[str], is_dry: bool) -> None:
    """Write one file of fits, or not."""
    if not is_dry:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{name}.toml").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
