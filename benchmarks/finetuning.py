"""Fine-tuning all-MiniLM-L6-v2 here and with transformers' own Trainer in PyTorch: scores over seeds, seconds, memory.

    python benchmarks/finetuning.py run --data ../shared/data --dir runs/finetuning          # goes on where it was interrupted
    python benchmarks/finetuning.py run --data ../shared/data --dir runs/finetuning --only speed,RTE
    python benchmarks/finetuning.py run --data ../shared/data --dir runs/finetuning --size gpu --jobs 8 --deadline 540
    python benchmarks/finetuning.py report --dir runs/finetuning                             # docs/results/finetuning_cpu.md

Every cell (a task, a seed, a side) is a process of its own, and the sides take turns, so that a busy machine is as unkind
to one as to the other. Both have the same token ids, labels, hyper-parameters, number of updates and float32, in products of
matrices as well; the Trainer groups sentences by length and pads a batch to its longest one, here they share rows, or where
they cannot (questions) are padded to one of a few lengths. Both
are scored by the same code on the same batches, with the last parameters: nothing is chosen by the held-out data. ``speed`` is
about time: three rounds of 2,000 sentences of SST-2, in which the Trainer also has a turn as it is without being told
anything, with random batches.

``--jobs`` above 1 runs so many processes side by side, on a GPU all on that one; our seeds of a task are then one process,
which compiles once. ``speed`` still comes first and alone, and only what ran alone counts as time. ``--deadline`` ends it all
after so many seconds.

``--size cpu`` has 8,192 sentences of SST-2 three times, all of them once (``SST-2 whole``), and at most 600 updates of the
tasks with one seed; ``full`` has all; ``gpu`` is ``full`` with few lengths a task, since a GPU's programs take long to compile
(PyTorch takes a GPU where it finds one, as jax does).
"""

import argparse
import dataclasses
import functools
import itertools
import logging
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import processes

ROOT = Path(__file__).resolve().parent.parent
START = "all-MiniLM-L6-v2"
SIDES = ("ours", "trainer")
BY_DEFAULT = "default"  # a third side of ``speed``: the Trainer by default, which does not group by length
SHUFFLED = "MRPC"  # measured with a third side besides: the Trainer with its batches in random order
WHOLE = "SST-2 whole"  # all of its sentences, once, where SST-2 itself has a part of them
SENTENCES = ("SST-2", WHOLE, "MRPC", "CoLA", "RTE", "STS-B")  # with several seeds
SINGLE = ("SQuAD", "WikiANN en", "WikiANN de", "UD POS")  # with one
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "accelerate", "numpy", "seqeval")
RATE, WARM, BATCH, DECAY, EPS, CLIP = 5e-5, 0.1, 32, 0.01, 1e-6, 1.0
FEW = {"SQuAD": (192, 384)}  # lengths of a size that has few, where examples do not share rows
EVALUATED = 4  # lengths at most in evaluation, of a size that has few
ROUNDS, SPEED_ROWS, SPEED_EPOCHS = 3, 2_000, 3


@dataclasses.dataclass(frozen=True)
class Size:
    """Rows of SST-2 (None: all); epochs of it and of the other tasks; seeds; updates at most of tasks with one seed; tasks
    (empty: all); updates at most of any; held-out batches (None: all); rounds of ``speed``; few lengths: those in ``FEW``, and
    ``EVALUATED``, instead of up to 16 chosen from the data."""

    sst2_rows: int | None
    sst2_epochs: int
    epochs: int
    seeds: int
    single_steps: int | None
    tasks: tuple[str, ...] = ()
    steps: int | None = None
    eval_batches: int | None = None
    rounds: int = ROUNDS
    few: bool = False


SIZES = {
    "cpu": Size(8_192, 3, 3, 5, 600),
    "full": Size(None, 1, 3, 5, None),
    "gpu": Size(None, 1, 3, 5, None, few=True),
    "test": Size(64, 1, 1, 1, 3, ("MRPC",), 3, 2, 0, True),
}


