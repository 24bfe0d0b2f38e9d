"""Texts to classes and their probabilities, MiniLM-L6 in float32: ours against transformers' pipeline and ONNX Runtime.

    python benchmarks/weights.py all-MiniLM-L6-v2
    python benchmarks/predict.py --data ../shared/data --out benchmarks/results/predict_cpu.json
    python benchmarks/predict.py --data ../shared/data --kinds sentences --texts 1000 --peers pipeline

``sentences`` are the first of SST-2's training set, ``pairs`` of MRPC's. The classifier is that of all-MiniLM-L6-v2 with a
head that has learnt nothing, which takes as long as one that has. A turn is one call with all texts, strings in, labels and
probabilities out; the first one compiles. Ours is ``bert_jax.predicting.predict``; ``pipeline`` is transformers' for text
classification, told a batch size; ``pipeline-sorted`` is the same for a user who gives it his texts in order of their length;
``onnxruntime`` a session on the exported file with the tokenizers library, texts sorted by length and padded to the longest of
a batch. The probabilities of all agree within 1e-4, or the benchmark ends.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import contest
import encode
import provenance
import weights

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("pipeline", "pipeline-sorted", "onnxruntime")
MODEL, LENGTH, CLOSE = encode.MODEL, 128, 1e-4
PROBE = 40  # texts whose probabilities are compared
LABELS = ("no", "yes")
HEAD = 0.5  # standard deviation of the head's weights: large, so that texts differ in their answers
TEXTS = {"sentences": 4_000, "pairs": 1_000}
SHARED = ROOT.parent / "shared/data"


def texts_of(kind: str, data: Path, count: int) -> list:
    """The first ``count`` sentences of SST-2's, or (first, second) of MRPC's training set.

    Raises:
      SystemExit: there are not so many.
    """
    from bert_jax.tasks.tables import Table

    if kind == "sentences":
        table = Table(str(data / "glue/sst2/train.tsv"), ("sentence",), "label")
    else:
        table = Table(str(data / "glue/mrpc/msr-para-train.tsv"), ("#1 String", "#2 String"), "Quality")
    found = table.read().texts
    if len(found) < count:
        sys.exit(f"{table.path} has {len(found):,} rows, not {count:,}")
    return [text if len(text) > 1 else text[0] for text in found[:count]]


def classifier() -> Path:
    """A folder that transformers opens: the encoder with a classifier that has learnt nothing, made once."""
    target = ROOT / "runs/predict" / f"{MODEL}-{HEAD}"
    if not target.exists():
        import jax

        import bert_jax
        from bert_jax.models import api
        from bert_jax.tasks.base import finetuned_encoder

        model = bert_jax.load(weights.weights_dir() / MODEL)
        config = finetuned_encoder(model.config, LABELS)
        params = api.init(dataclasses.replace(config, init_std=HEAD), jax.random.key(0))
        params |= {name: value for name, value in model.params.items() if name in params}
        target.parent.mkdir(parents=True, exist_ok=True)
        bert_jax.save(model._replace(params=params, config=config, sentence=None), target)
    return target


def exported() -> Path:
    """The ONNX file of the classifier."""
    target = ROOT / "runs/predict" / f"{MODEL}-{HEAD}-onnx"
    if not target.exists():
        import bert_jax

        bert_jax.save(bert_jax.load(classifier()), target, format="onnx")
    return next(target.rglob("*.onnx"))


def contestant(name: str, batch_size: int) -> Callable[[list], list[list[float]]]:
    """Texts -> the probabilities of ``LABELS`` of each, in their order."""
    folder = classifier()
    if name == "ours":
        import bert_jax
        from bert_jax import predicting

        ready = predicting.of_model(bert_jax.load(folder))
        return lambda texts: [
            [answer[f"probability of {label}"] for label in LABELS]
            for answer in predicting.predict(ready, texts, batch_size=batch_size)
        ]
    if name == "onnxruntime":
        return onnxruntime_classifier(folder, batch_size)
    import transformers

    pipeline = transformers.pipeline("text-classification", str(folder), device=-1, batch_size=batch_size, top_k=None)

    def given(text: str | tuple[str, str]) -> str | dict[str, str]:
        return text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}

    def classify(texts: list) -> list[list[float]]:
        order = list(range(len(texts)))
        if name == "pipeline-sorted":
            order.sort(key=lambda k: len("".join(texts[k])), reverse=True)
        found: list = [None] * len(texts)
        answers = pipeline([given(texts[k]) for k in order], truncation=True, max_length=LENGTH)
        for k, answer in zip(order, answers, strict=True):
            scores = {row["label"]: row["score"] for row in answer}
            found[k] = [scores[label] for label in LABELS]
        return found

    return classify


def onnxruntime_classifier(folder: Path, batch_size: int) -> Callable[[list], list[list[float]]]:
    """The softmax in NumPy of what a session gives."""
    import numpy as np

    session = encode.onnxruntime_session(exported(), folder, LENGTH, "logits")

    def classify(texts: list) -> list[list[float]]:
        found = np.empty((len(texts), len(LABELS)), np.float32)
        for chosen, _, logits in session(texts, batch_size):
            raised = np.exp(logits - logits.max(axis=1, keepdims=True))
            found[chosen] = raised / raised.sum(axis=1, keepdims=True)
        return found.tolist()

    return classify


def worker(name: str, kind: str, data: Path, count: int, batch_size: int) -> None:
    """A contestant's process: classifies all texts at every turn, and after the first one says probabilities of some."""
    texts, classify = texts_of(kind, data, count), contestant(name, batch_size)

    def run(times: int) -> None:
        for _ in range(times):
            classify(texts)

    contest.answer(run, 1, lambda: {"probabilities": classify(texts[:: max(1, count // PROBE)][:PROBE])})


def main() -> None:
    """Reads the command line, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with glue/; default: ../shared/data, and nothing is measured without")
    parser.add_argument("--kinds", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--texts", type=int, help=f"of each kind; default: {TEXTS}")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, help="JSON file to write; contestants left out keep their figures there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data is None and not (SHARED / "glue").is_dir():
        print("left out, for want of SST-2 and MRPC: classes of texts (--data names the folder with glue/)", file=sys.stderr)
        return
    data = (arguments.data or SHARED).resolve()
    if not (weights.weights_dir() / MODEL / "config.json").exists():
        sys.exit(f"no weights: python benchmarks/weights.py {MODEL}")
    if arguments.worker:
        worker(arguments.worker, arguments.kinds[0], data, arguments.texts, arguments.batch_size)
        return
    run, results = provenance.begin(), {}
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process alone: it makes the classifier
    classifier()
    if "onnxruntime" in arguments.peers:
        exported()
    for kind in arguments.kinds:
        count = arguments.texts or TEXTS[kind]
        words = ["--data", str(data), "--kinds", kind, "--texts", str(count), "--batch-size", str(arguments.batch_size)]
        found = contest.contest(__file__, ["ours", *arguments.peers], words, arguments.rounds, 1, f"{kind}: ")
        rows = results[f"{count:,} {kind}, batch {arguments.batch_size}"] = contest.rates(
            found, count, "texts", "probabilities", CLOSE
        )
        for name, row in rows.items():
            middle, low, high = row["ours_over_it"]
            print(f"{kind:10s} {name:16s} {row['texts_per_second']:8.1f} texts/s, first call {row['first_seconds']:5.1f} s   "
                  f"ours is {middle:.2f} x ({low:.2f} to {high:.2f})", flush=True)
    if arguments.out:
        versions = contest.environment("jax", "torch", "transformers", "onnxruntime", "tokenizers", "numpy")
        contest.keep(arguments.out, provenance.ended(run) | {"environment": versions, "rounds": arguments.rounds,
                                                             "results": results})


if __name__ == "__main__":
    main()
