"""What the tricks of fine-tuning are worth: all-MiniLM-L6-v2 on RTE, MRPC and CoLA, five seeds each, against the plain recipe.

    python benchmarks/tricks.py run --data ../shared/data --dir runs/tricks            # goes on where it was interrupted
    python benchmarks/tricks.py run --data ../shared/data --dir runs/tricks --only mix,lora --tasks RTE
    python benchmarks/tricks.py run --data ../shared/data --dir runs/tricks --size gpu --jobs 12 --deadline 540
    python benchmarks/tricks.py report --dir runs/tricks                               # docs/results/tricks_cpu.md

A task with a seed is a process: it runs the plain recipe and every trick one after another, so that all of them have the
same data order, the same new head where its shape is the same, and about the same neighbours on the machine. Whatever a
trick has of its own is its paper's default, untuned; the last parameters count, and nothing is chosen by the held-out data.

With ``--jobs`` above 1, on a GPU all on that one, a process is a trick on a task with all its seeds, which compile once; times
then mean nothing and are left out. ``--deadline`` ends it all after so many seconds.

``--size cpu`` and ``gpu`` train on all rows, ``gpu`` with fewer shapes to compile, and have pages of their own; ``test`` is a
trial.
"""

import argparse
import dataclasses
import functools
import logging
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes

ROOT = Path(__file__).resolve().parent.parent
START = "all-MiniLM-L6-v2"
TASKS = {"RTE": "accuracy", "MRPC": "f1", "CoLA": "matthews"}
RATE, LORA_RATE, WARM, BATCH, LAYERS = 5e-5, 5e-4, 0.1, 32, 6
SIGNIFICANT = 0.05
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Size:
    """Rows of tasks and of intermediate ones (None: all); epochs; seeds; updates of further pre-training; updates at most
    (None: as many as that takes); held-out batches (None: all); lengths of batches in which examples have rows of their own,
    and of evaluation, at most; tricks (empty: all); tasks."""

    rows: int | None = None
    intermediate: int | None = None
    epochs: int = 3
    seeds: int = 5
    further: int = 100
    steps: int | None = None
    eval_batches: int | None = None
    shapes: int = 4
    tricks: tuple[str, ...] = ()
    tasks: tuple[str, ...] = tuple(TASKS)