def several(size: Size) -> list[str]:
    """The tasks that ``size`` measures with several seeds."""
    named = size.tasks or [task for task in SENTENCES if task != WHOLE or size.sst2_rows]
    return [task for task in SENTENCES if task in named]


def cells(size: Size) -> list[str]:
    """``TASK-SEED-SIDE``, in the order in which they run: seed by seed, the sides by turns."""
    names = [("speed", number) for number in range(size.rounds)]
    names += [(task, seed) for seed in range(size.seeds) for task in several(size)]
    names += [(task, 0) for task in SINGLE if task in (size.tasks or SINGLE)]
    found = []
    for task, seed in names:
        sides = (*SIDES, BY_DEFAULT) if task == "speed" else SIDES
        found += [f"{task}-{seed}-{side}" for side in (sides if seed % 2 == 0 else sides[::-1])]
    return found + [f"{SHUFFLED}-{seed}-shuffled" for seed in range(0 if size.tasks else size.seeds)]


def grouped(names: list[str], jobs: int) -> list[processes.Stage]:
    """How cells share processes. With one job each has its own, in order; with several those of ``speed`` come first, one
    process alone after another, and our seeds of a task follow one another in a process."""
    if jobs == 1:
        return [processes.Stage(1, [[name] for name in names])]
    groups: dict[bool, dict[tuple, list[str]]] = {True: {}, False: {}}
    for name in names:
        task, seed, side = name.rsplit("-", 2)
        together = task != "speed" and side == "ours"
        groups[task == "speed"].setdefault((task, side, None if together else seed), []).append(name)
    return [processes.Stage(1, list(groups[True].values())), processes.Stage(jobs, list(groups[False].values()))]


