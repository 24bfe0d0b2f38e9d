"""How many sequences a chip holds: published sizes x slices x lengths x remat policies, by XLA's own compiler.

    python benchmarks/memory.py                 # goes on where it was interrupted; hours on two cores, no TPU needed
    python benchmarks/memory.py --only bert-large
    python benchmarks/memory.py --table         # only writes docs/results/memory.md from what is there

Each cell is the largest batch for which the whole training step (LAMB, float32 state, bf16 compute, NSP or SOP beside MLM)
compiles within the memory of a chip, and the smallest within 6% of it that XLA refused.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax

from bert_jax.data.pairs import PairSpec
from bert_jax.errors import BertJaxError
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, NextSentence, SentenceOrder
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.parallel.mesh import MeshConfig
from bert_jax.planning.chips import target
from bert_jax.planning.plan import fit
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import Lamb

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/memory.json", ROOT / "docs/results/memory.md"

# In the order in which they are measured: what most people ask first. The other slices hold as much a chip as a single one,
# or more where the state is sharded: two rows show by how much.
SLICES = {"v5e:1x1": 1, "v5e:2x4": 8, "v6e:1x1": 1}  # topology -> mesh.fsdp
PRESETS = ("bert-large", "bert-base", "albert-xxlarge-v2", "albert-base-v2")
LENGTHS = (512, 128)
POLICIES = ("elementwise", "attention", "feed_forward", "full")  # "masks" is for GPUs


INTRODUCTION = """# What fits on a chip

The most sequences that one chip holds at once, found by compiling the whole training step with XLA's TPU compiler (no
TPU is needed and none was used): LAMB, float32 parameters and moments, bf16 compute, dropout as published, MLM with
NSP (ALBERT: SOP), V padded to a multiple of 1,024. XLA refused what is 6% larger, or one more. Regenerate with
`python benchmarks/memory.py`, which goes on where it was interrupted;
[memory.json](../../benchmarks/results/memory.json) has arguments, temporaries, attempts and versions. Larger batches
are made of micro-batches: `train.accumulate`.

What the backward pass computes again: `elementwise` activations, layer norms and dropout masks; `attention` also scores and
probabilities; `feed_forward` also the first product of the feed-forward block; `full` whole layers. The policy is
`task.encoder.remat`. Attention is `xla`, or where the table says so `task.encoder.attention=fused`: a kernel that
keeps scores and probabilities on the chip under every policy (its speed was not measured: no TPU was at hand).
"""


def cells():
    """Topology, its mesh.fsdp, L, preset, remat policy, attention."""
    for topology, fsdp in SLICES.items():
        for length in LENGTHS:
            for name in PRESETS:
                for policy in POLICIES:
                    if topology == "v5e:1x1" or (name == "bert-large" and length == 512):
                        yield topology, fsdp, length, name, policy, "xla"
    for name in ("bert-large", "bert-base"):
        for policy in POLICIES:
            yield "v5e:1x1", 1, 512, name, policy, "fused"


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
    have = {tuple(row[key] for key in ("topology", "length", "preset", "remat", "attention")) for row in done}
    todo = [cell for cell in cells() if (cell[0], *cell[2:]) not in have and (only in (None, cell[3]))]
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
        done.append({
            "topology": topology, "fsdp": fsdp, "length": length, "preset": name, "remat": policy, "attention": attention,
            "jax": jax.__version__,
            "seconds": round(time.monotonic() - began, 1), "attempts": refused, **result,
        })
        RESULTS.write_text(json.dumps(done, indent=1) + "\n")
        table(done)
        took = done[-1]["seconds"]
        said = done[-1].get("error") or done[-1]["per_device"]
        print(f"{number}/{len(todo)} {topology} {name} {length} {policy} {attention}: {said} in {took} s", flush=True)


def table(done: list[dict]) -> None:
    lines = [INTRODUCTION, f"| chips | model | tokens | {' | '.join(POLICIES)} |", "|---" * (3 + len(POLICIES)) + "|"]
    rows: dict[tuple, dict[str, dict]] = {}
    for row in done:
        rows.setdefault((row["topology"], row["fsdp"], row["preset"], row["length"], row["attention"]), {})[row["remat"]] = row
    plain_first = sorted(rows.items(), key=lambda item: (item[0][:4], item[0][4] != "xla"))
    for (topology, fsdp, name, length, attention), by_policy in plain_first:
        numbers = [_cell(by_policy.get(policy)) for policy in POLICIES]
        chips = topology + (f", fsdp {fsdp}" if fsdp > 1 else "")
        model = name + (", fused" if attention == "fused" else "")
        lines.append(f"| {chips} | {model} | {length} | " + " | ".join(numbers) + " |")
    limits = ", ".join(f"{name} {size:.2f} GiB" for name, size in {r["topology"]: r["limit"] / 2**30 for r in done}.items())
    lines += ["", f"Memory of a chip, as XLA says: {limits}.", ""]
    if errors := dict.fromkeys(row["error"] for row in done if "error" in row):
        lines += ["Where the compiler failed, it said (an error of its own, whatever the batch is cut to):", ""]
        lines += [f"    {error}" for error in errors] + [""]
    PAGE.write_text("\n".join(lines))


def _cell(row: dict | None) -> str:
    if row is None:
        return "not measured"
    if "error" in row:
        return "compiler fails"
    return f"{row['per_device']} ({row['peak'] / 2**30:.1f} GiB)" if row["peak"] else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PRESETS, help="one model")
    parser.add_argument("--table", action="store_true", help="do not compile anything")
    arguments = parser.parse_args()
    if not arguments.table:
        measure(arguments.only)
    table(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
