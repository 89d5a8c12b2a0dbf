"""Calculon (Isaev et al. 2023, SC'23), asked in its own words: step times, and its search.

Run by an interpreter with psutil; `question["path"]` is a folder with its source. Its systems are
those of its own files: A100 and H100 of 80 GB, in nodes of 8.
"""

import json
import logging
import random
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

SYSTEMS = {"A100-SXM-80GB": "a100_80g", "H100-SXM-80GB": "h100_80g_nvl8"}
RECOMPUTES = {"none": "none", "selective": "attn_only", "full": "full"}
PRECISIONS = ("fp16", "bf16")
SCHEDULES = ("", "1f1b", "1f1b-interleaved")
NODE = 8


def refusal(run: Mapping[str, Any]) -> str:
    """Why Calculon cannot be asked about a run; "" if it can."""
    if run["lacks"]:
        return f"no {run['lacks']} in the table"
    if run["gpu"] not in SYSTEMS or run["gpus_per_node"] != NODE:
        return "no file for the device"
    if run["sequence"] > 1:
        return "no context parallelism"
    if run["zero"] > 1:
        return "ZeRO 1 alone"
    if run["is_gated"] or run["kv_heads"] != run["heads"]:
        return "GPT blocks alone"
    if run["precision"] not in PRECISIONS:
        return "16 bits alone"
    if run["schedule"] not in SCHEDULES:
        return "1F1B and interleaved alone"
    if run["tensor"] * run["data"] * run["pipeline"] != run["num_devices"]:
        return "degrees that do not make up the devices"
    if run["pipeline"] == 1 and run["stages_per_rank"] > 1:
        return "rounds without a pipeline"
    if run["layers"] % (run["pipeline"] * run["stages_per_rank"]):
        return "blocks that the stages do not divide"
    if run["global_batch_size"] % (run["data"] * run["micro_batch_size"]):
        return "a batch that the ranks do not divide"
    return ""


def application(run: Mapping[str, Any]) -> dict[str, int]:
    """The model of a run, as a file of its models says it."""
    return {
        "hidden": run["hidden"],
        "feedforward": run["ffn"],
        "seq_size": run["seq"],
        "attn_heads": run["heads"],
        "attn_size": run["hidden"] // run["heads"],
        "num_blocks": run["layers"],
    }


def execution(run: Mapping[str, Any]) -> dict[str, Any]:
    """The layout of a run, as its own validation of eight runs says theirs.

    Ranks lie as Megatron lays them, tensor innermost, then data, then pipeline: what lies within a
    node's eight takes the fast network.
    """
    tensor, data, pipeline = run["tensor"], run["data"], run["pipeline"]
    cuts_norms = run["cuts_norms"] and tensor > 1
    redoes = cuts_norms and run["recompute"] != "full"
    return {
        "num_procs": run["num_devices"],
        "tensor_par": tensor,
        "pipeline_par": pipeline,
        "data_par": data,
        "tensor_par_net": 0 if tensor <= NODE else 1,
        "pipeline_par_net": 0 if tensor * data * pipeline <= NODE else 1,
        "data_par_net": 0 if tensor * data <= NODE else 1,
        "batch_size": run["global_batch_size"],
        "microbatch_size": run["micro_batch_size"],
        "datatype": "float16",
        "fused_activation": False,
        "attention_type": "multihead",
        "activation_recompute": RECOMPUTES[run["recompute"]],
        "pipeline_interleaving": run["stages_per_rank"],
        "optimizer_sharding": run["zero"] == 1 and data > 1,
        "tensor_par_comm_type": "rs_ag" if cuts_norms else "ar",
        "tensor_par_overlap": "none",
        "seq_par_ag_redo": redoes,
        "data_par_overlap": False,
        "weight_offload": False,
        "activations_offload": False,
        "optimizer_offload": False,
        "training": True,
    }


