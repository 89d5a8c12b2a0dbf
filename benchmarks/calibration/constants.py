"""The constants that are fitted: each a field of `Software`, of some programs on some devices.

`start` is what is expected before any row of the tables is read and `spread` its relative standard
deviation: a constant that few rows depend on stays near it. Where the start is from is said beside.
"""

from dataclasses import dataclass

MEGATRON = (
    "megatron-2021",
    "megatron-2023",
    "megatron-2023-balanced",
    "megatron-2023-unfused",
)
DEEPSPEED = ("megatron-deepspeed-2022", "megatron-deepspeed-2022-blocking")
CORE = ("megatron-core-2025", "megatron-core-2026")
FSDP = ("torch-fsdp-2023", "llm-foundry-2023", "armillary")
COMPILED = ("torch-fsdp2-2025",)
INTERNEVO = ("internevo-2023",)
XLA = ("xla-2021", "xla-2021-experts", "oneflow-2021")
NEURON = ("neuron-2024",)
TORCH = FSDP + COMPILED + INTERNEVO


@dataclass(frozen=True, kw_only=True)
class Free:
    """One constant before it is fitted."""

    name: str
    field: str
    start: float
    spread: float
    software: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def serves(self, software: str, device: str) -> bool:
        """Whether it is for this program on this device."""
        from armillary.plan.calibration import Constant

        return Constant(
            name=self.name,
            field=self.field,
            value=self.start,
            low=0.0,
            high=0.0,
            software=self.software,
            devices=self.devices,
        ).serves(software, device)


def _sustained(name: str, start: float, spread: float, *devices: str) -> Free:
    """What a device reaches in training of what it reached in a table of single products.

    Below 1 where power or heat holds the clock down while products follow one another; where a
    device's own table is a default the start stands for what is not known.
    """
    return Free(
        name=f"products in training on {name}",
        field="kernel_fraction",
        start=start,
        spread=spread,
        software=ALL_TRANSFORMERS,
        devices=devices,
    )


ALL_TRANSFORMERS = (
    *MEGATRON,
    *DEEPSPEED,
    *CORE,
    *TORCH,
    *XLA,
    *NEURON,
    "xla-2024",
    "torch-ddp-2021",
    "tuned-2024",
)

SUSTAINED_ON_AURORA = 0.5
"""Of what its products reach alone on a full node. AERIS (Hatanpää et al. 2025, arXiv:2509.13523)
did 11.21 Eflop/s at best in training on 10,080 nodes of Aurora: 92.7 Tflop/s a tile in whole steps,
0.45 of 207 ([alcf], machines/data/devices/max_1550_tile.toml). Products alone do more than whole
steps: that it is 0.05 more is a guess.
"""

DEVICES = (
    _sustained("V100", 1.05, 0.06, "v100*"),
    _sustained("A100", 0.93, 0.04, "a100*", "a800*"),
    _sustained("H100 and H200", 0.88, 0.06, "h100_sxm_80", "h200*", "h800*"),
    _sustained("H100 at 500 W", 0.85, 0.08, "h100_sxm_96*"),
    _sustained("B200 and B300", 0.88, 0.08, "b200*", "b300*"),
    _sustained("GB200", 0.85, 0.08, "gb200*"),
    _sustained("GB300", 0.95, 0.06, "gb300*"),
    _sustained("Intel Max 1550", SUSTAINED_ON_AURORA, 0.15, "max_1550*"),
    _sustained("Trainium 1", 0.9, 0.15, "trainium*"),
)

STREAMS = tuple(
    Free(name=f"streams of {name}", field="stream_passes", start=start, spread=s, software=who)
    for name, start, s, who in (
        ("Megatron-LM", 1.0, 0.15, MEGATRON),
        ("Megatron-DeepSpeed", 1.0, 0.15, DEEPSPEED),
        ("Megatron-Core", 0.9, 0.15, CORE),
        ("eager PyTorch", 1.5, 0.15, FSDP + INTERNEVO),
        ("compiled PyTorch", 1.2, 0.15, COMPILED),
        ("XLA and OneFlow of 2021", 1.1, 0.15, XLA),
        ("Neuron", 1.5, 0.25, NEURON),
    )
)

