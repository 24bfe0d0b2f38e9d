"""What packing is worth: real tokens a second of whole training steps on packed rows against padded ones; how full rows are.

  python benchmarks/packing.py --data DIR    # minutes; writes docs/results/packing.md and benchmarks/results/packing.json

DIR is the folder of real data; without it only documents of random words are measured, which have the lengths of Wikipedia's,
cut at 512 as BERT's own preparation does it: the histogram of 16,279,552 sequences that Graphcore published with Krell et al.
2021 (graphcore/tutorials, blogs_code/packedBERT/histograms.py), here in 16 bins of 32 tokens, uniform within each, and the
share of full sequences. Time does not depend on which words they are. Both contestants train the same encoder in one process
and take turns, a few steps each, every step on a new batch of the loader.
"""

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import provenance  # noqa: E402

from bert_jax import tokenizers  # noqa: E402
from bert_jax.data import packing  # noqa: E402
from bert_jax.data.pairs import PairSpec  # noqa: E402
from bert_jax.data.prepare import prepare  # noqa: E402
from bert_jax.data.store import TokenStore  # noqa: E402
from bert_jax.models.config import EncoderConfig  # noqa: E402
from bert_jax.objectives import MaskedLM, NextSentence, SentenceOrder  # noqa: E402
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask  # noqa: E402
from bert_jax.parallel.mesh import (  # noqa: E402
    MeshConfig,
    make_mesh,
    to_devices,
)
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer  # noqa: E402
from bert_jax.training.optimizer import AdamW, make_optimizer  # noqa: E402
from bert_jax.training.step import abstract_state, init_state, make_train_step  # noqa: E402

LENGTH, FULL = 512, 3_815_044
# Sequences of 1 to 32 tokens, of 33 to 64, ...; those of 512 are FULL.
HISTOGRAM = np.array([584_835, 2_278_244, 1_853_320, 1_297_484, 1_014_430, 841_112, 720_373, 629_192, 554_205, 496_001, 449_775,
                      409_734, 375_272, 347_246, 321_394, 291_891])
