"""How many training sequences a second the loader makes, how full they are, and how long a training loop waits for them.

    python benchmarks/loader.py STORE [--parallel STORE] --json benchmarks/results/loader_cpu.json

STORE is a token store, for instance of the books: `python benchmarks/prepare.py books.txt.gz --keep STORE`. Translations need
one that was prepared with --parallel. A rate is the median over turns of --seconds each; "batch ms of a core" is the time of a
batch on one core, without Grain, mean of 100: other work on the machine moves it less. Of packed examples a sequence is a row
of several.

Then the tiny model of `benchmarks/step.py` trains on NSP pairs by the loop of `bert_jax.training.train`, with the clock before
and after every `next(batches)`: what the loop waits there beside the length of an update.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

import contest
import numpy as np
import provenance
import step
from rich.console import Console
from rich.table import Table

from bert_jax.data.examples import AnyExamples
from bert_jax.data.loader import train_batches
from bert_jax.data.packing import PackedRows
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations
from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from bert_jax.training.train import train

KINDS = {
    "nsp": lambda length: PairSpec(length, "nsp"),
    "sop": lambda length: PairSpec(length, "sop"),
    "none": lambda length: PairSpec(length, "none"),
    "structural": lambda length: PairSpec(length, "structural"),
    "distance": lambda length: PairSpec(length, "distance"),
    "packed nsp": lambda length: PairSpec(length, "nsp", packing=12),
    "static nsp": lambda length: PairSpec(length, "nsp", copies=10),
    "full sentences": lambda length: Streams(length, "sentence"),
    "stream": lambda length: Streams(length, "token"),
    "reordered": lambda length: Reordered(length),
}
PARALLEL = {
    "translations": lambda length: Translations(length),
    "languages ^ 0.7": lambda length: Streams(length, "sentence", language_exponent=0.7),
}


WARM = 5  # updates, the first of which compile


def measure(name: str, split, spec: AnyExamples, batch_size: int, turns: int, seconds: float) -> dict:
    """Sequences a second of an iterator whose consumer does nothing else, and the share of positions filled."""
    examples, times = spec.open(split, seed=0), []
    rows = PackedRows(examples) if spec.packing else examples
    for number in range(100):
        began = time.process_time()
        rows.at(np.arange(number * batch_size, (number + 1) * batch_size))
        times.append(time.process_time() - began)
    batches = train_batches(split, spec, batch_size=batch_size, seed=0)
    for _ in range(20):
        next(batches)
    rates, given, filled = [], 0, 0
    for _ in range(turns):
        count, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            filled += int(np.count_nonzero(next(batches)["attention_mask"]))
            count += batch_size
        rates.append(round(count / elapsed))
        given += count
    share = filled / (given * spec.length)
    return {
        "examples": name,
        "length": spec.length,
        "batch_size": batch_size,
        "sequences_per_second": round(statistics.median(rates)),
        "tokens_per_second": round(statistics.median(rates) * share * spec.length),
        "filled": round(share, 4),
        "batch_ms_of_a_core": round(1000 * float(np.mean(times)), 2),
        "turns": rates,
    }


class Watched:
    """The batches of a run, and when each was asked for and given."""

    def __init__(self, batches):
        self._batches = batches
        self.asked, self.given = [], []

    def __getattr__(self, name: str):
        return getattr(self._batches, name)

    def __next__(self) -> dict[str, np.ndarray]:
        self.asked.append(time.perf_counter())
        batch = next(self._batches)
        self.given.append(time.perf_counter())
        return batch


class WatchedTask(PretrainingTask):
    """Pre-training whose ``batches`` are :class:`Watched`."""

    def train_batches(self, *words) -> Watched:
        self.batches = Watched(super().train_batches(*words))
        return self.batches


def waiting(store: TokenStore, model: str, updates: int) -> dict:
    """How long each of so many updates takes, from batch to batch, and how much of it the loop waits for the batch."""
    layers, width, batch_size = step.MODELS[model]
    config = step.pretraining(model, store.tokenizer.vocab_size)
    task, steps = WatchedTask(config, store), WARM + updates + 1
    with tempfile.TemporaryDirectory() as folder:
        train(task, Experiment(config, AdamW(warmup_steps=1), TrainConfig(
            steps=steps, batch_size=batch_size, eval_every=steps, save_every=steps, eval_batches=1, log_every=steps,
        )), folder)
    asked, given = (np.array(times[WARM:]) for times in (task.batches.asked, task.batches.given))
    lengths, waits = np.diff(asked), (given - asked)[:-1]
    return {
        "model": model, "layers": layers, "width": width, "batch_size": batch_size, "length": config.examples.length,
        "update_ms": round(1000 * float(np.median(lengths)), 2), "wait_ms": round(1000 * float(np.median(waits)), 3),
        "share": round(float(waits.sum() / lengths.sum()), 6),
        "updates_ms": np.round(1000 * lengths, 2).tolist(), "waits_ms": np.round(1000 * waits, 3).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=pathlib.Path, help="a token store made by `bert-jax prepare`")
    parser.add_argument("--parallel", type=pathlib.Path, help="a token store of translations")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of a turn (default 1)")
    parser.add_argument("--turns", type=int, default=5, help="of each row of the table (default 5)")
    parser.add_argument("--batch-size", type=int, default=256, help="sequences in a batch (default 256)")
    parser.add_argument("--updates", type=int, default=100, help="of the training run that is watched (default 100)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    options = parser.parse_args()

    run, store = provenance.begin(), TokenStore(options.store)
    split = store.split("train")
    kinds = [(split, KINDS)]
    if options.parallel:
        kinds.append((TokenStore(options.parallel).split("train"), PARALLEL))
    rows = [
        measure(name, source, make(length), options.batch_size, options.turns, options.seconds)
        for source, group in kinds
        for length in (128, 512)
        for name, make in group.items()
    ]
    table = Table(title=f"{split.tokens:,} tokens, {len(split.documents) - 1:,} documents")
    for name in list(rows[0])[:-1]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in list(row.values())[:-1]))
    watched = waiting(store, "tiny", options.updates)
    console = Console(file=sys.stderr)
    console.print(table)
    console.print(f"an update of {watched['model']} takes {watched['update_ms']} ms, of which the loop waits "
                  f"{watched['wait_ms']} ms for its batch; {watched['share']:.2%} of all")
    versions = contest.environment("jax", "numpy", "grain")
    result = provenance.ended(run) | {"environment": versions, "tokens": split.tokens, "rows": rows, "waiting": watched}
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
