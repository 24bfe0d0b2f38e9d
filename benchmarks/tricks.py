"""What the tricks of fine-tuning are worth: all-MiniLM-L6-v2 on RTE, MRPC and CoLA, five seeds each, against the plain recipe.

    python benchmarks/tricks.py run --data ../shared/data --dir runs/tricks            # goes on where it was interrupted
    python benchmarks/tricks.py run --data ../shared/data --dir runs/tricks --only mix,lora --tasks RTE
    python benchmarks/tricks.py report --dir runs/tricks                               # docs/results/tricks.md

A task with a seed is a process: it runs the plain recipe and every trick one after another, so that all of them have the
same data order, the same new head where its shape is the same, and about the same neighbours on the machine. Whatever a
trick has of its own is its paper's default, untuned; the last parameters count, and nothing is chosen by the held-out data.

``--size cpu`` trains on the first 1,000 rows of RTE and MRPC and 2,000 of CoLA; ``full`` on all; ``gpu`` for ten epochs on
all.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/tricks.json", ROOT / "docs/results/tricks.md"
START = "all-MiniLM-L6-v2"
TASKS = {"RTE": "accuracy", "MRPC": "f1", "CoLA": "matthews"}
RATE, LORA_RATE, WARM, BATCH, LAYERS = 5e-5, 5e-4, 0.1, 32, 6
SIGNIFICANT = 0.05


@dataclasses.dataclass(frozen=True)
class Size:
    """Rows of RTE, MRPC, CoLA and of intermediate tasks (None: all); epochs; seeds; updates at most (None: as many as that
    takes); updates of further pre-training; held-out batches (None: all); lengths of batches at most; tricks (empty: all);
    tasks."""

    rows: tuple[int | None, ...]
    intermediate: int | None
    epochs: int
    seeds: int
    further: int
    steps: int | None = None
    eval_batches: int | None = None
    shapes: int = 16
    tricks: tuple[str, ...] = ()
    tasks: tuple[str, ...] = tuple(TASKS)


SIZES = {
    "cpu": Size((1_000, 1_000, 2_000), 2_000, 3, 5, 100),
    "full": Size((None, None, None), None, 3, 5, 300),
    "gpu": Size((None, None, None), None, 10, 5, 1_000),
    "test": Size((64, 64, 64), 64, 1, 1, 2, 2, 1, 1, ("plain", "mix"), ("RTE",)),
}


@dataclasses.dataclass(frozen=True)
class Trick:
    """A row of the table.

    Attributes:
      what: its words. change: an experiment -> the same with the trick. begin: what it begins with instead of the start:
        ``stsb`` and ``sick``, intermediate tasks; ``further``, pre-trained on the task's own text. against: the row that it is
        compared with. tasks: those that it can change.
    """

    what: str
    change: Callable = lambda experiment, task: experiment
    begin: str | None = None
    against: str = "plain"
    tasks: tuple[str, ...] = tuple(TASKS)


def encoder(**changes) -> Callable:
    """A change of fields of the encoder."""
    return lambda experiment, _: dataclasses.replace(
        experiment, task=dataclasses.replace(experiment.task, encoder=dataclasses.replace(experiment.task.encoder, **changes))
    )


def task_fields(**changes) -> Callable:
    """A change of fields of the task."""
    return lambda experiment, _: dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, **changes))


def optimizer(**changes) -> Callable:
    """A change of fields of the optimiser."""
    return lambda experiment, _: dataclasses.replace(
        experiment, optimizer=dataclasses.replace(experiment.optimizer, **changes)
    )


def lora(experiment, task: str):
    """Rank 8, with a learning rate ten times as high: their table 9 has 4e-4 and 5e-4 for RoBERTa-base, against some 1e-5."""
    return optimizer(learning_rate=LORA_RATE)(encoder(lora_rank=8)(experiment, task), task)


def gradual(experiment, task: str):
    """A layer more every fourteenth of the run: all are trained from its middle on."""
    return optimizer(unfreeze_every=max(1, experiment.train.steps // (2 * (LAYERS + 1))))(experiment, task)


def freelb(experiment, task: str):
    """Their settings for RTE."""
    from bert_jax.tasks.freelb import FreeLB

    return task_fields(tricks=(FreeLB(),))(experiment, task)


def smart(experiment, task: str):
    """The paper's algorithm and radius."""
    from bert_jax.tasks.smart import Smart

    return task_fields(tricks=(Smart(),))(experiment, task)


