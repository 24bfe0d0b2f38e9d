"""What corruption costs: every recipe of benchmarks/objectives.py, alone, beside the whole training step of BERT-base.

    python benchmarks/corruption.py                       # 32 x 128 and 8 x 512 on whatever device jax has
    python benchmarks/corruption.py --model bert-tiny --out runs/corruption.json      # minutes on two cores; no page
    python benchmarks/corruption.py --topology v5e:2x2    # what XLA's TPU compiler expects of it; needs no TPU, ten minutes
    python benchmarks/corruption.py --table               # only writes docs/results/corruption.md from what is there

Corruption is the task's own (`PretrainingTask.corrupt`) compiled by itself, of a recipe's mixture on full rows; what ELECTRA's
generator computes is no corruption. The step is that of masked language modelling with next sentences, so a recipe with a
longer step of its own is compared with too short a one. Inside the step, XLA may overlap what is measured apart here.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import provenance  # noqa: E402
from objectives import SIZES, recipes  # noqa: E402

from bert_jax import objectives as available  # noqa: E402
from bert_jax.data.pairs import PairSpec  # noqa: E402
from bert_jax.models.config import preset  # noqa: E402
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask  # noqa: E402
from bert_jax.parallel.mesh import (  # noqa: E402
    MeshConfig,
    batch_sharding,
    make_mesh,
    to_devices,
)
from bert_jax.planning.chips import target  # noqa: E402
from bert_jax.planning.hlo import estimated_cycles  # noqa: E402
from bert_jax.training.optimizer import AdamW, make_optimizer  # noqa: E402
from bert_jax.training.step import abstract_state, init_state, make_train_step  # noqa: E402

RESULTS, PAGE = ROOT / "benchmarks/results/corruption.json", ROOT / "docs/results/corruption.md"
SHAPES = ((32, 128), (8, 512))
TARGET = 0.03

INTRODUCTION = """# What corruption costs

The time of each recipe's corruption, compiled alone, beside the whole training step (MLM and NSP, AdamW, dropout) of {model} in
{dtype}: {device}, {cores} CPU cores, jax {jax}. Target: below 3% of the step. Regenerate with `{command}`.

Operations and bytes are XLA's own estimates (`cost_analysis`) for the compiled corruption; it counts the body of a loop once,
and the choice of words, spans and blocks takes fifteen turns of one. Nothing in these programs exchanges anything with the
host: `tests/objectives/test_on_device.py`. Times are medians of {repeats}.
"""


ESTIMATES = """## What XLA's TPU compiler expects

No TPU was at hand. For a chip of {topology} the compiler (libtpu {libtpu}, jax {jax}) notes the cycles that it expects beside
most of what it has fused or copies; here they are added up, those in loops as often as the loops run, for the corruption alone
and for the whole training step of {model} in bfloat16. It says nothing of some instructions (sorts, some gathers), in the
step as well: these are estimates by a model of the chip, no measurements. Regenerate with
`{command}`.
"""


def batch_of(task: PretrainingTask, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Full rows of random ordinary pieces with whatever else the mixture wants of its data."""
    batch = {}
    for name, like in task.batch_shapes(rows).items():
        if like.dtype == bool:  # three words in four pieces, one word in four going on, a sentence every twenty
            share = {"attention_mask": 1.0, "word_starts": 0.75, "sentence_starts": 0.05}.get(name, 0.25)
            batch[name] = rng.random(like.shape) < share
        elif name in ("input_ids", "context_ids"):
            batch[name] = rng.integers(1000, 30000, like.shape).astype(like.dtype)
        elif name == "position_ids":
            batch[name] = np.broadcast_to(np.arange(like.shape[1], dtype=like.dtype), like.shape)
        else:  # labels of two classes or more, segments, seeds
            batch[name] = rng.integers(0, 2, like.shape).astype(like.dtype)
    batch["input_ids"][:, 0], batch["input_ids"][:, -1] = 2, 3  # [CLS], [SEP] of a task without a store
    return batch