def predict(question: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a step of every run, None where it has none; its limit of memory is lifted."""
    from calculon import System
    from calculon.llm import Llm

    root, logger = Path(question["path"]), _silent()
    systems = {}
    for gpu, name in SYSTEMS.items():
        words = json.loads((root / "systems" / f"{name}.json").read_text())
        words["mem1"]["GiB"] = words["mem2"]["GiB"] = 10**6
        systems[gpu] = System(words)
    seconds: list[float | None] = []
    why: dict[str, int] = {}
    spent_s = 0.0
    for run in question["runs"]:
        said, began_s = refusal(run), time.process_time()
        if not said:
            try:
                model = Llm(Llm.Application(application(run)), logger)
                model.compile(systems[run["gpu"]], Llm.Execution.from_json(execution(run)))
                model.run(systems[run["gpu"]])
                seconds.append(model.get_stats_json(False)["total_time"])
                spent_s += time.process_time() - began_s
                continue
            except (Llm.Error, AssertionError) as error:
                said = str(error).split(":")[0][:80] or type(error).__name__
        seconds.append(None)
        why[said] = why.get(said, 0) + 1
    told = sum(one is not None for one in seconds)
    return {"seconds": seconds, "why": why, "per_s": told / spent_s if spent_s else 0.0}


def _silent() -> logging.Logger:
    logger = logging.Logger("quiet")
    logger.setLevel(logging.CRITICAL)
    return logger


def search(question: Mapping[str, Any]) -> dict[str, Any]:
    """Configurations a second over a seeded sample of the space that its own search goes through.

    As shipped it hands every model a logger that takes all levels, so that records are made of
    every line and thrown away; `quiet_per_s` is with such a logger's level raised.
    """
    from calculon import System
    from calculon.llm import Llm

    root = Path(question["path"])
    system = System(json.loads((root / "systems" / f"{question['system']}.json").read_text()))
    model = Llm.Application(question["application"])
    space = list(_space(question, model, system))
    total = sum(count for _, _, count in space)
    chosen = _sample(space, total, question["num_sampled"], question["seed"])
    seconds, valid = {}, 0
    for name, make in (("shipped", lambda: logging.Logger("sub")), ("quiet", _silent)):
        began_s, valid = time.process_time(), 0
        for words in chosen:
            try:
                one = Llm(model, make())
                one.compile(system, Llm.Execution.from_json(words))
                one.run(system)
                one.get_stats_json(False)
                valid += 1
            except Llm.Error:
                pass
        seconds[name] = time.process_time() - began_s
    return {
        "num_layouts": total,
        "num_sampled": len(chosen),
        "num_valid": valid,
        "shipped_per_s": len(chosen) / seconds["shipped"],
        "quiet_per_s": len(chosen) / seconds["quiet"],
    }


def _space(
    question: Mapping[str, Any], app: Any, system: Any
) -> Iterator[tuple[dict[str, Any], dict[str, list[Any]], int]]:
    """What is settled, what may be chosen with it, and of how many, as its search nests them."""
    from calculon.llm import Llm
    from calculon.llm.optimal_execution import OptimalExecution

    procs, batch = question["num_devices"], question["global_batch_size"]
    nets, both = list(range(system.num_networks)), [True, False]
    for tensor in Llm.get_all_tensor_parallelisms(procs, app.hidden, app.attn_heads):
        for stages in Llm.get_all_pipeline_parallelisms(procs, tensor, app.num_blocks):
            data = Llm.get_data_parallelism(procs, tensor, stages)
            samples = OptimalExecution.get_batch_size(data, batch)
            if samples is None:
                continue
            sizes = list(
                Llm.get_valid_microbatch_sizes(app.seq_size, tensor, data, samples, stages)
            )
            rounds = list(Llm.get_valid_pipeline_interleavings(app.num_blocks, stages))
            for recompute, sent in product(
                ("full", "attn_only", "none"), ("ar", "p2p_rs_ag", "rs_ag")
            ):
                settled = {
                    "num_procs": procs,
                    "tensor_par": tensor,
                    "pipeline_par": stages,
                    "data_par": data,
                    "batch_size": samples,
                    "datatype": "float16",
                    "fused_activation": True,
                    "attention_type": "multihead",
                    "activation_recompute": recompute,
                    "tensor_par_comm_type": sent,
                    "training": True,
                }
                free = {
                    "pipeline_interleaving": rounds,
                    "optimizer_sharding": both if data > 1 else [False],
                    "seq_par_ag_redo": both if Llm.can_redo_ag(sent, recompute) else [False],
                    "data_par_overlap": both if data > 1 else [False],
                    "tensor_par_overlap": ["none", "ring", "pipe"] if tensor > 1 else ["none"],
                    "weight_offload": both,
                    "activations_offload": [False] if recompute == "full" else both,
                    "optimizer_offload": both,
                    "microbatch_size": sizes,
                    "tensor_par_net": nets if tensor > 1 else [0],
                    "pipeline_par_net": nets if stages > 1 else [0],
                    "data_par_net": nets if data > 1 else [0],
                }
                count = 1
                for choices in free.values():
                    count *= len(choices)
                yield settled, free, count


def _sample(
    space: list[tuple[dict[str, Any], dict[str, list[Any]], int]],
    total: int,
    number: int,
    seed: int,
) -> list[dict[str, Any]]:
    """`number` different configurations, each as likely as any other."""
    places = sorted(random.Random(seed).sample(range(total), min(number, total)))
    found, first, parts = [], 0, iter(space)
    settled, free, count = next(parts)
    for place in places:
        while place >= first + count:
            first += count
            settled, free, count = next(parts)
        left, chosen = place - first, dict(settled)
        for name, choices in free.items():
            left, index = divmod(left, len(choices))
            chosen[name] = choices[index]
        found.append(chosen)
    return found


def answers(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a question of either kind."""
    sys.path.insert(0, question["path"])
    return (search if question["task"] == "search" else predict)(question)


if __name__ == "__main__":
    from asked import answer

    answer(answers)
