"""What two settings bring on a processor: attention in pieces of the batch, and a heap that keeps what is freed.

    python benchmarks/pieces.py --rounds 3    # benchmarks/results/pieces.json, docs/results/pieces.md; a quarter of an hour
    python benchmarks/pieces.py --models reaction

An encoder alone, float32, random weights, full rows: forward without dropout, and loss with gradients (dropout 0.1, everything
kept that a product reads). Six processes take turns: attention whole or cut in four (``bert_jax.models.layers.pieces``), and
four heaps of glibc: as it comes; asked by ``mallopt`` at its start not to give anything back; with large pages, which is what
the other benchmarks give to every contestant; with both, from the environment.
"""

import argparse
import ctypes
import itertools
import json
import os
import statistics
import sys
from pathlib import Path

import contest
import processes
import provenance

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/pieces.json", ROOT / "docs/results/pieces.md"
# layers, D, N, F, rows, tokens
MODELS = {"reaction": (12, 256, 4, 512, 16, 192), "minilm": (6, 384, 12, 1536, 32, 64), "base4": (4, 768, 12, 3072, 8, 128)}
LARGE = "glibc.malloc.hugetlb=1"
KEPT = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864"
HEAPS = {"as it comes": "", "kept": "", "large pages": LARGE, "large, kept": f"{LARGE}:{KEPT}"}
NAMES = ("as it comes/1", "as it comes/4", "kept/4", "large pages/1", "large pages/4", "large, kept/4")
VOCABULARY, CALLS = 1_000, 3


def work(model: str, gradients: bool, cut: bool):
    """A function that runs the model ``n`` times."""
    import jax
    import numpy as np

    from bert_jax.models import api, layers
    from bert_jax.models.config import EncoderConfig

    layers.MANY_SCORES = 1 if cut else 2**62
    depth, width, heads, ffn, rows, length = MODELS[model]
    config = EncoderConfig(
        vocab_size=VOCABULARY, embedding_width=width, hidden_width=width, layers=depth, heads=heads, ffn_width=ffn,
        remat="masks", with_heads=(),
    )
    params = jax.jit(lambda key: api.init(config, key))(jax.random.key(0))
    noise = np.random.default_rng(0)
    batch = {"input_ids": noise.integers(0, VOCABULARY, (rows, length)).astype(np.int32)}
    weights = noise.standard_normal((rows, length, width)).astype(np.float32)

    def loss(params, key):
        return (api.apply(params, config, batch, key=key).hidden * weights).sum()

    if gradients:
        function, key = jax.jit(jax.value_and_grad(loss)), jax.random.key(1)
    else:
        function, key = jax.jit(lambda params, _: loss(params, None)), None

    def run(n):
        for _ in range(n):
            result = jax.block_until_ready(function(params, key))
        return float(jax.tree.leaves(result)[0])

    return run


def keep_freed() -> None:
    """Asks glibc never to map memory for one buffer, and to give none back."""
    heap = ctypes.CDLL(None)
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        if not heap.mallopt(option, value):
            sys.exit(f"mallopt refuses {option}")


def main() -> None:
    """Reads the command line, prints and writes tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS),
                        help="all of them, for the published page; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant; default: %(default)s")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        heap, number = arguments.worker.split("/")
        if os.environ["GLIBC_TUNABLES"] != HEAPS[heap]:  # read once, when a process begins
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GLIBC_TUNABLES": HEAPS[heap]})
        if heap == "kept":
            keep_freed()
        run = work(arguments.models[0], arguments.gradients, number != "1")
        contest.answer(run, 2, lambda: contest.versions("jax", "jaxlib"))
        return
    found = {}
    for model, gradients in itertools.product(arguments.models, (False, True)):
        kind = "gradients" if gradients else "forward"
        given = ["--models", model, *(["--gradients"] if gradients else [])]
        found[f"{model}/{kind}"] = contest.contest(__file__, NAMES, given, arguments.rounds, CALLS, f"{model}, {kind}: ")
    tables = table(found)
    print(tables)
    if set(arguments.models) == set(MODELS):
        content = {"environment": processes.machine("jax", "jaxlib"), "code": provenance.code(), "results": {
            case: {name: [turn / CALLS for turn in times.turns] for name, times in cases.items()}
            for case, cases in found.items()
        }}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
        PAGE.write_text(INTRODUCTION.format(
            tables=tables, machine=processes.machines([{"machine": content["environment"]}]), rounds=arguments.rounds,
        ))


def table(found: dict[str, dict[str, contest.Times]]) -> str:
    """Milliseconds a run, and how many times as long the first column takes in the same round."""
    lines = [f"| model | {' | '.join(name.replace('/', ', ') for name in NAMES)} |", "|---" * (1 + len(NAMES)) + "|"]
    for case, cases in found.items():
        first, cells = next(iter(cases.values())).turns, []
        for times in cases.values():
            middle, low, high = contest.ratio(first, times.turns)
            gain = "" if times.turns is first else f" ({middle:.2f} x, {low:.2f} to {high:.2f})"
            cells.append(f"{statistics.median(times.turns) / CALLS * 1e3:.0f}{gain}")
        lines.append(f"| {case.replace('/', ', ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


INTRODUCTION = """# Attention in pieces, and the heap

On a processor `bert_jax` computes attention in four pieces of the batch where a layer has many scores. That and settings of
glibc's heap, in milliseconds a run, medians of {rounds} rounds in which the six take turns; in brackets how many times as fast
as the first column in the same round, and its range. Sizes and what is run: `benchmarks/pieces.py`. reaction: 16 x 192
tokens, minilm: 32 x 64, base4: 8 x 128. The number in a column's head: pieces.

{tables}

- kept: `mallopt` with M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GiB, M_TOP_PAD 64 MiB: what a step frees stays for the next one.
- large pages: `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, which the Makefile and the other benchmarks set.
- large, kept: both, by `GLIBC_TUNABLES` (`KEPT` in `benchmarks/pieces.py`).

Machine: {machine}.

```
python benchmarks/pieces.py --rounds {rounds}
```
"""


if __name__ == "__main__":
    main()