def seconds(run, repeats: int) -> float:
    """Median over ``repeats`` calls, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def step_task(model: str, dtype: str, length: int) -> PretrainingTask:
    """The task whose step is what corruption is compared with."""
    encoder = preset(model, compute_dtype=dtype, vocab_multiple=1024)
    return PretrainingTask(
        Pretraining(encoder, (available.MaskedLM(), available.NextSentence()), PairSpec(length=length)), None
    )


def corruption_task(recipe, length: int, model: str) -> PretrainingTask:
    """The task whose corruption is that of a recipe."""
    encoder = preset(model, **{"with_heads": ("pooler", "mlm", "pair"), "max_length": max(length, 512)} | recipe.encoder)
    return PretrainingTask(Pretraining(encoder, recipe.objectives, recipe.examples), None)


def chosen_recipes(length: int, only: list[str]) -> dict:
    """Those of benchmarks/objectives.py that do not take turns, or ``only`` some."""
    return {name: recipe for name, recipe in recipes(dataclasses.replace(SIZES["cpu"], length=length)).items()
            if not recipe.turns and (not only or name in only)}


def step_seconds(model: str, dtype: str, rows: int, length: int, repeats: int) -> float:
    """The whole update."""
    task, mesh = step_task(model, dtype, length), make_mesh(MeshConfig(data=1), jax.devices()[:1])
    optimizer = make_optimizer(AdamW(), 1_000_000, task.logical_axes())
    abstract = abstract_state(task, optimizer, mesh)
    state = init_state(task, optimizer, abstract, jax.random.key(0))
    step = make_train_step(task, optimizer, mesh, abstract, accumulate=1)
    batch = to_devices(batch_of(task, rows, np.random.default_rng(0)), mesh)

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    with jax.set_mesh(mesh):
        return seconds(run, repeats)


def corruption(recipe, length: int, rows: int, model: str, repeats: int) -> dict:
    """Seconds, operations and bytes of a recipe's corruption."""
    task = corruption_task(recipe, length, model)
    batch = jax.device_put(batch_of(task, rows, np.random.default_rng(0)))
    key, step = jax.random.key(0), jax.numpy.int32(0)
    compiled = jax.jit(task.corrupt).lower(batch, key, step).compile()
    cost = compiled.cost_analysis() or {}
    return {
        "seconds": seconds(lambda: compiled(batch, key, step), repeats),
        "operations": cost.get("flops"), "bytes": cost.get("bytes accessed"),
        "objectives": [type(objective).__name__ for objective in recipe.objectives],
    }


def estimate(model: str, topology: str, only: list[str]) -> dict:
    """What XLA:TPU notes beside the instructions that it compiles for a chip of ``topology``: cycles of the step and of every
    recipe's corruption; and of how many instructions it says nothing."""
    chip = target(topology)
    mesh = make_mesh(MeshConfig(data=1), list(chip.devices[:1]))
    sharding = batch_sharding(mesh)
    found = {"topology": topology, "jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu"), "shapes": {},
             "code": provenance.code(), "command": " ".join(["python benchmarks/corruption.py", *sys.argv[1:]])}

    def row(traced) -> dict:
        with jax.set_mesh(mesh):
            cycles, said, silent = estimated_cycles(traced.lower(lowering_platforms=("tpu",)).compile().as_text())
        return {"cycles": cycles, "instructions": said, "silent": silent}

    def placed(shapes: dict) -> dict:
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for name, x in shapes.items()}

    for rows, length in SHAPES:
        task = step_task(model, "bfloat16", length)
        optimizer = make_optimizer(AdamW(), 1_000_000, task.logical_axes())
        abstract = abstract_state(task, optimizer, mesh)
        step = make_train_step(task, optimizer, mesh, abstract, accumulate=1)
        with jax.set_mesh(mesh):
            whole = row(step.trace(abstract, placed(task.batch_shapes(rows))))
        print(f"{rows} x {length}: step {whole['cycles'] / 1e6:.1f} million cycles", file=sys.stderr, flush=True)
        table = found["shapes"][f"{rows} x {length}"] = {"step": whole, "recipes": {}}
        for name, recipe in chosen_recipes(length, only).items():
            task = corruption_task(recipe, length, model)
            key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=NamedSharding(mesh, PartitionSpec()))
            count = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, PartitionSpec()))
            with jax.set_mesh(mesh):
                one = row(jax.jit(task.corrupt).trace(placed(task.batch_shapes(rows)), key, count))
            table["recipes"][name] = {"what": recipe.what} | one | {"share": one["cycles"] / whole["cycles"]}
            print(f"  {name}: {one['cycles']:,} cycles, {one['cycles'] / whole['cycles']:.2%}", file=sys.stderr, flush=True)
    return found


