"""How many training sequences a second the loader makes, and how full they are, for every kind of examples.

    python benchmarks/loader.py STORE [--parallel STORE] [--seconds 5] [--batch-size 256] [--json FILE]

STORE is a token store, for instance of the books: `python benchmarks/prepare.py books.txt.gz --keep STORE`. Translations need
one that was prepared with --parallel. The last column is the time of a batch on one core, without Grain: other work on
the machine moves it less than the others.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import time

import grain
import numpy as np
from rich.console import Console
from rich.table import Table

from bert_jax.data.examples import AnyExamples
from bert_jax.data.loader import train_batches
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations

KINDS = {
    "nsp": lambda length: PairSpec(length, "nsp"),
    "sop": lambda length: PairSpec(length, "sop"),
    "none": lambda length: PairSpec(length, "none"),
    "structural": lambda length: PairSpec(length, "structural"),
    "distance": lambda length: PairSpec(length, "distance"),
    "static nsp": lambda length: PairSpec(length, "nsp", copies=10),
    "full sentences": lambda length: Streams(length, "sentence"),
    "stream": lambda length: Streams(length, "token"),
    "reordered": lambda length: Reordered(length),
}
PARALLEL = {
    "translations": lambda length: Translations(length),
    "languages ^ 0.7": lambda length: Streams(length, "sentence", language_exponent=0.7),
}


def measure(name: str, split, spec: AnyExamples, batch_size: int, seconds: float) -> dict:
    """Sequences a second of an iterator whose consumer does nothing else, and the share of positions filled."""
    examples, times = spec.open(split, seed=0), []
    for number in range(100):
        began = time.process_time()
        examples.at(np.arange(number * batch_size, (number + 1) * batch_size))
        times.append(time.process_time() - began)
    batches = train_batches(split, spec, batch_size=batch_size, seed=0)
    for _ in range(20):
        next(batches)
    count, filled = 0, 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        filled += int(np.count_nonzero(next(batches)["attention_mask"]))
        count += batch_size
    return {
        "examples": name,
        "length": spec.length,
        "batch_size": batch_size,
        "sequences_per_second": round(count / elapsed),
        "tokens_per_second": round(filled / elapsed),
        "filled": round(filled / (count * spec.length), 4),
        "batch_ms_of_a_core": round(1000 * float(np.median(times)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=pathlib.Path, help="a token store made by `bert-jax prepare`")
    parser.add_argument("--parallel", type=pathlib.Path, help="a token store of translations")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row of the table (default 5)")
    parser.add_argument("--batch-size", type=int, default=256, help="sequences in a batch (default 256)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    options = parser.parse_args()

    split = TokenStore(options.store).split("train")
    kinds = [(split, KINDS)]
    if options.parallel:
        kinds.append((TokenStore(options.parallel).split("train"), PARALLEL))
    rows = [
        measure(name, source, make(length), options.batch_size, options.seconds)
        for source, group in kinds
        for length in (128, 512)
        for name, make in group.items()
    ]
    table = Table(title=f"{split.tokens:,} tokens, {len(split.documents) - 1:,} documents")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    Console(file=sys.stderr).print(table)
    result = {
        "command": "python benchmarks/loader.py STORE",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "grain": grain.__version__},
        "tokens": split.tokens,
        "rows": rows,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
