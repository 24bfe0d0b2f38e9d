"""The real run: a BERT and an ALBERT of equal depth, width, data and updates, pre-trained on public-domain books.

  python benchmarks/books.py run --text books.txt.gz --dir runs/books       # tokenizer, store, both runs side by side
  python benchmarks/books.py report --dir runs/books --out docs/results     # table and curves

``run`` may be interrupted and called again: what is done is kept, the runs continue from their checkpoints. Both models train
at the same time, so that they meet the same machine; the CPU seconds of each are recorded beside the wall time.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("bert", "albert")


def run(text: Path, directory: Path) -> None:
    """Does everything that is not done yet."""
    directory.mkdir(parents=True, exist_ok=True)
    # Large pages for glibc's heap: without them a step on CPU spends a quarter of its time in page faults.
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [sys.executable, "-m", "bert_jax"]
    tokenizer, store = directory / "tokenizer", directory / "store"
    if not tokenizer.exists():
        subprocess.run([*command, "tokenizer", text, "--documents", "formfeed", "--vocab-size", "8192", "--out", tokenizer],
                       check=True, cwd=ROOT)
    if not store.exists():
        subprocess.run([*command, "prepare", text, "--documents", "formfeed", "--heldout", "0.03", "--tokenizer", tokenizer,
                        "--out", store], check=True, cwd=ROOT)
    running = []
    for model in MODELS:
        log = (directory / f"{model}.log").open("a")
        running.append(subprocess.Popen(
            [sys.executable, __file__, "one", "--model", model, "--dir", str(directory)],
            cwd=ROOT, env=environment, stdout=log, stderr=log,
        ))
    if any([process.wait() for process in running]):
        sys.exit("a run failed: see the .log files")


def one(model: str, directory: Path) -> None:
    """One model, with its CPU time and wall time appended to usage.jsonl."""
    started = time.time()
    status = subprocess.run(
        [sys.executable, "-m", "bert_jax", "pretrain", "--config", f"configs/pretrain/{model}_books.py",
         "--data", directory / "store", "--workdir", directory / model], cwd=ROOT
    ).returncode
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (directory / "usage.jsonl").open("a") as file:
        file.write(json.dumps({
            "model": model, "status": status, "wall_seconds": round(time.time() - started, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_mb": usage.ru_maxrss // 1024,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }) + "\n")
    sys.exit(status)


def report(directory: Path, out: Path) -> None:
    """Writes books.md and books.png from what the runs recorded, measuring the final checkpoints on all held-out text."""
    from bert_jax import config
    from bert_jax.models import api
    from bert_jax.training.experiment import Experiment
    from bert_jax.training.pretrain import evaluate_checkpoint
    from bert_jax.training.record import read

    usage = {}
    for line in (directory / "usage.jsonl").read_text().splitlines():
        row = json.loads(line)
        total = usage.setdefault(row["model"], {"wall_seconds": 0.0, "cpu_seconds": 0.0, "machine": row["machine"]})
        total["wall_seconds"] += row["wall_seconds"]
        total["cpu_seconds"] += row["cpu_seconds"]
    table, histories = {}, {}
    for model in MODELS:
        experiment = config.load(Experiment, directory / model / "experiment.json")
        rows = histories[model] = read(directory / model / "metrics.jsonl")
        final = evaluate_checkpoint(str(directory / model), directory / "store", 64, None)
        settings = experiment.train
        speeds = [row["sequences_per_second"] for row in rows if "sequences_per_second" in row]
        pair = "nsp" if "nsp_accuracy" in final else "sop"
        table[model] = {
            "parameters": f"{api.count_parameters(experiment.task.encoder):,}",
            "updates x batch x length": f"{settings.steps:,} x {settings.batch_size} x {experiment.task.examples.length}",
            "held-out MLM loss (nats)": f"{final['mlm_loss']:.3f}",
            "held-out MLM accuracy": f"{final['mlm_accuracy']:.4f}",
            "always the most frequent piece": f"{final['mlm_majority_baseline']:.4f}",
            "held-out pair accuracy": f"{pair.upper()} {final[pair + '_accuracy']:.4f}",
            "wall minutes": f"{usage[model]['wall_seconds'] / 60:.1f}",
            "CPU minutes": f"{usage[model]['cpu_seconds'] / 60:.1f}",
            "sequences a second, median": f"{statistics.median(speeds):.1f}",
        }
    out.mkdir(parents=True, exist_ok=True)
    _draw(histories, out / "books.png")
    for model, rows in histories.items():
        curve = [row for row in rows if row["kind"] == "eval"]
        (out / f"books_{model}.json").write_text(json.dumps(curve, indent=1) + "\n")
    lines = ["| | BERT | ALBERT |", "|---|---|---|"]
    lines += [f"| {name} | {table['bert'][name]} | {table['albert'][name]} |" for name in table["bert"]]
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("jax", "jaxlib", "flax", "optax", "numpy"))
    machine = f"{usage['bert']['machine']}, float32, Python {platform.python_version()}, {versions}"
    (out / "books.md").write_text(REPORT.format(table="\n".join(lines), machine=machine))
    print(out / "books.md")


def _draw(histories: dict[str, list[dict]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4))
    panels = (("mlm_loss", "MLM loss, nats"), ("mlm_accuracy", "MLM accuracy"), ("pair", "NSP / SOP accuracy"))
    for panel, (name, title) in zip(axes, panels, strict=True):
        for colour, (model, rows) in zip(("C0", "C1"), histories.items(), strict=True):
            key = name if name != "pair" else ("nsp_accuracy" if model == "bert" else "sop_accuracy")
            for kind, style in (("train", {"alpha": 0.35, "linewidth": 1}), ("eval", {"marker": "o", "markersize": 3})):
                points = [(row["step"], row[key]) for row in rows if row["kind"] == kind and key in row]
                label = {"bert": "BERT", "albert": "ALBERT"}[model] + (", held out" if kind == "eval" else ", training")
                panel.plot(*zip(*points, strict=True), color=colour, label=label, **style)
        panel.set(title=title, xlabel="update")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


REPORT = """# A BERT and an ALBERT on public-domain books

