"""Every stored published model loads without torch and meets the figures that are printed of it."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.models import references
from armillary.spec import ModelGraph, SpecError

PUBLISHED = """
name,parameters,forward_gigaflops,source
resnet50,25.557e6,8.18,torchvision's table of weights: 25.557 M and 4.09 GMAC
stable-diffusion-v2,865.9e6,,Podell et al. 2023 (arXiv 2307.01952) Table 1
transformer-big,213e6,,Vaswani et al. 2017 (arXiv 1706.03762) Table 3
jasper10x5,333e6,,Li et al. 2019 (arXiv 1904.03288) Table 1
wide-resnet50-c160-w2,254.123e6,,Zheng et al. 2022 artifact: results_intra_ablation.tsv
wide-resnet50-c448-w2,1965.011e6,,Zheng et al. 2022 artifact: results_intra_ablation.tsv
waveglow,268e6,,NVIDIA DeepLearningExamples: WaveGlow with 512 channels
tacotron2,28.2e6,,listed with the published runs
unet-medical,31.03e6,,U-Net with transposed convolutions
openfold,93e6,,listed with the published runs
"""
ROWS = list(csv.DictReader(io.StringIO(PUBLISHED.strip())))
NAMED = {
    "ResNet-50 v1.5": "resnet50",
    "resnet50_v1.5": "resnet50",
    "Wide-ResNet-50 C224 W2": "wide-resnet50-c224-w2",
    "Wide-ResNet-50 4B": "wide-resnet50-c640-w2",
    "Wide-ResNet-50 6.8B": "wide-resnet50-c320-w16",
    "Wide-ResNet-101 13B": "wide-resnet101-c320-w16",
    "RetinaNet (SSD)": "retinanet",
    "SSD300 v1.1 (ResNet-50)": "ssd300",
    "SSD": "ssd300",
    "3D U-Net (BraTS)": "unet3d-brats",
    "3D U-Net (KiTS19)": "unet3d-kits19",
    "U-Net medical 2D": "unet-medical",
    "Stable Diffusion v2": "stable-diffusion-v2",
    "DeepCAM (DeepLabv3+ Xception)": "deepcam",
    "CosmoFlow 3D CNN": "cosmoflow",
    "Jasper 10x5 (1D conv ASR)": "jasper10x5",
    "Tacotron 2 (LSTM enc-dec + attention)": "tacotron2",
    "WaveGlow": "waveglow",
    "GNMT v2 (4+4 layer LSTM 1024)": "gnmt",
    "Temporal Fusion Transformer (Traffic)": "tft-traffic",
    "Temporal Fusion Transformer (Electricity)": "tft-electricity",
    "Transformer-XL base": "transformer-xl-base",
    "Transformer-XL large": "transformer-xl-large",
    "Transformer (big) en-de": "transformer-big",
    "BART-large pretraining": "bart-large",
    "DLRM-DCNv2": "dlrm-dcnv2",
    "DLRM small": "dlrm",
    "SE(3)-Transformer (QM9)": "se3-qm9",
    "OpenFold (AlphaFold2)": "openfold",
}
OTHERS = (
    "GPT-3 175B",
    "Llama 3 70B",
    "BERT-large",
    "R-GAT (IGBH-full)",
    "DimeNet++ (OC20)",
    "ResNeXt-101",
)
SMALL = ("cosmoflow", "gnmt")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", references.names())
def test_every_stored_graph_says_what_it_is_and_can_be_priced(name: str) -> None:
    reference = references.read(name)
    assert reference.name == name == reference.graph.name
    assert len(reference.source) > 20 and len(reference.input) > 20 and reference.traced
    graph = references.load(name)
    assert graph.segments and graph.total("flops") > 0
    assert 1.7 < graph.total("backward_flops") / graph.total("flops") < 2.3
    assert graph.total("saved_bytes") > 0


@pytest.mark.parametrize("name", references.names())
def test_published_figures_are_met(name: str) -> None:
    reference = references.read(name)
    graph, tolerance = reference.graph, reference.tolerance
    if reference.published_parameters:
        assert graph.num_parameters == pytest.approx(reference.published_parameters, tolerance)
        assert reference.figures
    if reference.published_flops:
        assert graph.total("flops") == pytest.approx(reference.published_flops, tolerance)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r["name"])
def test_figures_of_the_papers(row: dict[str, str]) -> None:
    graph = references.load(row["name"])
    assert graph.num_parameters == pytest.approx(float(row["parameters"]), rel=0.012)
    if row["forward_gigaflops"]:
        gigaflops = graph.total("flops") / 1e9
        assert gigaflops == pytest.approx(float(row["forward_gigaflops"]), rel=5e-3)


@pytest.mark.parametrize(("model", "name"), list(NAMED.items()))
def test_names_in_tables_of_runs_are_understood(model: str, name: str) -> None:
    assert references.find(model) == name
    graph = references.for_row(model, "cnn")
    assert graph is not None and graph.name == name


@pytest.mark.parametrize("model", OTHERS)
def test_other_models_have_no_stored_graph(model: str) -> None:
    assert references.for_row(model, "dense-transformer", 2048) is None


def test_a_longer_sequence_is_another_graph() -> None:
    short, long = (references.for_row("BART-large", "dense-transformer", n) for n in (128, 512))
    assert short is not None and long is not None
    assert 3.9 < long.total("flops") / short.total("flops") < 5


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="resnet50"):
        references.load("resnet5")


def test_no_torch_on_the_way() -> None:
    code = (
        "import sys; from armillary.models import references; references.load('resnet50'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SMALL)
def test_the_stored_graph_is_what_a_trace_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks.trace_references import all_references, slim, trace_reference

    reference = next(r for r in all_references() if r.name == name)
    fresh = json.loads(json.dumps(slim(trace_reference(reference))))
    assert ModelGraph.from_dict(fresh) == references.load(name)