SIZES = {
    "cpu": Size(),
    "gpu": Size(shapes=2),  # a GPU's programs take long to compile
    "test": Size(64, 64, 1, 2, 2, 2, 1, 1, ("plain", "mix"), ("RTE",)),
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
    """Their settings for the task."""
    from bert_jax.tasks.freelb import FreeLB

    theirs = {"RTE": FreeLB(3, 0.1), "MRPC": FreeLB(4, 0.03), "CoLA": FreeLB(3, 0.04, 0.05)}
    return task_fields(tricks=(theirs[task],))(experiment, task)


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
    "own": Trick("each example in a row of its own, batches at random", task_fields(packing=False, group_by_length=False)),
    "by_length": Trick("the same, batches of about one length", task_fields(packing=False), against="own"),
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
    "freelb": Trick("FreeLB, 3 steps, on MRPC 4 (Zhu et al. 2020)", freelb),
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

    training, heldout, labels, _ = glue(data, directory)[task]
    training = dataclasses.replace(training, rows=(0, size.rows)) if size.rows else training
    kind = Classification(finetuned_encoder(config, labels), str(start), training, heldout, shapes=size.shapes)
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

    from bert_jax.tasks import Classification, Regression, finetuning_task
    from bert_jax.tasks.base import finetuned_encoder
    from bert_jax.training.experiment import Experiment
    from bert_jax.training.train import train

    if kind == "further":
        return further(task, size, directory, start, model, training)
    work = directory / "begun" / f"{kind}-{seed}"
    if kind == "stsb":
        first, heldout, labels, _ = glue(data, directory)["STS-B"]
        more = {"offset": 2.7, "scale": 1.46}
    else:
        (first, heldout), labels, more = sick(data, directory), ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"), {}
    first = dataclasses.replace(first, rows=(0, size.intermediate)) if size.intermediate else first
    config = (Regression if more else Classification)(
        finetuned_encoder(model.config, labels), str(start), first, heldout, shapes=size.shapes, **more
    )
    experiment = Experiment(config, *settings(len(first.read().labels), seed, size))
    if not train(finetuning_task(config, model), experiment, work).finished:  # a finished one is read again
        sys.exit(processes.CONTINUES)
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


def groups(tasks: list[str], tricks: list[str], seeds: int, jobs: int) -> list[list[str]]:
    """Cells ``TASK-SEED-TRICK`` by process, in order: all tricks of a seed on a task; or with several jobs all seeds of a trick
    on a task, those that begin with an intermediate task on all tasks, which share it, and before the other tricks."""
    grouped: dict[tuple, list[str]] = {}
    slow = {name: TRICKS[name].begin in ("stsb", "sick") for name in tricks}
    for trick in sorted(tricks, key=lambda name: (name != "plain", not slow[name])) if jobs > 1 else tricks:
        for seed in range(seeds):
            for task in tasks:
                if task in TRICKS[trick].tasks:
                    key = (seed, task) if jobs == 1 else (trick,) if slow[trick] else (trick, task)
                    grouped.setdefault(key, []).append(f"{task}-{seed}-{trick}")
    return list(grouped.values())


@functools.lru_cache(maxsize=1)
def prepared(config, init: Path):
    """The task of ``config`` with the model in ``init``: seeds that follow one another share it and what it compiles."""
    from bert_jax.model import load
    from bert_jax.tasks import finetuning_task

    return finetuning_task(config, load(init))


def measure(cell: str, setting: processes.Setting) -> None:
    """Measures a cell, unless it is there."""
    size, data, directory, alone = setting
    path = directory / f"{cell}.json"
    if processes.found(path, dataclasses.asdict(size)):
        return
    import weights

    from bert_jax.model import load
    from bert_jax.training.record import read
    from bert_jax.training.train import train

    logging.basicConfig(format="%(message)s")
    task, seed, name = cell.split("-")
    start, trick = weights.weights_dir() / START, TRICKS[name]
    if not (start / "config.json").exists():
        sys.exit(f"no weights in {start}: python benchmarks/weights.py {START}")
    print(f"{task}, seed {seed}: {trick.what}", flush=True)
    model, init = load(start), start
    base = plain(task, int(seed), size, data, directory, start, model.config)
    experiment = base
    if trick.begin:
        init = begun(trick.begin, task, int(seed), size, data, directory, start, model, base.task.data)
        experiment = task_fields(init=str(init))(experiment, task)
    experiment = trick.change(experiment, task)
    work = directory / "runs" / cell
    result = train(prepared(experiment.task, init), experiment, work)
    if not result.finished:
        sys.exit(processes.CONTINUES)
    speeds = [row["sequences_per_second"] for row in read(work / "metrics.jsonl") if "sequences_per_second" in row]
    found = {
        "size": dataclasses.asdict(size), "task": task, "seed": int(seed), "trick": name, "scores": result.evaluation,
        "rows": len(base.task.data.read().labels), "steps": base.train.steps,
        "seconds_per_update": BATCH / statistics.median(speeds[1:] or speeds),  # compiled in the first window
        "alone": alone, "machine": processes.machine(*PACKAGES),
    }
    processes.keep(path, found)
    shutil.rmtree(work)


def stages(setting: processes.Setting, arguments: argparse.Namespace) -> list[processes.Stage]:
    """What is wanted, in groups; writes a file that all processes read."""
    from objectives import glue

    size = setting.size
    only = processes.chosen(arguments.only, TRICKS) if arguments.only else list(size.tricks or TRICKS)
    tasks = processes.chosen(arguments.tasks, TASKS) if arguments.tasks else list(size.tasks)
    wanted = {*only, *(TRICKS[trick].against for trick in only), "plain"}
    glue(setting.data, setting.directory)
    tricks = [name for name in TRICKS if name in wanted]
    return [processes.Stage(arguments.jobs, groups(tasks, tricks, size.seeds, arguments.jobs))]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="tricks, with commas between; default: all")
    parser.add_argument("--tasks", help="with commas between; default: all three")


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