def smart_code(experiment, task: str):
    """As the authors' code has it: no proximal term, a perturbation as large as embeddings."""
    from bert_jax.tasks.smart import Smart

    return task_fields(tricks=(Smart(proximity=0.0, ascent="normalised", radius=1.0),))(experiment, task)


def mixout(experiment, task: str):
    """In place of dropout of hidden states, as in their code."""
    from bert_jax.tasks.mixout import Mixout

    return encoder(dropout=0.0)(task_fields(tricks=(Mixout(),))(experiment, task), task)


TRICKS = {
    "plain": Trick("plain recipe"),
    "no_correction": Trick("without bias correction (counter-check)", optimizer(bias_correction=False)),
    "mix": Trick("learned mix of all layers (Peters et al. 2018)", encoder(read_layers=tuple(range(1, LAYERS + 1)))),
    "concatenate": Trick("last four layers side by side, new pooler (Devlin et al. 2019)",
                         encoder(read_layers=(3, 4, 5, 6), combine="concatenate")),
    "earlier": Trick("layer 4 of 6 alone", encoder(read_layers=(4,))),
    "stsb": Trick("STS-B first", begin="stsb"),
    "sick": Trick("SICK's entailment first", begin="sick"),
    "further": Trick("pre-trained further on the task's text (new MLM head)", begin="further"),
    "layer_decay": Trick("layer-wise rates, 0.8 (Clark et al. 2020)", optimizer(layer_decay=0.8)),
    "layer_decay_95": Trick("layer-wise rates, 0.95 (Sun et al. 2019)", optimizer(layer_decay=0.95)),
    "reinitialise": Trick("top layer and pooler new (Zhang et al. 2021)", task_fields(reinitialise=1)),
    "reinitialise_2": Trick("top two layers and pooler new", task_fields(reinitialise=2)),
    "gradual": Trick("gradual unfreezing until the middle of the run (Howard and Ruder 2018)", gradual),
    "lora": Trick(f"LoRA, rank 8, rate {LORA_RATE:g} (Hu et al. 2021)", lora),
    "freelb": Trick("FreeLB, 3 steps (Zhu et al. 2020)", freelb),
    "smart": Trick("SMART, radius 1e-5, with the proximal term (Jiang et al. 2020)", smart),
    "smart_code": Trick("SMART as in its authors' code, radius 1", smart_code),
    "mixout": Trick("mixout, p 0.9, for dropout (Lee et al. 2020)", mixout),
    "balanced": Trick("labels weighted by their rarity", task_fields(balanced=True)),
    "focal": Trick("focal loss, gamma 2 (Lin et al. 2017)", task_fields(focal=2.0)),
    "short": Trick("64 tokens: starts of texts", task_fields(lengths=(64,)), tasks=("RTE", "MRPC")),
    "head_tail": Trick("64 tokens: starts and ends (Sun et al. 2019)", task_fields(lengths=(64,), truncate="both"),
                       against="short", tasks=("RTE", "MRPC")),
}


def plain(task: str, seed: int, size: Size, data: Path, directory: Path, start: Path, config):
    """The experiment that every trick changes."""
    from objectives import glue

    from bert_jax.tasks import Classification
    from bert_jax.tasks.base import finetuned_encoder
    from bert_jax.training.experiment import Experiment

    training, heldout, labels, _, _ = glue(data, directory)[task]
    rows = dict(zip(TASKS, size.rows, strict=True))[task]
    training = dataclasses.replace(training, rows=(0, rows)) if rows else training
    kind = Classification(finetuned_encoder(config, labels), str(start), training, heldout, (128,), size.shapes)
    return Experiment(kind, *settings(len(training.read().labels), seed, size))