Equal depth (4), width (128), feed-forward (512), data, tokenizer, batch and number of updates; a layer costs both the same
compute, ALBERT's vocabulary product is half as wide. BERT: 15% single pieces, NSP, dropout 0.1. ALBERT: E = 64, shared
layers, n-gram masks of whole words, SOP, no dropout. Predicting whole words and n-grams is the harder task, so the two MLM
columns are not a contest. One seed each (0); no deviation can be given for one run.

{table}

![curves](books.png)

Machine: {machine}.
Both runs shared two cores with each other and with other work, so the wall time is an upper bound and the sequences a second
are lower ones; CPU minutes are each run's own. Data: 109 English books, 14.5 M pieces, 3 books held out (374,047 pieces);
every held-out pair is used in every evaluation, with the same masks. The curves' numbers are in `books_bert.json` and
`books_albert.json`.

```
python benchmarks/books.py run --text books.txt.gz --dir runs/books
python benchmarks/books.py report --dir runs/books --out docs/results
```
"""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name in ("run", "one", "report"):
        sub = commands.add_parser(name)
        sub.add_argument("--dir", type=Path, default=Path("runs/books"), help="folder of tokenizer, store and work directories")
        if name == "run":
            sub.add_argument("--text", type=Path, required=True, help="books, separated by form feeds")
        if name == "one":
            sub.add_argument("--model", choices=MODELS, required=True)
        if name == "report":
            sub.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder for books.md and pictures")
    arguments = parser.parse_args()
    directory = arguments.dir.resolve()
    if arguments.command == "run":
        run(arguments.text.resolve(), directory)
    elif arguments.command == "one":
        one(arguments.model, directory)
    else:
        report(directory, arguments.out)


if __name__ == "__main__":
    main()
