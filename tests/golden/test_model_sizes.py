"""Published sizes of known models, and ours.

Sources, by row: Narayanan et al. 2021, arXiv 2104.04473, table 1 (vocabulary 51,200, sequences of
2,048); Radford et al. 2019 as released (GPT-2); Meta's released Llama 3 and 3.1 (arXiv 2407.21783);
Jiang et al. 2024, arXiv 2401.04088 (Mixtral); DeepSeek-V3, arXiv 2412.19437 (671 B without the
module for multi-token prediction; as released, less the 14,848 entries of its routers' biases,
which are no parameters); He et al. 2015, arXiv 1512.03385, as in torchvision (ResNet-50 v1.5,
4.09 billion multiplications and additions for an image).
"""

import pytest
import torch

from armillary.models import families, trace
from tests.parity.cases.nets import ResNet50

MEGATRON = [
    (1.7, 24, 2304, 24),
    (3.6, 30, 3072, 32),
    (7.5, 36, 4096, 32),
    (18.4, 40, 6144, 48),
    (39.1, 48, 8192, 64),
    (76.1, 60, 10240, 80),
    (145.6, 80, 12288, 96),
    (310.1, 96, 16384, 128),
    (529.6, 105, 20480, 128),
    (1008.0, 128, 25600, 160),
]
LLAMA = "llama:kv_heads=8,vocab=128256,seq=8192"
EXACT = {
    "gpt:layers=12,hidden=768,heads=12,seq=1024,vocab=50257": 124_439_808,
    f"{LLAMA},layers=32,hidden=4096,heads=32,ffn=14336": 8_030_261_248,
    f"{LLAMA},layers=80,hidden=8192,heads=64,ffn=28672": 70_553_706_496,
    f"{LLAMA},layers=126,hidden=16384,heads=128,ffn=53248": 405_853_388_800,
    "moe:layers=32,hidden=4096,heads=32,kv_heads=8,seq=4096,vocab=32000,experts=8,chosen=2,"
    "expert_ffn=14336": 46_702_792_704,
    "deepseek:": 671_026_419_200 - 14_848,
}


@pytest.mark.parametrize(("billions", "layers", "hidden", "heads"), MEGATRON)
def test_parameters_of_megatron(billions: float, layers: int, hidden: int, heads: int) -> None:
    sizes = f"layers={layers},hidden={hidden},heads={heads},seq=2048,vocab=51200"
    graph = families.parse(f"gpt:{sizes}")
    assert graph.num_parameters / 1e9 == pytest.approx(billions, abs=0.051)


@pytest.mark.parametrize("words", EXACT)
def test_parameters_of_released_models(words: str) -> None:
    assert families.parse(words).num_parameters == EXACT[words]


@pytest.mark.parametrize(("billions", "layers", "hidden", "heads"), MEGATRON)
def test_flops_of_megatron(billions: float, layers: int, hidden: int, heads: int) -> None:
    """Narayanan et al., section 5.1: a third of 72 s l h^2 (1 + s / 6h + V / 12 l h), forward."""
    words, length = 51200, 2048
    graph = families.parse(
        f"gpt:layers={layers},hidden={hidden},heads={heads},seq={length},vocab={words}"
    )
    inside = 1 + length / (6 * hidden) + words / (12 * layers * hidden)
    assert graph.total("flops") == pytest.approx(24 * length * layers * hidden**2 * inside)


@pytest.mark.parametrize("fused", [True, False])
def test_what_a_block_of_megatron_keeps(fused: bool) -> None:
    """Korthikanti et al. 2022, arXiv 2205.05198, eq. 1: s b h (34 + 5 a s / h), 16 bits wide.

    Fused attention does not keep the part with a; both keep some statistics of rows besides.
    """
    s, h, a = 2048, 6144, 64
    words = f"layers=2,hidden={h},heads={a},seq={s},vocab=51200,dropout=0.1,dtype=bfloat16"
    graph = families.parse(f"gpt:{words},fused={fused}")
    block = graph.segments[1]
    kept = s * h * (34 + (0 if fused else 5 * a * s / h))
    assert block.total("saved_bytes") / block.repeats == pytest.approx(kept, rel=0.003)


def test_resnet_50() -> None:
    graph = trace(
        ResNet50(),
        lambda model, images: model(images).logsumexp(1).mean(),
        torch.zeros(2, 3, 224, 224, device="meta"),
        2,
    )
    assert graph.num_parameters == 25_557_032
    assert graph.total("flops") / 2e9 == pytest.approx(4.09, abs=0.005)
    assert graph.total("backward_flops") / graph.total("flops") == pytest.approx(2, abs=0.05)