MOST = 12  # examples of a row
VOCABULARY, LAYERS, WIDTH, ROWS = 30_522, 2, 128, 8
PAGE, RESULTS = ROOT / "docs" / "results" / "packing.md", ROOT / "benchmarks" / "results" / "packing.json"
REAL = {"LibreOffice help": ("help-en-us.txt.gz", r"^# doc: .*\n"), "books": ("books.txt.gz", "\f")}  # a document begins there
CHARACTERS = 8_000_000  # of a text


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of sequences, special ones counted; the shortest of the histogram have 5."""
    rng, full = np.random.default_rng(seed), FULL / (FULL + HISTOGRAM.sum())
    bins = rng.choice(len(HISTOGRAM), count, p=HISTOGRAM / HISTOGRAM.sum())
    drawn = np.clip(32 * bins + rng.integers(1, 33, count), 5, LENGTH - 1)
    return np.where(rng.random(count) < full, LENGTH, drawn)


def wikipedia(folder: Path, documents: int) -> TokenStore:
    """A store of documents of these lengths less [CLS] and two [SEP], a sentence having 5 to 35 words of one piece."""
    words = [f"w{number}" for number in range(1000)]
    rest = [f"[unused{number}]" for number in range(VOCABULARY - len(words) - len(SPECIALS) - 11)]
    tokenizer = WordPieceTokenizer([*SPECIALS, *"w0123456789", *words, *rest])
    rng = np.random.default_rng(1)
    with (folder / "text.txt").open("w") as file:
        for size in (lengths(documents) - 3).tolist():
            while size > 0:
                sentence = min(size, int(rng.integers(5, 36)))
                file.write(" ".join(words[i] for i in rng.integers(0, len(words), sentence)) + "\n")
                size -= sentence
            file.write("\n")
    prepare([folder / "text.txt"], folder / "store", tokenizer, sentences="line", heldout=0.0, progress=False)
    return TokenStore(folder / "store")


def real(folder: Path, data: Path, name: str) -> TokenStore:
    """A store of real text with the vocabulary of bert-base-uncased: of the help all documents, of the books the first few."""
    source, mark = REAL[name]
    with gzip.open(data / "text" / source, "rt", encoding="utf-8") as file:
        text = file.read(CHARACTERS)
    parts = re.split(mark, text, flags=re.M)[1:]
    place = folder / f"{name}.txt"
    place.write_text("\f".join(parts), encoding="utf-8")
    vocabulary = tokenizers.load(data / "vocab" / "bert-base-uncased-vocab.txt")
    prepare([place], folder / name, vocabulary, documents="formfeed", heldout=0.0, progress=False)
    return TokenStore(folder / name)


def fill(store: TokenStore, pairs: str, short: float, most: int = MOST, window: int = packing.WINDOW) -> dict:
    """How full the rows of an epoch are, padded and packed, and what packing an example costs one core."""
    packing.WINDOW, before = window, packing.WINDOW
    examples = PairSpec(LENGTH, pairs, short, packing=most).open(store.split("train"), seed=0)
    rows, began = packing.PackedRows(examples), time.process_time()
    total = rows.count(None)
    seconds = time.process_time() - began
    packing.WINDOW = before
    tokens = int(examples.sizes(examples.segments(np.arange(examples.count))).sum())
    return {
        "pairs": pairs, "most": most, "window": min(window, examples.count), "examples": examples.count, "rows": total,
        "padded": tokens / (examples.count * LENGTH), "packed": tokens / (total * LENGTH),
        "microseconds_an_example": 1e6 * seconds / examples.count,
    }


class Contestant:
    """A training run on one kind of rows: ``run(n)`` does n steps and returns seconds, real tokens and examples."""

    def __init__(self, store: TokenStore, pairs: str, most: int | None):
        pair = SentenceOrder() if pairs == "sop" else NextSentence()
        encoder = EncoderConfig(vocab_size=VOCABULARY, embedding_width=WIDTH, hidden_width=WIDTH, layers=LAYERS,
                                heads=WIDTH // 64, ffn_width=4 * WIDTH, max_length=LENGTH)
        examples = PairSpec(LENGTH, pairs, short_fraction=0.0, packing=most)
        task = PretrainingTask(Pretraining(encoder, (MaskedLM(), pair), examples), store)
        self.mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
        optimizer = make_optimizer(AdamW(warmup_steps=10), 100_000, task.logical_axes())
        abstract = abstract_state(task, optimizer, self.mesh)
        self.state = init_state(task, optimizer, abstract, jax.random.key(0))
        self.step = make_train_step(task, optimizer, self.mesh, abstract, accumulate=1)
        self.batches = task.train_batches(ROWS, 0)

    def run(self, steps: int) -> tuple[float, float, int]:
        before, tokens = self.batches.get_state()["examples"], 0.0
        began = time.perf_counter()
        with jax.set_mesh(self.mesh):
            for _ in range(steps):
                self.state, metrics = self.step(self.state, to_devices(next(self.batches), self.mesh))
                tokens += float(metrics["tokens"].sum)
        assert np.isfinite(float(metrics["loss"].sum))
        return time.perf_counter() - began, tokens, self.batches.get_state()["examples"] - before


def contest(store: TokenStore, pairs: str, rounds: int, steps: int) -> dict:
    """Ratios round by round."""
    contestants = {"padded": Contestant(store, pairs, None), "packed": Contestant(store, pairs, MOST)}
    for contestant in contestants.values():
        contestant.run(2)  # compiles
    found: dict[str, list] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in sorted(contestants, reverse=bool(number % 2)):
            found[name].append(contestants[name].run(steps))
    speeds = {name: [tokens / seconds for seconds, tokens, _ in runs] for name, runs in found.items()}
    ratios = [one / other for one, other in zip(speeds["packed"], speeds["padded"], strict=True)]
    each = {name: {
        "tokens_per_second": statistics.median(speeds[name]),
        "step_seconds": statistics.median(seconds / steps for seconds, _, _ in runs),
        "examples_per_step": sum(run[2] for run in runs) / (rounds * steps),
        "filled": sum(run[1] for run in runs) / (rounds * steps * ROWS * LENGTH),
    } for name, runs in found.items()}
    return {"pairs": pairs, "rounds": rounds, "steps": steps, "ratio": statistics.median(ratios), "ratios": ratios} | each


def page(result: dict) -> str:
    machine, contests, fills = result["machine"], [], []
    for found in result["contests"]:
        ratio = f"{found['ratio']:.2f} ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})"
        for name in ("padded", "packed"):
            row = found[name]
            contests.append(f"| {found['pairs']} | {name} | {row['filled']:.1%} | {row['examples_per_step']:.1f} | "
                            f"{1000 * row['step_seconds']:.0f} | {row['tokens_per_second']:,.0f} | "
                            f"{ratio if name == 'packed' else ''} |")
    for row in result["fills"]:
        fills.append(f"| {row['text']} | {row['pairs']} | {row['examples']:,} | {row['most']} | {row['window']:,} | "
                     f"{row['padded']:.1%} | {row['packed']:.1%} | {row['packed'] / row['padded']:.2f} | "
                     f"{row['microseconds_an_example']:.1f} |")
    first = result["contests"][0]
    return f"""# Packing

