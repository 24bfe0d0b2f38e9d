"""Real checkpoints that nobody here made, read by bert_jax: do the published figures come out, and does PyTorch agree?

  PYTHONPATH=. python benchmarks/checkpoints.py                                      # everything, ten minutes on two cores
  PYTHONPATH=. python benchmarks/checkpoints.py --models rxnmapper rxnfp-pretrained  # under a minute
  PYTHONPATH=. python benchmarks/checkpoints.py --no-pytorch                         # our side alone
  PYTHONPATH=. python benchmarks/checkpoints.py --report docs/results/checkpoints.md # the table of the last run, no new one

Fetches weights that are not there (benchmarks/weights.py). For each figure: what is published, what bert_jax finds, what
PyTorch finds from the same directory, the largest difference of the numbers behind it (embeddings, logits, attentions), and
whether the figure lies within the tolerance. Also converts every checkpoint to Hugging Face's form and compares the bits.
Needs the extra dev; the comparison needs torch, and the atom maps of rxnmapper need rdkit and rxn-chem-utils.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import checkpoints_data as data
import jax
import numpy as np
import provenance
import weights
from rich.console import Console
from rich.progress import Progress

import bert_jax
from bert_jax.convert import hf
from bert_jax.convert.tensors import open_tensors
from bert_jax.embedding.sentence import embed as embed_texts
from bert_jax.errors import BertJaxError
from bert_jax.models import api

RESULTS = Path(__file__).parent / "results" / "checkpoints.json"
COST = RESULTS.with_name("convert.json")  # of benchmarks/convert.py
COMMAND = "PYTHONPATH=. python benchmarks/checkpoints.py"
Report = Callable[[float], object]  # takes the share that is done


@cache
def model_in(folder: Path) -> bert_jax.Model:
    return bert_jax.load(folder)


def embed(folder: Path, texts: list[str], progress: Report) -> np.ndarray:
    """Embeddings [texts, D]; the prompt is in the texts already."""
    model = model_in(folder)
    found = embed_texts(model.params, model.config, model.tokenizer, model.sentence, texts, progress=False)
    progress(1.0)
    return found


def masked_logits(folder: Path, reactions: data.MaskedReactions, progress: Report, batch_size: int = 32) -> np.ndarray:
    """Logits [M, V] at the masked places, row by row."""
    model, logits = model_in(folder), []

    @jax.jit
    def run(params, ids, mask):
        return api.apply(params, model.config, {"input_ids": ids, "attention_mask": mask}).logits["mlm"]

    for i in range(0, len(reactions.labels), batch_size):
        input_ids, attention_mask, labels = (a[i : i + batch_size] for a in reactions)
        logits.append(np.asarray(run(model.params, input_ids, attention_mask == 1))[labels >= 0])
        progress((i + batch_size) / len(reactions.labels))
    return np.concatenate(logits)


def attention(folder: Path, ids: list[int]) -> np.ndarray:
    """The attention [L, L] that rxnmapper reads, of one reaction."""
    model = model_in(folder)
    outputs = api.apply(model.params, model.config, {"input_ids": np.array([ids])}, collect=("attentions",))
    return np.asarray(outputs.collected["attentions"])[data.MAPPER_LAYER, 0, data.MAPPER_HEAD]


# Each yields the figures of a model: what is measured, what is published, how near it must be, and for each of the two sides
# (the figure, the numbers behind it). ``side`` has the three functions above.


def similarities(name: str, sides, progress: Report) -> Iterator[tuple]:
    rows = [row for row in data.SIMILARITIES if row.model == name]
    for done, row in enumerate(rows):
        pairs, gold = data.sts(row.data, weights.data_dir())
        found = []
        for at, side in enumerate(sides):
            share = partial(lambda part, at: progress((done + (at + part) / len(sides)) / len(rows)), at=at)  # noqa: B023
            behind: list[np.ndarray] = []

            def encode(texts: list[str], side=side, behind=behind, share=share) -> np.ndarray:
                behind.append(side.embed(weights.fetch(name), texts, share))
                return behind[0]

            figure = data.spearman(encode, pairs, gold, row.prompt)
            norms = np.linalg.norm(behind[0], axis=1, keepdims=True)
            found.append((figure, behind[0] / norms))
        yield f"Spearman, {row.data} ({len(pairs)} pairs)", row.published, row.tolerance, found


def masked_reactions(name: str, sides, progress: Report) -> Iterator[tuple]:
    folder = weights.fetch(name)
    reactions = data.masked_reactions(data.smiles_vocabulary(folder), weights.data_dir())
    labels = reactions.labels[reactions.labels >= 0]
    logits = [side.masked_logits(folder, reactions, progress) for side in sides]
    scores = [data.masked_scores(found, labels) for found in logits]
    for i, (what, published, tolerance) in enumerate(data.MASKED):
        yield f"{what} ({len(labels)} masks of our own)", published, tolerance, [
            (score[i], found) for score, found in zip(scores, logits, strict=True)
        ]


def confidences(name: str, sides, progress: Report) -> Iterator[tuple]:
    folder, wheel = weights.fetch(name), weights.download(weights.MODELS[name].wheel)
    vocabulary = data.smiles_vocabulary(folder)
    for done, (reaction, published) in enumerate(data.CONFIDENCES.items(), 1):
        shown = data.canonical(reaction, wheel)
        maps = [side.attention(folder, data.smiles_ids(shown, vocabulary)) for side in sides]
        progress(done / len(data.CONFIDENCES))
        yield f"confidence, map {done}", published, data.CONFIDENCE_TOLERANCE, [
            (data.confidence(shown, found, wheel), found) for found in maps
        ]


MEASURES = {"rxnmapper": confidences, "rxnfp-pretrained": masked_reactions} | dict.fromkeys(
    ("paraphrase-MiniLM-L3-v2", "all-MiniLM-L6-v2", "multilingual-e5-small"), similarities
)
ROUND_TRIPS = (*MEASURES, "rxnfp-ft", "rxnfp-classifier")


def round_trip(name: str) -> dict:
    """Hugging Face -> bert_jax -> Hugging Face: which tensors of the original come back as other bits, or not at all."""
    folder = weights.fetch(name)
    before = time.monotonic()
    params, config, origin = hf.load(folder)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        hf.export(params, config, None, out, origin=origin)
        seconds = time.monotonic() - before
        first, second, plan = open_tensors(folder), open_tensors(out), hf.plan(folder)
        spellings = ((key, new) for key in plan.names for new in (key, key.split(".", 1)[-1]))  # with and without the base
        written = {new: plan.names[key] for key, new in spellings if new in second.shapes}
        differ = [new for new, old in written.items() if first.read(old).tobytes() != second.read(new).tobytes()]
        settings = [json.loads((place / "config.json").read_text()) for place in (folder, out)]
    changed = [key for key in settings[0].keys() | settings[1].keys() if settings[0].get(key) != settings[1].get(key)]
    lost = sorted(set(first.shapes) - set(written.values()))
    return {
        "model": name, "family": origin.family, "heads": list(config.with_heads), "parameters": api.count_parameters(config),
        "tensors": len(written), "differ": differ, "not written": lost, "settings changed": sorted(changed),
        "seconds": round(seconds, 2),
    }  # fmt: skip


def measure(models: Sequence[str], pytorch: bool) -> dict:
    sides = [sys.modules[__name__]]
    if pytorch:
        import checkpoints_reference

        sides.append(checkpoints_reference)
    console, rows = Console(stderr=True), []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for name in models:
            task = progress.add_task(name, total=1.0)
            if name not in MEASURES:
                continue
            advance = partial(lambda share, task: progress.update(task, completed=share), task=task)
            for what, published, tolerance, found in MEASURES[name](name, sides, advance):
                ours = found[0]
                row = {"model": name, "figure": what, "published": published, "bert_jax": ours[0], "tolerance": tolerance,
                       "within": bool(abs(ours[0] - published) <= tolerance)}  # fmt: skip
                if len(found) > 1:
                    row |= {"pytorch": found[1][0], "largest difference": float(np.abs(ours[1] - found[1][1]).max())}
                rows.append(row)
    return {
        "command": COMMAND, "code": provenance.code(), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()} | {
            name: sys.modules[name].__version__ for name in ("jax", "numpy", "torch", "transformers") if name in sys.modules
        },
        "figures": rows, "round trips": [round_trip(name) for name in ROUND_TRIPS if name in models],
    }  # fmt: skip


def report(result: dict) -> str:
    """The page of the manual."""
    lines = [
        "# Real checkpoints", "",
        "Weights that nobody here made, read by `bert_jax` and by PyTorch from the same directories, in float32.",
        "Regenerated by", "", "```sh",
        "make weights", f"{COMMAND} --json benchmarks/results/checkpoints.json",
        f"{COMMAND} --report docs/results/checkpoints.md", "```", "",
        f"Machine: {result['machine']}. " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + ".", "",
        "| model | figure | published | bert_jax | PyTorch | largest difference | within |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["figures"]:
        torch = f"{row['pytorch']:.7g}" if "pytorch" in row else "not run"
        difference = f"{row['largest difference']:.1e}" if "pytorch" in row else ""
        within = "yes" if row["within"] else "no"
        lines.append(
            f"| {row['model']} | {row['figure']} | {row['published']:.7g} | {row['bert_jax']:.7g} | {torch} | {difference} | "
            f"{within} ({row['tolerance']:g}) |"
        )
    lines += [
        "", "The largest difference is that of the numbers behind the figure: embeddings of unit length, logits at the masks,",
        "an attention map. The masks behind the published figures of rxnfp are not known; ours are other ones, and the",
        "tolerance is three standard deviations of what two draws of masks differ by (`benchmarks/checkpoints_data.py`).", "",
        "## There and back", "",
        "Hugging Face -> `bert_jax` -> Hugging Face. Not written are copies of tied tensors and constants.", "",
        "| model | family | heads | parameters | tensors | other bits | not written | settings changed | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["round trips"]:
        heads, lost, changed = (", ".join(row[key]) or "none" for key in ("heads", "not written", "settings changed"))
        lines.append(
            f"| {row['model']} | {row['family']} | {heads} | {row['parameters']:,} | {row['tensors']} | {len(row['differ'])} | "
            f"{lost} | {changed} | {row['seconds']} |"
        )
    if COST.is_file():
        lines += _cost(json.loads(COST.read_text()))
    return "\n".join(lines) + "\n"


def _cost(result: dict) -> list[str]:
    """The section on what benchmarks/convert.py measured."""
    size, rounds = result["checkpoint_bytes"], len(next(iter(result["runs"].values()))["seconds"])
    lines = [
        "", "## What converting costs", "",
        f"A random BERT-large, {size / 1e9:.2f} GB of float32, as whole processes, start and imports included; median and",
        f"range of {rounds} rounds that take turns. The aim: 15 seconds, and 1.4 times the size plus 400 MB, which is "
        f"{(1.4 * size + 4e8) / 1e9:.2f} GB.", f"`{result['command']}`, {result['machine']}, python {result['python']}.", "",
        "| conversion | seconds | peak memory, GB |", "|---|---|---|",
    ]
    for name, run in result["runs"].items():
        seconds, peak = sorted(run["seconds"]), max(run["peak_bytes"]) / 1e9
        lines.append(f"| {name} | {seconds[len(seconds) // 2]:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f}) | {peak:.2f} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ROUND_TRIPS), choices=ROUND_TRIPS, metavar="NAME",
                        help=f"which models (default all): {', '.join(ROUND_TRIPS)}")
    parser.add_argument("--no-pytorch", action="store_true", help="leave the comparison with PyTorch out")
    parser.add_argument("--json", type=Path, default=None, help=f"where to write the figures, e.g. {RESULTS.name}")
    parser.add_argument("--report", type=Path, default=None, help="write the page from the last figures instead of measuring")
    options = parser.parse_args(arguments)
    if options.report:
        options.report.write_text(report(json.loads(RESULTS.read_text())))
        return
    try:
        text = json.dumps(measure(options.models, not options.no_pytorch), indent=1)
    except BertJaxError as error:
        sys.exit(f"error: {error}")
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
