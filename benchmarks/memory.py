"""How many sequences a chip holds: published sizes x slices x lengths x remat policies, by XLA's own compiler.

    python benchmarks/memory.py                 # goes on where it was interrupted; hours on two cores, no TPU needed
    python benchmarks/memory.py --only bert-large
    python benchmarks/memory.py --table         # only writes docs/results/memory.md from what is there
    python benchmarks/memory.py --check --only albert-base-v2    # whether what was measured still needs no more memory

Each cell is the largest batch for which the whole training step (LAMB, float32 state, bf16 compute, NSP or SOP beside MLM)
compiles within the memory of a chip, and the smallest within 6% of it that XLA refused. A cell where the compiler failed is
measured again. ``--check`` compiles the batches that were found once more: status 1 where one needs 1% more memory.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import contest
import jax

from bert_jax.config import override
from bert_jax.data.pairs import PairSpec
from bert_jax.errors import BertJaxError
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, NextSentence, SentenceOrder
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.parallel.mesh import MeshConfig
from bert_jax.planning.chips import target
from bert_jax.planning.plan import fit, plan
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import Lamb

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/memory.json", ROOT / "docs/results/memory.md"

# In the order in which they are measured: what most people ask first. The other slices hold as much a chip as a single one,
# or more where the state is sharded: two rows show by how much. v4 has no slice smaller than four chips.
SLICES = {"v5e:1x1": 1, "v5e:2x4": 8, "v6e:1x1": 1, "v4:2x2x1": 4}  # topology -> mesh.fsdp
PRESETS = ("bert-large", "bert-base", "albert-xxlarge-v2", "albert-base-v2")
LENGTHS = (512, 128)
POLICIES = ("elementwise", "attention", "feed_forward", "full")  # "masks" is for GPUs
CELL = ("topology", "fsdp", "length", "preset", "remat", "attention")
GROWTH = 1.01  # of a peak; beyond it a check fails


INTRODUCTION = """# What fits on a chip

The most sequences that one chip holds at once, found by compiling the whole training step with XLA's TPU compiler (no
TPU is needed and none was used): LAMB, float32 parameters and moments, bf16 compute, dropout as published, MLM with
NSP (ALBERT: SOP), V padded to a multiple of 1,024. XLA refused what is 6% larger, or one more. Regenerate with
`python benchmarks/memory.py`, which goes on where it was interrupted;
[memory.json](../../benchmarks/results/memory.json) has arguments, temporaries, attempts and versions. Larger batches
are made of micro-batches: `train.accumulate`.

`python benchmarks/memory.py --check` (with `--only MODEL` a part of it) compiles these batches once more after a change of
the training step, and fails where one needs 1% more memory than here.