FLASH_1 = ("llm-foundry-2023", "internevo-2023")
FLASH_2 = (*MEGATRON, "torch-fsdp-2023", "armillary", *COMPILED)
ATTENTION = tuple(
    Free(
        name=f"fused attention, {name}",
        field="attention_fraction",
        start=start,
        spread=s,
        software=who,
        devices=devices,
    )
    for name, start, s, who, devices in (
        ("FlashAttention on A100", 0.7, 0.15, FLASH_1, ("a100*", "a800*")),
        ("FlashAttention on H100", 0.35, 0.15, FLASH_1, ("h100*", "h200*")),
        ("FlashAttention 2 on A100", 1.1, 0.15, FLASH_2, ("a100*", "a800*")),
        ("FlashAttention 2 on H100", 0.6, 0.15, FLASH_2, ("h100*", "h200*")),
        ("cuDNN", 0.9, 0.12, CORE, ()),
    )
)

ONCE = (
    Free(name="loss on logits", field="loss_passes", start=2.5, spread=0.25,
         software=(*MEGATRON, *DEEPSPEED, *CORE, *TORCH)),
    Free(name="update of states", field="optimizer_passes", start=1.4, spread=0.2,
         software=(*MEGATRON, *DEEPSPEED, *CORE, *TORCH, *XLA, *NEURON)),
)  # fmt: skip

HOST = (
    Free(name="launch, Megatron-DeepSpeed", field="launch_s", start=5e-5, spread=0.2,
         software=DEEPSPEED),
    Free(name="launch of a message, Megatron-DeepSpeed", field="message_launch_s", start=3e-5,
         spread=0.5, software=DEEPSPEED),
    Free(name="micro batch, Megatron-DeepSpeed", field="micro_batch_s", start=1e-3, spread=0.6,
         software=DEEPSPEED),
    Free(name="launch, Megatron-Core to spring 2026", field="launch_s", start=4e-6, spread=0.3,
         software=("megatron-core-2025",)),
    Free(name="launch, Megatron-Core since June 2026", field="launch_s", start=1.5e-6, spread=0.4,
         software=("megatron-core-2026",)),
    Free(name="experts wait for the host, to spring 2026", field="experts_s", start=8e-4,
         spread=0.4, software=("megatron-core-2025",)),
    Free(name="experts wait for the host, since June 2026", field="experts_s", start=2e-4,
         spread=0.4, software=("megatron-core-2026",)),
)  # fmt: skip

HIDDEN = (
    Free(name="experts' messages hidden", field="hides_experts", start=0.5, spread=0.25,
         software=CORE),
    Free(name="tensor messages hidden, Megatron-Core", field="hides_regions", start=0.6,
         spread=0.25, software=CORE),
    Free(name="sends waited for", field="exposes_sends", start=0.4, spread=0.3,
         software=MEGATRON + CORE + DEEPSPEED),
    Free(name="memory taken beside messages", field="slowdown", start=4.0, spread=0.4,
         software=TORCH + CORE),
    Free(name="gradients hidden, InternEvo", field="hides_gradients", start=0.6, spread=0.25,
         software=INTERNEVO),
)  # fmt: skip

SPECIAL = (
    Free(name="products of Megatron-LM's own", field="kernel_fraction", start=1.0, spread=0.03,
         software=("megatron-2021",)),
    Free(name="products of Megatron-DeepSpeed's own", field="kernel_fraction", start=1.0,
         spread=0.03, software=DEEPSPEED),
    Free(name="heads of an odd width", field="unaligned_slowdown", start=6.0, spread=0.3,
         software=MEGATRON + DEEPSPEED),
)  # fmt: skip

CONSTANTS = (
    *DEVICES, *STREAMS, *ATTENTION, *ONCE, *HOST, *HIDDEN, *SPECIAL,
)  # fmt: skip