def report(directory: Path) -> None:
    """Gathers what is there, writes the JSON file, the page and its picture."""
    size_name, measured = processes.gathered(directory, SIZES)
    size, rows = SIZES[size_name], list(measured.values())
    results, page = processes.published("tricks", size_name, directory)
    processes.check_nothing_lost(results, measured)
    page.parent.mkdir(parents=True, exist_ok=True)
    machine = processes.machines(rows)
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
    lines, missing = [], {}
    for task, metric in TASKS.items():
        found = [pairs(task, trick) for trick in TRICKS]
        if not any(found):
            missing[task] = ["everything"]
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
                some = f" ({len(mine)} of {size.seeds} seeds)" if mine else ""
                missing.setdefault(task, []).append(f"{value.what.split(' (')[0]}{some}")
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
            ratios = [a["seconds_per_update"] / b["seconds_per_update"] for a, b in mine if a.get("alone") and b.get("alone")]
            lines.append("| " + " | ".join([*cells, f"{statistics.median(ratios):.2f}" if ratios else "-"]) + " |")
        lines.append("")
    _draw(by, score, page.with_suffix(".png"))
    processes.publish(results, page, measured, INTRODUCTION.format(
        start=START, rate=RATE, batch=BATCH, warm=WARM, epochs=size.epochs, seeds=size.seeds, tests=len(compared),
        significant=SIGNIFICANT, expected=SIGNIFICANT * len(compared), further=size.further,
        rows=f"the first {size.rows:,} rows" if size.rows else "all rows",
        intermediate=f"the first {size.intermediate:,} rows" if size.intermediate else "all rows",
        tables="\n".join(lines).rstrip(), machine=machine, name=page.stem,
        missing="\n\n".join(f"Not measured yet on {task}: {'; '.join(names)}." for task, names in missing.items()),
        size_name=size_name,
    ))


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
to 0, decay 0.01, eps 1e-6, clip 1.0, batch {batch}, dropout 0.1, {epochs} epochs, up to 128 tokens, float32; examples share
rows, batches are random but for having about as many tokens each, as `finetune` has them by default. A trick
changes what it says and nothing else; what it has of its own is its paper's default and was not tuned, nor was anything
chosen by the development sets: the last parameters count.

Scores times 100 on the development sets: mean and standard deviation over {seeds} seeds (head, order, dropout). Seeds are
paired: a trick and what it is compared with have the same seed, thus the same order of examples (but for the two rows about
batches, which deal that order out otherwise) and, where shapes agree, the same new head.
p: two-sided paired t-test over the seeds. Beyond noise: below {significant} by Holm's method over all
{tests} comparisons of this page; "before correction": below {significant} only by itself, of which chance alone gives
about {expected:.1f} among so many. The development sets are small (RTE has 277 pairs: a standard error of some three
points for any model), and that part of the noise no number of seeds shows.

Seconds are the median over seeds of the ratio to the row that the trick is compared with, of the same seed, in the same
process that ran alone (-: several ran side by side); a first stage (STS-B, SICK: {intermediate}, {epochs} epochs; further
pre-training: {further} updates of 32 x 128 tokens) is not in them. The start has no masked-language-model head, so that
further pre-training begins with a new one: what comes of that is no measure of what in-domain pre-training does for a model
that has its head.

![scores]({name}.png)

{tables}

{missing}

Machine: {machine}.

```
python benchmarks/weights.py all-MiniLM-L6-v2
python benchmarks/tricks.py run --data ../shared/data --dir runs/tricks --size {size_name}
python benchmarks/tricks.py report --dir runs/tricks
```
"""


BENCHMARK = processes.Benchmark("tricks", __doc__, SIZES, "glue/ and sts/", stages, measure, report, options)

if __name__ == "__main__":
    processes.main(BENCHMARK)