What the backward pass computes again: `elementwise` activations, layer norms and dropout masks; `attention` also scores and
probabilities; `feed_forward` also the first product of the feed-forward block; `full` whole layers. The policy is
`task.encoder.remat`. Attention is `xla`, or where the table says so `task.encoder.attention=fused`: a kernel that
keeps scores and probabilities on the chip under every policy (its speed was not measured: no TPU was at hand).
"""


def cells():
    """Rows of :data:`CELL`."""
    for topology, fsdp in SLICES.items():
        for length in LENGTHS:
            for name in PRESETS:
                for policy in POLICIES:
                    if topology == "v5e:1x1" or (name == "bert-large" and length == 512):
                        yield topology, fsdp, length, name, policy, "xla"
    for name in ("bert-large", "bert-base"):
        for policy in POLICIES:
            yield "v5e:1x1", 1, 512, name, policy, "fused"


def cell_of(row: dict) -> tuple:
    return tuple(row[key] for key in CELL)


def experiment(name: str, length: int, fsdp: int, attention: str) -> Experiment:
    albert = name.startswith("albert")
    return Experiment(
        Pretraining(
            preset(name, compute_dtype="bfloat16", vocab_multiple=1024, attention=attention),
            (MaskedLM(), SentenceOrder() if albert else NextSentence()), PairSpec(length, "sop" if albert else "nsp"),
        ),
        Lamb(), mesh=MeshConfig(data=1, fsdp=fsdp),
    )


def measure(only: str | None) -> None:
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    have = {cell_of(row) for row in done if "error" not in row}
    todo = [cell for cell in cells() if cell not in have and only in (None, cell[3])]
    for number, (topology, fsdp, length, name, policy, attention) in enumerate(todo, start=1):
        began, chips = time.monotonic(), target(topology)
        refused = []
        try:
            found = fit(experiment(name, length, fsdp, attention), chips, (policy,), refused.append)[0]
            result = {"per_device": found.per_device} | {
                key: value for key, value in dataclasses.asdict(found.plan).items()
                if key in ("peak", "arguments", "temporaries", "limit", "refusal", "compile_seconds")
            }
        except BertJaxError as error:  # the compiler fails on something else than memory: that is what a user will meet
            result = {"per_device": None, "peak": None, "limit": chips.limit, "error": str(error)}
        cell = topology, fsdp, length, name, policy, attention
        done = [row for row in done if cell_of(row) != cell]
        done.append(dict(zip(CELL, cell, strict=True)) | contest.versions("jax", "libtpu") | {
            "seconds": round(time.monotonic() - began, 1), "attempts": refused, **result,
        })
        RESULTS.write_text(json.dumps(done, indent=1) + "\n")
        table(done)
        took = done[-1]["seconds"]
        said = done[-1].get("error") or done[-1]["per_device"]
        print(f"{number}/{len(todo)} {topology} {name} {length} {policy} {attention}: {said} in {took} s", flush=True)


def check(only: str | None) -> None:
    """Compiles every measured batch again; ends with status 1 where a peak has grown."""
    rows = [row for row in json.loads(RESULTS.read_text()) if row["peak"] and only in (None, row["preset"])]
    now = contest.versions("jax", "libtpu")
    print(f"measured with {versions(rows)}, now {' '.join(f'{name} {version}' for name, version in now.items())}", flush=True)
    worse = 0
    for number, row in enumerate(rows, start=1):
        topology, fsdp, length, name, policy, attention = cell_of(row)
        batch = row["per_device"] * fsdp
        try:
            found = plan(override(experiment(name, length, fsdp, attention), (
                f"task.encoder.remat={policy}", f"train.batch_size={batch}", "train.accumulate=1"
            )), target(topology))
            grown = not found.fits or found.peak > GROWTH * row["peak"]
            said = found.refusal or f"{found.peak / 2**30:.2f} GiB ({found.peak / row['peak'] - 1:+.1%})"
        except BertJaxError as error:
            grown, said = True, str(error)
        worse += grown
        print(f"{number}/{len(rows)} {topology} {name} {length} {policy} {attention}, {row['per_device']} a chip: before "
              f"{row['peak'] / 2**30:.2f} GiB, now {said}{', WORSE' * grown}", flush=True)
    print(f"{worse} of {len(rows)} batches need more memory")
    if worse:
        sys.exit(1)


def versions(rows: list[dict]) -> str:
    """With what they were measured."""
    return " or ".join(sorted({f"jax {row['jax']} libtpu {row.get('libtpu', '(version not recorded)')}" for row in rows}))


def table(done: list[dict]) -> None:
    rows: dict[tuple, dict[str, dict]] = {}
    have = {cell_of(row): row for row in done}
    for cell in dict.fromkeys([*cells(), *have]):
        topology, fsdp, length, name, policy, attention = cell
        rows.setdefault((topology, fsdp, name, length, attention), {})[policy] = have.get(cell)
    plain_first = sorted(rows.items(), key=lambda item: (item[0][:4], item[0][4] != "xla"))

    def lines(show) -> list[str]:
        found = [f"| chips | model | tokens | {' | '.join(POLICIES)} |", "|---" * (3 + len(POLICIES)) + "|"]
        for (topology, fsdp, name, length, attention), by_policy in plain_first:
            chips = topology + (f", fsdp {fsdp}" if fsdp > 1 else "")
            model = name + (", fused" if attention == "fused" else "")
            shown = " | ".join(show(by_policy.get(policy)) for policy in POLICIES)
            found.append(f"| {chips} | {model} | {length} | {shown} |")
        return found

    count = sum(row is not None and "error" not in row for by_policy in rows.values() for row in by_policy.values())
    limits = ", ".join(f"{name} {size:.2f} GiB" for name, size in {r["topology"]: r["limit"] / 2**30 for r in done}.items())
    page = [
        INTRODUCTION, *lines(_cell), "", f"{count} of {len(have | dict.fromkeys(cells()))} cells are measured, with "
        f"{versions(done)}. Memory of a chip, as XLA says: {limits}.", "",
        "How many seconds it took to trace, lower and compile the step with this batch, on two cores that had other work at "
        "times:", "", *lines(_seconds), "",
    ]
    if errors := dict.fromkeys(row["error"] for row in done if "error" in row):
        page += ["Where the compiler failed, it said (an error of its own, whatever the batch is cut to):", ""]
        page += [f"    {error}" for error in errors] + [""]
    PAGE.write_text("\n".join(page))


def _seconds(row: dict | None) -> str:
    return f"{row['compile_seconds']:.0f}" if row and row["peak"] else "-"


def _cell(row: dict | None) -> str:
    if row is None:
        return "not measured"
    if "error" in row:
        return "compiler fails"
    return f"{row['per_device']} ({row['peak'] / 2**30:.1f} GiB)" if row["peak"] else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PRESETS, help="one model")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--table", action="store_true", help="do not compile anything")
    instead.add_argument("--check", action="store_true", help="compile what is measured again: does it need more memory?")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.only)
        return
    if not arguments.table:
        measure(arguments.only)
    table(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