def settings(count: int, seed: int, size: Size):
    """Optimiser and schedule for ``count`` examples."""
    from bert_jax.training.experiment import TrainConfig
    from bert_jax.training.optimizer import AdamW

    steps = max(2, count * size.epochs // BATCH)
    steps = min(steps, size.steps) if size.steps else steps
    return AdamW(learning_rate=RATE, warmup_steps=int(WARM * steps), bias_correction=True), TrainConfig(
        steps=steps, batch_size=BATCH, eval_every=steps, save_every=steps, log_every=max(1, min(50, steps // 6)),
        eval_batches=size.eval_batches, eval_batch_size=64, keep=1, seed=seed,
    )


def sick(data: Path, directory: Path):
    """SICK's training and trial pairs and their entailment, as tables."""
    from bert_jax.tasks.tables import Table

    folder = data / "sts/sick"
    tables = []
    for name in ("SICK_train", "SICK_trial"):
        copy = directory / f"{name}.tsv"
        if not copy.exists():
            partial = copy.with_suffix(f".{os.getpid()}")
            shutil.copyfile(folder / f"{name}.txt", partial)
            partial.replace(copy)
        tables.append(Table(str(copy), ("sentence_A", "sentence_B"), "entailment_judgment"))
    return tables


def begun(kind: str, task: str, seed: int, size: Size, data: Path, directory: Path, start: Path, model, training) -> Path:
    """The work directory of what is done before the task: an intermediate task, once a seed for all tasks, or further
    pre-training, once a task for all seeds."""
    from objectives import glue

    from bert_jax.tasks import Classification, Regression
    from bert_jax.tasks.base import finetuned_encoder
    from bert_jax.training.experiment import Experiment
    from bert_jax.training.finetune import finetune

    if kind == "further":
        return further(task, size, directory, start, model, training)
    work = directory / "begun" / f"{kind}-{seed}"
    if kind == "stsb":
        first, heldout, labels, _, _ = glue(data, directory)["STS-B"]
        more = {"offset": 2.7, "scale": 1.46}
    else:
        (first, heldout), labels, more = sick(data, directory), ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"), {}
    first = dataclasses.replace(first, rows=(0, size.intermediate)) if size.intermediate else first
    config = (Regression if more else Classification)(
        finetuned_encoder(model.config, labels), str(start), first, heldout, (128,), size.shapes, **more
    )
    finetune(Experiment(config, *settings(len(first.read().labels), seed, size)), work, model)  # a finished one is read again
    return work


def further(task: str, size: Size, directory: Path, start: Path, model, training) -> Path:
    """Masked language modelling on the texts that are trained on, with a head that begins anew: the start has none."""
    from bert_jax.data.streams import Streams
    from bert_jax.objectives import MaskedLM
    from bert_jax.objectives.pretraining import Pretraining
    from bert_jax.training.experiment import Experiment, TrainConfig
    from bert_jax.training.optimizer import AdamW
    from bert_jax.training.pretrain import pretrain

    work, text, store = (directory / "begun" / f"further-{task}{end}" for end in ("", ".txt", "-store"))
    text.parent.mkdir(parents=True, exist_ok=True)
    if not store.exists():
        lines = dict.fromkeys(sentence for texts in training.read().texts for sentence in texts)
        text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "bert_jax", "prepare", text, "--documents", "line", "--sentences", "line",
                        "--tokenizer", start, "--heldout", "0.05", "--out", store], check=True, cwd=ROOT)
    config = dataclasses.replace(model.config, with_heads=("pooler", "mlm"))
    steps = size.further
    pretrain(
        Experiment(
            Pretraining(config, (MaskedLM(),), Streams(length=128), init=str(start)),
            AdamW(learning_rate=RATE, warmup_steps=steps // 10, bias_correction=True),
            TrainConfig(
                steps=steps, batch_size=BATCH, eval_every=steps, save_every=steps, log_every=max(1, steps // 6), keep=1
            ),
        ), store, work,
    )
    return work


def one(task: str, seed: int, size_name: str, tricks: list[str], data: Path, directory: Path) -> None:
    """Every trick on a task with a seed that is not there yet; the plain recipe first."""
    import weights

    from bert_jax.model import load
    from bert_jax.training.finetune import finetune
    from bert_jax.training.record import read

    logging.basicConfig(format="%(message)s")
    size, start = SIZES[size_name], weights.weights_dir() / START
    if not (start / "config.json").exists():
        sys.exit(f"no weights in {start}: python benchmarks/weights.py {START}")
    model = load(start)
    base = plain(task, seed, size, data, directory, start, model.config)
    for name in tricks:
        trick, path = TRICKS[name], directory / f"{task}-{seed}-{name}.json"
        if path.exists() or task not in trick.tasks:
            continue
        print(f"{task}, seed {seed}: {trick.what}", flush=True)
        experiment, loaded = base, model
        if trick.begin:
            before = begun(trick.begin, task, seed, size, data, directory, start, model, base.task.data)
            loaded = load(before)
            experiment = task_fields(init=str(before))(experiment, task)
        experiment = trick.change(experiment, task)
        work = directory / "runs" / f"{task}-{seed}-{name}"
        scores = finetune(experiment, work, loaded)
        speeds = [row["sequences_per_second"] for row in read(work / "metrics.jsonl") if "sequences_per_second" in row]
        found = {
            "size": dataclasses.asdict(size), "task": task, "seed": seed, "trick": name, "scores": scores,
            "rows": len(base.task.data.read().labels), "steps": base.train.steps,
            "seconds_per_update": BATCH / statistics.median(speeds[1:] or speeds),  # compiled in the first window
        }
        path.with_suffix(".new").write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".new").replace(path)
        shutil.rmtree(work)


def run(data: Path, directory: Path, size_name: str, only: list[str] | None, tasks: list[str]) -> None:
    """Every task with every seed in a process of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    for given, known in ((only or [], TRICKS), (tasks, TASKS)):
        if unknown := set(given) - set(known):
            sys.exit(f"{', '.join(sorted(unknown))}: not there; there are {', '.join(known)}")
    only = only or list(SIZES[size_name].tricks or TRICKS)
    wanted = {*only, *(TRICKS[trick].against for trick in only), "plain"}
    chosen = [name for name in TRICKS if name in wanted]
    environment = os.environ | {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
        "PYTHONPATH": str(ROOT),
    }
    for seed in range(SIZES[size_name].seeds):
        for task in tasks:
            done = subprocess.run(
                [sys.executable, __file__, "one", "--task", task, "--seed", str(seed), "--tricks", ",".join(chosen), "--data",
                 str(data), "--dir", str(directory), "--size", size_name], cwd=ROOT, env=environment,
            )
            if done.returncode:
                sys.exit(f"{task}, seed {seed}, ended with status {done.returncode}; the same command continues")


def compare(scores: list[float], base: list[float]) -> tuple[float, float]:
    """The mean difference of paired scores, and the p of a two-sided paired t-test; 1 where nothing differs."""
    from scipy import stats

    differences = [a - b for a, b in zip(scores, base, strict=True)]
    if len(differences) < 2 or max(differences) == min(differences):
        return statistics.mean(differences), 1.0 if not any(differences) or len(differences) < 2 else 0.0
    return statistics.mean(differences), float(stats.ttest_rel(scores, base).pvalue)


def holm(p: dict) -> set:
    """The keys whose p stays below ``SIGNIFICANT`` by Holm's method: the smallest times all, the next times one less, ..."""
    kept = set()
    for number, key in enumerate(sorted(p, key=p.get)):
        if p[key] * (len(p) - number) >= SIGNIFICANT:
            break
        kept.add(key)
    return kept


def report(directory: Path, results: Path, page: Path) -> None:
    """Gathers what is there, writes the JSON file, the page and its picture."""
    rows = [json.loads(path.read_text()) for path in sorted(directory.glob("*-*-*.json"))]
    if len({json.dumps(row["size"]) for row in rows}) != 1:
        sys.exit(f"{directory} holds no results, or those of several sizes: one is needed")
    size = Size(**rows[0]["size"])
    machine = f"{platform.machine()}, {os.cpu_count()} cores, float32, Python {platform.python_version()}, " + ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    )
    results.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    by = {(row["task"], row["trick"], row["seed"]): row for row in rows}

    def pairs(task: str, trick: str) -> list[tuple[dict, dict]]:
        """Rows of a trick and of what it is compared with, by seed."""
        against = TRICKS[trick].against
        seeds = sorted(seed for name, which, seed in by if (name, which) == (task, trick) and (task, against, seed) in by)
        return [(by[task, trick, seed], by[task, against, seed]) for seed in seeds]

    def score(row: dict) -> float:
        return 100 * row["scores"][TASKS[row["task"]]]

    compared = {}
    for task in TASKS:
        for trick in TRICKS:
            if trick != "plain" and len(found := pairs(task, trick)) > 1:
                compared[task, trick] = compare([score(a) for a, _ in found], [score(b) for _, b in found])
    corrected = holm({key: p for key, (_, p) in compared.items()})
    lines, missing = [], []
    for task, metric in TASKS.items():
        found = [pairs(task, trick) for trick in TRICKS]
        if not any(found):
            missing.append(task)
            continue
        first = next(rows for rows in found if rows)[0][0]
        lines += [f"## {task}: {metric}, {first['rows']:,} rows, {first['steps']:,} updates", "",
                  "| | mean | each seed | against | difference | p | beyond noise | seconds of an update, relative |",
                  "|---" * 8 + "|"]
        for trick, value in TRICKS.items():
            mine = pairs(task, trick)
            if task not in value.tasks:
                continue
            if len(mine) < size.seeds:
                missing.append(f"{value.what} on {task} ({len(mine)} of {size.seeds} seeds)")
            if not mine:
                continue
            scores = [score(row) for row, _ in mine]
            spread = f"{statistics.mean(scores):.2f}" + (f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else "")
            cells = [value.what, spread, " ".join(f"{one_:.1f}" for one_ in scores)]
            if (task, trick) in compared:
                difference, p = compared[task, trick]
                verdict = "**yes**" if (task, trick) in corrected else "before correction" if p < SIGNIFICANT else "no"
                cells += [TRICKS[value.against].what, f"{difference:+.2f}", f"{p:.3f}", verdict]
            else:
                cells += ["", "", "", ""]
            ratio = statistics.median(a["seconds_per_update"] / b["seconds_per_update"] for a, b in mine)
            lines.append("| " + " | ".join([*cells, f"{ratio:.2f}"]) + " |")
        lines.append("")
    _draw(by, score, page.with_suffix(".png"))
    page.write_text(INTRODUCTION.format(
        start=START, rate=RATE, batch=BATCH, warm=WARM, epochs=size.epochs, seeds=size.seeds, tests=len(compared),
        significant=SIGNIFICANT, expected=SIGNIFICANT * len(compared), further=size.further,
        rows="the first " + ", ".join(f"{n:,} rows of {task}" for task, n in zip(TASKS, size.rows, strict=True))
        if size.rows[0] else "all",
        intermediate=f"the first {size.intermediate:,} rows" if size.intermediate else "all rows",
        tables="\n".join(lines).rstrip(), machine=machine, name=page.stem,
        missing=f"Not measured yet: {'; '.join(missing)}." if missing else "",
    ))
    print(page)


def _draw(by: dict, score: Callable[[dict], float], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in TRICKS if any(trick == name for _, trick, _ in by)]
    figure, axes = pyplot.subplots(1, len(TASKS), figsize=(4 * len(TASKS) + 2, 1.2 + 0.28 * len(names)), sharey=True)
    for panel, task in zip(axes, TASKS, strict=True):
        for place, name in enumerate(names):
            scores = [score(row) for (which, trick, _), row in by.items() if (which, trick) == (task, name)]
            if scores:
                panel.plot(scores, [place] * len(scores), "o", color="C0", alpha=0.4, markersize=4)
                panel.plot(statistics.mean(scores), place, "|", color="C1", markersize=14, markeredgewidth=2)
            if scores and name == "plain":
                panel.axvline(statistics.mean(scores), color="k", linewidth=0.6)
        panel.set(title=f"{task}, {TASKS[task]}")
        panel.grid(alpha=0.3)
    axes[0].set_yticks(range(len(names)), [TRICKS[name].what for name in names], fontsize=8)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)