def recipe(task: str, seed: int, size: Size, data: Path, directory: Path, start: Path, encoder):
    """The experiment of a cell, which both sides follow, and the name of its score."""
    from objectives import glue

    from bert_jax.tasks import Classification, QuestionAnswering, Regression, Tagging
    from bert_jax.tasks.base import finetuned_encoder
    from bert_jax.tasks.columns import conllu, wikiann
    from bert_jax.tasks.squad import Squad
    from bert_jax.training.experiment import Experiment, TrainConfig
    from bert_jax.training.optimizer import AdamW

    batch, most = BATCH, size.steps
    lengths = (size.few and FEW.get(task)) or (384 if task == "SQuAD" else 128,)
    if task in SENTENCES or task == "speed":
        name = "SST-2" if task in ("speed", WHOLE) else task
        training, heldout, labels, score = glue(data, directory)[name]
        rows = {"speed": SPEED_ROWS, "SST-2": size.sst2_rows}.get(task)
        if rows:
            training = dataclasses.replace(training, rows=(0, rows))
        count = len(training.read().labels)
        epochs = {"speed": SPEED_EPOCHS, "SST-2": size.sst2_epochs, WHOLE: 1}.get(task, size.epochs)
        kind, more = (Classification, {}) if len(labels) > 1 else (Regression, {"offset": 2.7, "scale": 1.46})
        shapes = EVALUATED if size.few else 16
        config = kind(finetuned_encoder(encoder, labels), str(start), training, heldout, lengths, shapes, **more)
    elif task == "SQuAD":  # by article: its training file is not at hand
        file, score, batch, epochs, most = str(data / "qa/squad/dev-v1.1.json"), "f1", 16, 2, size.single_steps
        training, heldout = Squad(file, (0, 0.75)), Squad(file, (0.75, 1))
        count = len(training.read().labels)
        config = QuestionAnswering(finetuned_encoder(encoder, (), ("span",)), str(start), training, heldout, lengths)
    else:
        epochs, most = size.epochs, size.single_steps
        if task == "UD POS":
            folder, score = data / "syntax/ewt", "accuracy"
            training, heldout = (conllu(str(folder / f"en_ewt-ud-{split}.conllu")) for split in ("train", "dev"))
        else:
            language, score = task.split()[1], "f1"
            training, heldout = (wikiann(str(data / "ner/wikiann" / language / split), language) for split in ("train", "dev"))
        count = len(training.read().labels)
        config = Tagging(finetuned_encoder(encoder, training.labels(), ("tagger",)), str(start), training, heldout, lengths)
    steps = max(1, count * epochs // batch)
    steps = min(steps, most) if most else steps
    return Experiment(
        config,
        AdamW(learning_rate=RATE, warmup_steps=int(WARM * steps), weight_decay=DECAY, eps=EPS, clip_norm=CLIP,
              bias_correction=True),
        TrainConfig(
            steps=steps, batch_size=batch, eval_every=steps, save_every=steps, log_every=window(steps),
            eval_batches=size.eval_batches, eval_batch_size=64, keep=1, seed=seed,
        ),
    ), score, count


def window(steps: int) -> int:
    """Updates between two looks at the clock."""
    return max(1, min(50, steps // 6))


@functools.lru_cache(maxsize=1)
def prepared(config, start: Path):
    """The task of ``config``, tokenised before the clock starts, for seeds that follow one another and their programs."""
    from bert_jax.model import load
    from bert_jax.tasks import finetuning_task

    task = finetuning_task(config, load(start))
    _ = task.training, task.evaluation
    return task


def measure(cell: str, setting: processes.Setting) -> None:
    """Measures a cell, unless it is there."""
    size, data, directory, alone = setting
    path = directory / f"{cell}.json"
    if processes.found(path, dataclasses.asdict(size)):
        return
    import weights

    from bert_jax.model import load

    logging.basicConfig(format="%(message)s")
    task_name, seed, side = cell.rsplit("-", 2)
    start = weights.weights_dir() / START
    if not (start / "config.json").exists():
        sys.exit(f"no weights in {start}: python benchmarks/weights.py {START}")
    experiment, score, count = recipe(task_name, int(seed), size, data, directory, start, load(start).config)
    task = prepared(experiment.task, start)
    function = ours if side == "ours" else functools.partial(trainers, side=side)
    found = function(task, experiment, directory / "runs" / cell, start)
    alone = not found.pop("begun", False) and alone  # who knows what ran beside the process before
    per_update = statistics.median(found.pop("windows"))
    found |= {
        "size": dataclasses.asdict(size), "task": task_name, "seed": int(seed), "side": side, "score": score, "rows": count,
        "steps": experiment.train.steps, "seconds_per_epoch": per_update * count / experiment.train.batch_size,
        "alone": alone, "machine": processes.machine(*PACKAGES),
    }
    processes.keep(path, found)


def process_mib() -> float:
    """The most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(task, experiment, work: Path, start: Path) -> dict:
    """Fine-tunes with bert_jax. ``seconds``: of training and evaluation, compilation included; ``windows``: of an update."""
    import shutil

    import jax

    from bert_jax.training.record import read
    from bert_jax.training.train import train

    if jax.default_backend() != "cpu" and jax.config.jax_default_matmul_precision != "highest":
        sys.exit("jax would not multiply in float32: JAX_DEFAULT_MATMUL_PRECISION=highest")
    begun, began = (work / "checkpoints").exists(), time.monotonic()
    result = train(task, experiment, work)
    if not result.finished:
        sys.exit(processes.CONTINUES)
    stats, rows = jax.local_devices()[0].memory_stats(), read(work / "metrics.jsonl")
    speeds = [row["sequences_per_second"] for row in rows if "sequences_per_second" in row]
    seconds = max(row["time"] for row in rows) if begun else time.monotonic() - began  # of all its processes
    found = {"scores": result.evaluation, "seconds": seconds, "begun": begun,
             "windows": [experiment.train.batch_size / speed for speed in speeds[1:] or speeds],  # compiled in the first
             "peak_mib": stats["peak_bytes_in_use"] / 2**20 if stats else process_mib()}
    shutil.rmtree(work)
    return found


def trainers(task, experiment, work: Path, start: Path, side: str = "trainer") -> dict:
    """The same with transformers' Trainer, used as its manual says, and the same score of what comes out. ``side``: it groups
    by length ("trainer"), an epoch is then some sweeps from long batches to short ones; it does, and its batches come in
    random order ("shuffled"); it is not told to group by length and draws batches at random ("default")."""
    import numpy as np
    import torch
    import transformers
    from transformers import TrainingArguments

    from bert_jax.tasks import QuestionAnswering, Regression, Tagging

    config, settings, optimizer = experiment.task, experiment.train, experiment.optimizer
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if torch.get_float32_matmul_precision() != "highest":
        sys.exit("PyTorch would not compute in float32: torch.set_float32_matmul_precision('highest')")
    transformers.set_seed(settings.seed)  # new heads are random
    tokenizer = transformers.AutoTokenizer.from_pretrained(start)
    labels = config.encoder.labels
    if isinstance(config, QuestionAnswering):
        network = transformers.AutoModelForQuestionAnswering.from_pretrained(start)
        collator = transformers.DataCollatorWithPadding(tokenizer)
    elif isinstance(config, Tagging):
        network = transformers.AutoModelForTokenClassification.from_pretrained(start, num_labels=len(labels))
        collator = transformers.DataCollatorForTokenClassification(tokenizer)
    else:
        network = transformers.AutoModelForSequenceClassification.from_pretrained(start, num_labels=len(labels))
        collator = transformers.DataCollatorWithPadding(tokenizer)
    if any(parameter.dtype != torch.float32 for parameter in network.parameters()):
        sys.exit("PyTorch's parameters are not float32")

    encoded, examples = task.training, []
    for row, ids in enumerate(encoded.tokens["input_ids"]):
        example = {"input_ids": ids.tolist(), "token_type_ids": encoded.tokens["segment_ids"][row].tolist(),
                   "attention_mask": [1] * len(ids)}
        if isinstance(config, QuestionAnswering):
            first, last = encoded.rows["span_label"][row].tolist()
            if first < 0:  # no window has the answer whole: PyTorch's loss cannot leave it out
                continue
            example |= {"start_positions": first, "end_positions": last}
        elif isinstance(config, Tagging):
            example["labels"] = np.where(encoded.tokens["labels"][row] < 0, -100, encoded.tokens["labels"][row]).tolist()
        elif isinstance(config, Regression):
            example["labels"] = float((encoded.rows["value"][row] - config.offset) / config.scale)
        else:
            example["labels"] = int(encoded.rows["label"][row])
        examples.append(example)

    clock: list[tuple[int, float]] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            clock.append((state.global_step, time.monotonic()))

    class InRandomOrder(torch.utils.data.Sampler):
        """The batches of another sampler in random order; the last one, which may be smaller, stays the last."""

        def __init__(self, sampler):
            self._sampler, self._random = sampler, random.Random(settings.seed)

        def __len__(self) -> int:
            return len(self._sampler)

        def __iter__(self):
            chosen, size = list(self._sampler), settings.batch_size
            batches = [chosen[first : first + size] for first in range(0, len(chosen) // size * size, size)]
            self._random.shuffle(batches)
            return iter([*itertools.chain.from_iterable(batches), *chosen[len(batches) * size :]])

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, *words):
            sampler = super()._get_train_sampler(*words)
            return InRandomOrder(sampler) if side == "shuffled" else sampler

    trainer = Trainer(
        model=network, train_dataset=examples, data_collator=collator, processing_class=tokenizer, callbacks=[Clock()],
        args=TrainingArguments(
            output_dir=str(work), max_steps=settings.steps, per_device_train_batch_size=settings.batch_size,
            learning_rate=optimizer.learning_rate, warmup_steps=optimizer.warmup_steps, lr_scheduler_type="linear",
            weight_decay=optimizer.weight_decay, adam_epsilon=optimizer.eps, max_grad_norm=optimizer.clip_norm,
            train_sampling_strategy="random" if side == BY_DEFAULT else "group_by_length", seed=settings.seed,
            save_strategy="no", eval_strategy="no",
            logging_steps=settings.log_every, report_to="none", disable_tqdm=True, bf16=False, fp16=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
    )
    if trainer.accelerator.mixed_precision != "no":
        sys.exit("the Trainer would not compute in float32")
    if trainer.args.n_gpu > 1:
        sys.exit("the Trainer would take a batch for each GPU: hide all but one (CUDA_VISIBLE_DEVICES=0)")
    began = time.monotonic()
    trainer.train()

    network.eval()
    outputs: dict[str, list] = {}
    device = next(network.parameters()).device
    for batch in task.eval_batches(settings.eval_batch_size, settings.eval_batches):
        names = {"input_ids": "input_ids", "token_type_ids": "segment_ids", "attention_mask": "attention_mask"}
        with torch.no_grad():
            made = network(**{name: torch.tensor(np.asarray(batch[ours], np.int64), device=device)
                              for name, ours in names.items()})
        if isinstance(config, QuestionAnswering):
            logits = {"span": np.stack([made.start_logits.cpu().numpy(), made.end_logits.cpu().numpy()], axis=-1)}
        else:
            logits = {"tagger" if isinstance(config, Tagging) else "classifier": made.logits.cpu().numpy()}
        for name, rows in task.predictor.outputs(SimpleNamespace(logits=logits), batch).items():
            outputs.setdefault(name, []).extend(np.asarray(rows))
        outputs.setdefault("example", []).extend(batch["example"])
    found = {"scores": task.scores(outputs), "seconds": time.monotonic() - began}
    marks = [mark for mark in clock if mark[0] % settings.log_every == 0]
    times = [(later - earlier) / settings.log_every for (_, earlier), (_, later) in zip(marks, marks[1:], strict=False)]
    gpu = torch.cuda.is_available()
    return found | {"windows": times, "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if gpu else process_mib()}


def stages(setting: processes.Setting, arguments: argparse.Namespace) -> list[processes.Stage]:
    """What is wanted, in groups; writes a file that all processes read."""
    from objectives import glue

    names = cells(setting.size)
    tasks = processes.chosen(arguments.only, dict.fromkeys(cell.rsplit("-", 2)[0] for cell in names))
    glue(setting.data, setting.directory)
    return grouped([cell for cell in names if cell.rsplit("-", 2)[0] in tasks], arguments.jobs)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="tasks, or speed, with commas between; default: all")


def report(directory: Path) -> None:
    """Gathers what is there, writes the JSON file, the page and its picture."""
    size_name, measured = processes.gathered(directory, SIZES)
    size, rows = SIZES[size_name], list(measured.values())
    results, page = processes.published("finetuning", size_name, directory)
    processes.check_nothing_lost(results, measured)
    page.parent.mkdir(parents=True, exist_ok=True)
    machine = processes.machines(rows)
    by = {(row["task"], row["seed"], row["side"]): row for row in rows}

    def of(task: str, side: str) -> list[dict]:
        return [row for (name, _, whose), row in sorted(by.items()) if (name, whose) == (task, side)]

    lines = ["## Scores", "", "| | score | rows | updates | ours | Trainer | difference | within one deviation | "
             "each seed, ours | each seed, Trainer |", "|---" * 10 + "|"]
    missing = []
    for task, side in (*((task, "trainer") for task in (*SENTENCES, *SINGLE)), (SHUFFLED, "shuffled")):
        mine, theirs = of(task, "ours"), of(task, side)
        what = task if side == "trainer" else f"{task}, the Trainer's batches in random order"
        expected = size.seeds if task in several(size) else int(task in (size.tasks or SINGLE))
        if len(mine) < expected or len(theirs) < expected:
            missing.append(f"{what} ({len(mine)} of {expected} seeds here, {len(theirs)} with Trainer)")
        if not mine or not theirs:
            continue
        name = mine[0]["score"]
        a, b = ([100 * row["scores"][name] for row in side] for side in (mine, theirs))
        difference = statistics.mean(a) - statistics.mean(b)
        within = "-"
        if min(len(a), len(b)) > 1:  # the deviation of one run: the two variances' mean
            within = "yes" if abs(difference) <= ((statistics.variance(a) + statistics.variance(b)) / 2) ** 0.5 else "**no**"
        lines.append(f"| {what} | {name} | {mine[0]['rows']:,} | {mine[0]['steps']:,} | {_spread(a)} | {_spread(b)} | "
                     f"{difference:+.2f} | {within} | {_each(a)} | {_each(b)} |")
    times = ["", "## Seconds and memory", "",
             "| | seconds an epoch, ours | Trainer | Trainer / ours | whole run, ours | Trainer | Trainer / ours | "
             "peak MiB, ours | Trainer |", "|---" * 9 + "|"]
    head, untimed = len(times), []
    for task, side in (("speed", "trainer"), ("speed", BY_DEFAULT), *((task, "trainer") for task in (*SENTENCES, *SINGLE))):
        every = [(row, by[task, row["seed"], side]) for row in of(task, "ours") if (task, row["seed"], side) in by]
        if lacking := sum(not all(row.get("alone") for row in pair) for pair in every):
            untimed.append(f"{task} ({lacking} of {len(every)} seeds)")
        found = timing(rows, task, side)
        if not found:
            continue
        what = f"SST-2, {SPEED_ROWS:,} sentences" if task == "speed" else task
        what += ", the Trainer by default" if side == BY_DEFAULT else ""
        cells = (*(f"{value:,.1f}" for value in found.epoch), times_as_long(found.epochs),
                 *(f"{value:,.0f}" for value in found.run), times_as_long(found.runs),
                 *(f"{value:,.0f}" for value in found.peak))
        times.append(f"| {what} | {' | '.join(cells)} |")
    lines += times if len(times) > head else [*times[:3], "No cell of either side ran alone yet."]
    if untimed and len(times) > head:
        lines += ["", f"Not counted in this table, since a side did not run alone: {', '.join(untimed)}."]
    _draw(of, page.with_suffix(".png"))
    processes.publish(results, page, measured, INTRODUCTION.format(
        start=START, rate=RATE, batch=BATCH, decay=DECAY, eps=EPS, clip=CLIP, warm=WARM, epochs=size.epochs,
        sst2=f"the first {size.sst2_rows:,} of 67,349 sentences, {size.sst2_epochs} epochs, and all of them (whole), 1"
        if size.sst2_rows else f"all 67,349 sentences, {size.sst2_epochs} epoch",
        single=f"at most {size.single_steps:,} updates" if size.single_steps else f"{size.epochs} epochs, SQuAD 2",
        lengths="Our sentences and pairs share rows, those that are tagged too; questions are padded to "
        + ("two lengths chosen beforehand" if size.few else "at most 16 lengths chosen from the data"),
        size_name=size_name, seeds=size.seeds, shuffled=SHUFFLED, tables="\n".join(lines), machine=machine,
        picture=f"![scores]({page.stem}.png)\n\n" if page.with_suffix(".png").exists() else "",
        missing=f"Not measured yet: {', '.join(missing)}." if missing else "",
    ))


class Timing(NamedTuple):
    """Of cells of both sides that ran alone, one after the other: medians of ours and of the Trainer's seconds of an epoch and
    of the whole run, and MiB at most; and how many times as long as ours the Trainer took, pair by pair."""

    epoch: tuple[float, float]
    run: tuple[float, float]
    peak: tuple[float, float]
    epochs: list[float]
    runs: list[float]


def timing(rows: Iterable[dict], task: str, side: str) -> Timing | None:
    """Of ``task`` here and on a ``side`` of the Trainer; None where no pair ran alone."""
    alone = {(row["side"], row["seed"]): row for row in rows if row["task"] == task and row.get("alone")}
    seeds = sorted(seed for whose, seed in alone if whose == side and ("ours", seed) in alone)
    pairs = [(alone["ours", seed], alone[side, seed]) for seed in seeds]
    if not pairs:
        return None
    fields = ("seconds_per_epoch", "seconds", "peak_mib")
    medians = [tuple(statistics.median(row[key] for row in rows) for rows in zip(*pairs, strict=True)) for key in fields]
    return Timing(*medians, *([theirs[key] / mine[key] for mine, theirs in pairs] for key in fields[:2]))


def times_as_long(ratios: list[float]) -> str:
    """The median, and the range of several."""
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def _spread(scores: list[float]) -> str:
    return f"{statistics.mean(scores):.2f}" + (f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else "")


def _each(scores: list[float]) -> str:
    return " ".join(f"{score:.1f}" for score in scores)


def _draw(of, picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [task for task in (*SENTENCES, *SINGLE) if of(task, "ours") and of(task, "trainer")]
    if not tasks:
        return
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(1.5 * len(tasks) + 0.6, 3.2), squeeze=False)
    for panel, task in zip(axes[0], tasks, strict=True):
        for place, side in enumerate(SIDES):
            scores = [100 * row["scores"][row["score"]] for row in of(task, side)]
            panel.plot([place] * len(scores), scores, "o", color=f"C{place}", alpha=0.5)
            panel.plot(place, statistics.mean(scores), "_", color="k", markersize=18)
        panel.set(title=task, xlim=(-0.6, 1.6))
        panel.set_xticks([0, 1], ["ours", "Trainer"], fontsize=8)
        panel.tick_params(axis="y", labelsize=8)
        panel.grid(alpha=0.3, axis="y")
    figure.tight_layout()
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)


INTRODUCTION = """# Fine-tuning here and with transformers' Trainer

{start} (6 layers, D 384) fine-tuned on the same token ids with the same hyper-parameters by bert_jax and by the Trainer
of transformers in PyTorch: AdamW with bias correction (rate {rate:g}, warm-up over {warm:.0%} of the updates, then
falling linearly to 0, decay {decay}, eps {eps:g}), gradients clipped at norm {clip}, batch {batch} (SQuAD 16), dropout
0.1, float32 (on a GPU as well, no TF32 on either side), at most 128 tokens (SQuAD 384, stride 128). {lengths}; the Trainer's
batches are padded to their longest sentence. SST-2: {sst2}; MRPC, CoLA, RTE and
STS-B whole, {epochs} epochs; SQuAD (its development set, the first three quarters of the articles to train on, the rest held
out), WikiANN and UD POS (EWT): {single}. STS-B's values less 2.7 over 1.46 on both sides. Held out are the development sets
(of MRPC 500 rows of the authors' training set, whose other 3,576 are trained on: GLUE has another cut);
the last parameters count, and nothing was chosen by these sets.

Scores times 100: mean and standard deviation over {seeds} seeds, which decide on the new head, the order and dropout. The two
sides draw differently from the same seed, so seeds are not paired. "Within one deviation": the difference of the means is at
most the root of the two variances' mean, the deviation of a single run. The Trainer groups by length: an epoch is some sweeps
from long batches to short ones. Ours have random order. The last row of {shuffled}: there the Trainer's come in random order
too. "By default": the Trainer is not told to group by length, so that its batches are drawn at random and padded to the
longest of 32 sentences each.

Seconds and memory are of cells that ran alone, one process after another; where the others share a GPU, only 2,000 sentences
of SST-2 do. Seconds an epoch: the median over windows of up to 50 updates, without the first window, in which we compile, and
without evaluation; each side's median over the seeds, and of the ratios of cells that ran one after the other, median and
range; of SQuAD as many windows as it has questions, on both sides. Whole run: all its epochs and the evaluation, with
compilation (programs that are compiled once are kept for the next seed), without reading and tokenising, and the ratios of
such runs; ours writes a checkpoint with moments in the end, the Trainer none. Peak: on a GPU what the side's framework had
allocated there at most; else of the process, everything that it imports included: both sides import jax, and the Trainer's
holds the start and our prepared data besides its own.

{picture}{tables}

{missing}

Machine: {machine}.

```
python benchmarks/weights.py all-MiniLM-L6-v2
python benchmarks/finetuning.py run --data ../shared/data --dir runs/finetuning --size {size_name}
python benchmarks/finetuning.py report --dir runs/finetuning
```
"""


BENCHMARK = processes.Benchmark("finetuning", __doc__, SIZES, "glue/, sts/, qa/ ...", stages, measure, report, options)

if __name__ == "__main__":
    processes.main(BENCHMARK)