def measure(model: str, repeats: int, steps: int, only: list[str]) -> dict:
    """All shapes and recipes, each with its share of the step."""
    device = jax.devices()[0]
    dtype = "float32" if device.platform == "cpu" else "bfloat16"
    found = {
        "device": device.device_kind, "platform": device.platform, "machine": platform.machine(), "cores": os.cpu_count(),
        "jax": jax.__version__, "model": model, "dtype": dtype, "repeats": repeats, "steps": steps, "shapes": {},
        "code": provenance.code(), "command": " ".join(["python benchmarks/corruption.py", *sys.argv[1:]]),
    }
    for rows, length in SHAPES:
        chosen = chosen_recipes(length, only)
        missing = set(available.OBJECTIVES) - {type(x) for recipe in chosen.values() for x in recipe.objectives}
        if missing and not only:
            sys.exit(f"benchmarks/objectives.py has no recipe with {', '.join(sorted(kind.__name__ for kind in missing))}")
        whole = step_seconds(model, dtype, rows, length, steps)
        print(f"{rows} x {length}: step {whole * 1e3:.1f} ms", file=sys.stderr, flush=True)
        table = found["shapes"][f"{rows} x {length}"] = {"step_seconds": whole, "recipes": {}}
        for name, recipe in chosen.items():
            row = corruption(recipe, length, rows, model, repeats)
            table["recipes"][name] = {"what": recipe.what} | row | {"share": row["seconds"] / whole}
            print(f"  {name}: {row['seconds'] * 1e3:.2f} ms, {row['seconds'] / whole:.2%}", file=sys.stderr, flush=True)
    return found


def page(found: dict) -> str:
    """The table as Markdown."""
    facts = {key: value for key, value in found.items() if key not in ("shapes", "estimates")}
    lines = [INTRODUCTION.format(**facts)]
    for shape, table in found["shapes"].items():
        lines += [f"## {shape}: step {table['step_seconds'] * 1e3:,.1f} ms", "",
                  "| recipe | corruption ms | of the step | operations, M | bytes, MB |", "|---|---|---|---|---|"]
        for row in table["recipes"].values():
            cost = [f"{row[key] / 1e6:.1f}" if row[key] else "not said" for key in ("operations", "bytes")]
            over = " (over the target)" if row["share"] > TARGET else ""
            lines.append(f"| {row['what']} | {row['seconds'] * 1e3:.2f} | {row['share']:.2%}{over} | {cost[0]} | {cost[1]} |")
        lines.append("")
    if estimates := found.get("estimates"):
        facts = {key: value for key, value in estimates.items() if key != "shapes"}
        lines.append(ESTIMATES.format(**facts, model=found["model"]))
        for shape, table in estimates["shapes"].items():
            whole = table["step"]
            lines += [f"### {shape}: step {whole['cycles'] / 1e6:,.1f} million cycles ({whole['silent']:,} of "
                      f"{whole['silent'] + whole['instructions']:,} instructions without)", "",
                      "| recipe | cycles | of the step | instructions without |", "|---|---|---|---|"]
            for row in table["recipes"].values():
                over = " (over the target)" if row["share"] > TARGET else ""
                lines.append(f"| {row['what']} | {row['cycles']:,} | {row['share']:.2%}{over} | {row['silent']} of "
                             f"{row['silent'] + row['instructions']} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, writes JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base", help="preset whose step is measured")
    parser.add_argument("--repeats", type=int, default=20, help="calls of each corruption")
    parser.add_argument("--steps", type=int, help="training steps measured; default 20, on CPU 2")
    parser.add_argument("--only", nargs="*", default=[], help="names of recipes")
    parser.add_argument("--out", type=Path, help="JSON file to write instead of the published results")
    parser.add_argument("--topology", help="measure nothing: add what XLA's TPU compiler expects, as for v5e:2x2")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.topology:
        found = json.loads(RESULTS.read_text()) | {"estimates": estimate(arguments.model, arguments.topology, arguments.only)}
        (arguments.out or RESULTS).write_text(json.dumps(found, indent=1) + "\n")
        if arguments.out:
            print(page(found))
            return
    elif not arguments.table:
        steps = arguments.steps or (2 if jax.devices()[0].platform == "cpu" else 20)
        found = measure(arguments.model, arguments.repeats, steps, arguments.only)
        (arguments.out or RESULTS).write_text(json.dumps(found, indent=1) + "\n")
        if arguments.out:
            print(page(found))
            return
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
