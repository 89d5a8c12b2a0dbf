"""llm-analysis (Li 2023, PyPI), asked in its own words: step times and how fast it tells them.

Run by an interpreter that has it: it is bound to old releases of its own needs, so give it a
virtual environment. Its documentation advises to say the share of the peak that is reached, which
it otherwise takes to be all of it; 0.5 is its example's.
"""

import time
from collections.abc import Mapping
from typing import Any

GPUS = {
    "A100-SXM-80GB": "a100-sxm-80gb",
    "A100-SXM-40GB": "a100-sxm-40gb",
    "H100-SXM-80GB": "h100-sxm-80gb",
    "V100-SXM2-16GB": "v100-sxm-16gb",
    "V100-SXM2-32GB": "v100-sxm-32gb",
}
RECOMPUTES = {"none": 0, "selective": 1, "full": 2}
PRECISIONS = ("fp16", "bf16")


def refusal(run: Mapping[str, Any]) -> str:
    """Why it cannot be asked about a run; "" if it can."""
    if run["lacks"]:
        return f"no {run['lacks']} in the table"
    if run["gpu"] not in GPUS:
        return "no file for the device"
    if run["sequence"] > 1:
        return "no context parallelism"
    if run["precision"] not in PRECISIONS:
        return "16 bits alone"
    if run["global_batch_size"] % (run["data"] * run["micro_batch_size"]):
        return "a batch that the ranks do not divide"
    return ""


def model(run: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of its ModelConfig."""
    return {
        "name": run["id"],
        "num_layers": run["layers"],
        "n_head": run["heads"],
        "hidden_dim": run["hidden"],
        "vocab_size": run["vocab"],
        "max_seq_len": run["seq"],
        "num_key_value_heads": run["kv_heads"],
        "ffn_embed_dim": run["ffn"],
    }


def degrees(run: Mapping[str, Any]) -> dict[str, int]:
    """The fields of its ParallelismConfig."""
    return {
        "tp_size": run["tensor"],
        "pp_size": run["pipeline"],
        "dp_size": run["data"],
        "sp_size": run["tensor"] if run["cuts_norms"] else 1,
    }


def training(run: Mapping[str, Any]) -> dict[str, Any]:
    """What its `training` is called with."""
    micro = run["global_batch_size"] // (run["data"] * run["micro_batch_size"])
    return {
        "batch_size_per_gpu": run["micro_batch_size"],
        "gradient_accumulation_steps": micro,
        "global_batch_size": run["global_batch_size"],
        "seq_len": run["seq"],
        "flash_attn": False,
        "mlp_gated_linear_units": run["is_gated"],
    }


def predict(question: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a step of every run, None where it has none."""
    import logging

    from llm_analysis.analysis import ActivationRecomputation, DSZeRO, LLMAnalysis
    from llm_analysis.config import (
        ModelConfig,
        ParallelismConfig,
        get_dtype_config_by_name,
        get_gpu_config_by_name,
    )

    logging.disable(logging.CRITICAL)
    dtype = get_dtype_config_by_name("w16a16e16")
    seconds: list[float | None] = []
    why: dict[str, int] = {}
    spent_s = 0.0
    for run in question["runs"]:
        said = refusal(run)
        if not said:
            began_s = time.process_time()
            try:
                one = LLMAnalysis(
                    ModelConfig(**model(run)),
                    get_gpu_config_by_name(GPUS[run["gpu"]]),
                    dtype,
                    ParallelismConfig(**degrees(run)),
                    flops_efficiency=question["efficiency"],
                )
                told = one.training(
                    **training(run),
                    activation_recomputation=ActivationRecomputation(RECOMPUTES[run["recompute"]]),
                    ds_zero=DSZeRO(run["zero"]),
                )
                seconds.append(told["latency_per_iter"])
                spent_s += time.process_time() - began_s
                continue
            except (AssertionError, ValueError, TypeError, KeyError) as error:
                said = f"{type(error).__name__} {error}"[:80]
        seconds.append(None)
        why[said] = why.get(said, 0) + 1
    told_runs = sum(one is not None for one in seconds)
    return {"seconds": seconds, "why": why, "per_s": told_runs / spent_s if spent_s else 0.0}


if __name__ == "__main__":
    from asked import answer

    answer(predict)