INTRODUCTION = """# Tricks of fine-tuning

{start} (6 layers, D 384) on RTE, MRPC and CoLA (trained on: {rows}; both development sets of CoLA), the plain recipe and
each trick alone. Plain: AdamW with bias correction, rate {rate:g}, warm-up over {warm:.0%} of the updates, then linearly
to 0, decay 0.01, eps 1e-6, clip 1.0, batch {batch}, dropout 0.1, {epochs} epochs, up to 128 tokens, float32. A trick
changes what it says and nothing else; what it has of its own is its paper's default and was not tuned, nor was anything
chosen by the development sets: the last parameters count.

Scores times 100 on the development sets: mean and standard deviation over {seeds} seeds (head, order, dropout). Seeds are
paired: a trick and what it is compared with have the same seed, thus the same order of examples and, where shapes agree,
the same new head. p: two-sided paired t-test over the seeds. Beyond noise: below {significant} by Holm's method over all
{tests} comparisons of this page; "before correction": below {significant} only by itself, of which chance alone gives
about {expected:.1f} among so many. The development sets are small (RTE has 277 pairs: a standard error of some three
points for any model), and that part of the noise no number of seeds shows.

Seconds are the median over seeds of the ratio to the row that the trick is compared with, of the same seed, in the same
process; a first stage (STS-B, SICK: {intermediate}, {epochs} epochs; further pre-training: {further} updates of 32 x 128
tokens) is not in them. The start has no masked-language-model head, so that further pre-training begins with a new one:
what comes of that is no measure of what in-domain pre-training does for a model that has its head.

![scores]({name}.png)

{tables}

{missing}

Machine: {machine}.

```
python benchmarks/weights.py all-MiniLM-L6-v2
python benchmarks/tricks.py run --data ../shared/data --dir runs/tricks
python benchmarks/tricks.py report --dir runs/tricks
```
"""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name in ("run", "one", "report"):
        sub = commands.add_parser(name)
        sub.add_argument("--dir", type=Path, default=Path("runs/tricks"), help="folder of runs and their results")
        if name == "report":
            sub.add_argument("--results", type=Path, default=RESULTS, help="JSON file to write")
            sub.add_argument("--page", type=Path, default=PAGE, help="page to write, its picture beside it")
        else:
            sub.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder with glue/ and sts/")
            sub.add_argument("--size", choices=SIZES, default="cpu")
        if name == "run":
            sub.add_argument("--only", help="tricks, with commas between; default: all")
            sub.add_argument("--tasks", help="with commas between; default: all three")
        if name == "one":
            sub.add_argument("--task", choices=TASKS, required=True)
            sub.add_argument("--seed", type=int, required=True)
            sub.add_argument("--tricks", required=True)
    arguments = parser.parse_args()
    directory = arguments.dir.resolve()
    if arguments.command == "report":
        report(directory, arguments.results, arguments.page)
    elif arguments.command == "run":
        only = arguments.only.split(",") if arguments.only else None
        tasks = arguments.tasks.split(",") if arguments.tasks else list(SIZES[arguments.size].tasks)
        run(arguments.data.resolve(), directory, arguments.size, only, tasks)
    else:
        one(arguments.task, arguments.seed, arguments.size, arguments.tricks.split(","), arguments.data.resolve(), directory)


if __name__ == "__main__":
    main()