Several examples in a row of {LENGTH} tokens against one and padding ([what it is](../objectives.md#packing)). Regenerate with
`{result["command"]}`; DIR is the folder of real data.

"Wikipedia's lengths" are those of Wikipedia as BERT's preparation cuts it, 23.4% of them full: the histogram of 16,279,552
sequences that Graphcore published with Krell et al. 2021 (`blogs_code/packedBERT/histograms.py` in graphcore/tutorials), in
bins of 32 tokens. By that histogram rows are 50.0% full, so that nothing can gain much more than
2.0 times (the sample's are 49.5%). The words are random.

## Whole training steps

{LAYERS} layers of width {WIDTH}, vocabulary {VOCABULARY:,}, {ROWS} rows of {LENGTH} in float32, dropout 0.1, AdamW, MLM with
SOP or NSP, batches from the loader; {machine["cores"]} CPU cores ({machine["processor"]}), jax {result["versions"]["jax"]},
other work beside. Both take turns in one process, {first["steps"]} steps each in {first["rounds"]} rounds. The ratio is the
median of the rounds' ratios of real tokens a second, with the least and the largest (a few padded rows may be full or
empty). Target: 1.8. Up to {MOST} examples share a row.

| pairs | rows | full | examples a step | step, ms | real tokens/s | ratio |
|---|---|---|---|---|---|---|
{chr(10).join(contests)}

SOP keeps the lengths of the documents as they are. NSP gives half of the examples another document's text as their second half.
A packed step has a bias for every query, slots for {MaskedLM().predictions(LENGTH, MOST)} predictions a row instead of
{MaskedLM().predictions(LENGTH)}, and {MOST} pooled states instead of one. On a GPU or TPU: not measured.

## How full rows are

"packing" is the most examples of a row, "window" among how many examples they are chosen, "gain" the ratio of the two shares,
which steps of equal time would gain. The time is that of one core for finding lengths and packing them, on a busy machine.
LibreOffice's help is real text of short documents; of the books the first {CHARACTERS / 1e6:.0f} million characters.

| text | pairs | examples | packing | window | padded | packed | gain | µs an example |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(fills)}

With few examples in a row the short ones are left over, and share rows among themselves. Krell et al. come near the optimum
with three, by solving for the histogram of the whole corpus beforehand (NNLSHP). Here a window is packed when it is needed, and
room for more examples costs little. Books are longer than rows, so that hardly anything is to be gained.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of real data")
    parser.add_argument("--documents", type=int, default=12_000, help="of Wikipedia's lengths")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = wikipedia(folder, arguments.documents)
        fills, name = [], "Wikipedia's lengths"
        for most in (3, 6, 8, 12, 16):
            fills.append({"text": name} | fill(store, "sop", 0.0, most))
        fills += [{"text": name} | fill(store, "sop", 0.0, window=1024), {"text": name} | fill(store, "nsp", 0.0)]
        fills += [{"text": name} | fill(real(folder, arguments.data, name), "nsp", 0.1) for name in REAL if arguments.data]
        print(json.dumps(fills, indent=1), flush=True)
        contests = []
        for pairs in ("sop", "nsp"):
            contests.append(contest(store, pairs, arguments.rounds, arguments.steps))
            print(contests[-1], flush=True)
    result = {
        "command": "python benchmarks/packing.py" + (" --data DIR" if arguments.data else ""),
        "code": provenance.code(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy", "grain")},
        "histogram": {"bins of 32": HISTOGRAM.tolist(), "full": FULL},
        "contests": contests, "fills": fills,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page(result))


if __name__ == "__main__":
    main()
