"""What an update of several seeds as one program (``bert-jax finetune --at-once``) takes, beside one seed after another.

    python benchmarks/seeds.py                                  # benchmarks/results/seeds.json, docs/results/seeds.md
    python benchmarks/seeds.py --models minilm --dtype bfloat16

Random weights, a classifier, AdamW, dropout 0.1, rows of equal length. The contestants take turns in one process; a figure is
the median over rounds of the seconds of an update, divided by its seeds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import processes
import provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/seeds.json", ROOT / "docs/results/seeds.md"
MODELS = {"tiny": (2, 128), "minilm": (6, 384), "base": (12, 768)}  # layers, D
V = 30_522


def updates(layers: int, width: int, dtype: str, rows: int, length: int, runs: int):
    """A function that does ``n`` updates of ``runs`` seeds, and waits for them."""
    import jax
    import numpy as np

    from bert_jax.model import Model
    from bert_jax.models.config import EncoderConfig
    from bert_jax.parallel.mesh import MeshConfig, make_mesh
    from bert_jax.tasks.classification import Classification, ClassificationTask
    from bert_jax.tasks.tables import Table
    from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
    from bert_jax.training import together
    from bert_jax.training.optimizer import AdamW, make_optimizer
    from bert_jax.training.state import key_data
    from bert_jax.training.step import abstract_state, init_state, make_train_step

    config = EncoderConfig(
        vocab_size=V, embedding_width=width, hidden_width=width, layers=layers, heads=12 if width > 128 else 2,
        ffn_width=4 * width, compute_dtype=dtype, with_heads=("pooler", "classifier"), labels=("no", "yes"),
    )
    table = Table("none.tsv", ("text",), "label")  # never read: batches are made here
    task = ClassificationTask(
        Classification(config, "none", table, table, (length,)), Model({}, config, WordPieceTokenizer([*SPECIALS, "a"]))
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(AdamW(1e-5, 10), 100_000, task.logical_axes())
    seeds = tuple(range(runs)) if runs > 1 else ()
    abstract = abstract_state(task, optimizer, mesh)
    step = make_train_step(task, optimizer, mesh, abstract, accumulate=1, seeds=seeds)
    whole = together.abstract(abstract, runs) if seeds else abstract
    state = init_state(task, optimizer, whole, jax.random.wrap_key_data(key_data(seeds or 0)))
    shape, rng = (runs, rows) if seeds else (rows,), np.random.default_rng(0)
    batch = jax.device_put({
        "input_ids": rng.integers(1_000, V, (*shape, length), np.int32), "attention_mask": np.ones((*shape, length), bool),
        "segment_ids": np.zeros((*shape, length), np.int32), "label": rng.integers(0, 2, shape, np.int32),
        "example": np.zeros(shape, np.int32),
    })

    def run(n: int) -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(n):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

    return run


def measure(name: str, dtype: str, rows: int, length: int, counts: list[int], rounds: int, count: int) -> dict:
    """Seconds of an update for a seed, by how many train together."""
    layers, width = MODELS[name]
    contestants = {runs: updates(layers, width, dtype, rows, length, runs) for runs in counts}
    compiled = {}
    for runs, run in contestants.items():
        began = time.monotonic()
        run(1)
        compiled[runs] = time.monotonic() - began
        run(1)
    seconds: dict[int, list[float]] = {runs: [] for runs in counts}
    for _ in range(rounds):
        for runs, run in contestants.items():
            began = time.monotonic()
            run(count)
            seconds[runs].append((time.monotonic() - began) / count / runs)
    ratios = {runs: [one / other for one, other in zip(seconds[1], seconds[runs], strict=True)] for runs in counts}
    return {
        "model": name, "layers": layers, "width": width, "dtype": dtype, "rows": rows, "length": length,
        "seconds": {runs: statistics.median(values) for runs, values in seconds.items()},
        "faster": {runs: [min(values), statistics.median(values), max(values)] for runs, values in ratios.items()},
        "first_update": compiled, "machine": processes.machine("jax", "jaxlib", "flax", "optax"), "code": provenance.code(),
    }


def main() -> None:
    """Reads the command line, writes results and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny", "minilm"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=int, default=32, help="of a batch")
    parser.add_argument("--length", type=int, default=32, help="tokens of a row")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 5], help="seeds at once, compared with 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=3, help="updates of a turn")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        rows.append(measure(name, arguments.dtype, arguments.rows, arguments.length, sorted({1, *arguments.runs}),
                            arguments.rounds, arguments.count))
        print(json.dumps(rows[-1], indent=1), flush=True)
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    lines = ["| | seeds at once | ms of an update, for each seed | times as fast as one after another | first update, s |",
             "|---" * 5 + "|"]
    for row in rows:
        for runs, value in row["seconds"].items():
            low, middle, high = row["faster"][runs]
            lines.append(f"| {row['layers']} layers, D {row['width']}, {row['dtype']} | {runs} | {1000 * value:.1f} | "
                         f"{middle:.2f} ({low:.2f} to {high:.2f}) | {row['first_update'][runs]:.1f} |")
    PAGE.write_text(
        "# Several seeds as one program\n\n"
        f"Updates of a classifier, {arguments.rows} rows of {arguments.length} tokens for each seed, AdamW, dropout 0.1; "
        "medians of rounds in which the contestants take turns, with the range. The first update compiles.\n\n"
        + "\n".join(lines) + f"\n\nMachine: {processes.machines(rows)}.\n\n```\npython benchmarks/seeds.py\n```\n"
    )
    print(PAGE)


if __name__ == "__main__":
    main()
