"""Sentences to vectors, all-MiniLM-L6-v2 in float32: ours against sentence-transformers and ONNX Runtime on the same strings.

    python benchmarks/weights.py all-MiniLM-L6-v2
    python benchmarks/encode.py --data ../shared/data --out benchmarks/results/encode_cpu.json
    python benchmarks/encode.py --data ../shared/data --sentences 1000 --peers torch

Sentences are those of STS-B, English first, all different. A turn is one call with all of them, strings in, float32 vectors
out; the first one compiles. Ours is ``bert_jax.embed``; ``torch`` is sentence-transformers as it comes; ``onnxruntime`` a
session on the exported file with the tokenizers library, sentences sorted by length and padded to the longest of a batch. The
vectors of all agree within 1e-4, or the benchmark ends.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import contest
import provenance
import weights

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("torch", "onnxruntime")
MODEL, LANGUAGES, CLOSE = "all-MiniLM-L6-v2", ("en", "de", "es", "fr"), 1e-4
PROBE = 40  # sentences whose vectors are compared
SHARED = ROOT.parent / "shared/data"


def sentences(data: Path, count: int) -> list[str]:
    """Different sentences of STS-B, those of English files first, in their order.

    Raises:
      SystemExit: there are not so many.
    """
    found: dict[str, None] = {}
    for language in LANGUAGES:
        for split in ("train", "dev", "test"):
            path = data / f"sts/stsb/stsb-{language}-{split}.csv"
            if path.exists():
                with path.open(encoding="utf-8", newline="") as file:
                    found.update(dict.fromkeys(text for row in csv.reader(file) for text in row[:2]))
    if len(found) < count:
        sys.exit(f"{data}/sts/stsb has {len(found):,} different sentences, not {count:,} (--data names the folder with sts/)")
    return list(found)[:count]


def encoder(name: str, folder: Path, batch_size: int) -> Callable[[list[str]], object]:
    """A contestant: strings to float32 vectors [n, 384]."""
    if name == "ours":
        import bert_jax

        model = bert_jax.load(folder)
        return lambda texts: bert_jax.embed(model, texts, batch_size=batch_size)
    if name == "onnxruntime":
        return onnxruntime_encoder(folder, batch_size)
    from sentence_transformers import SentenceTransformer

    net = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: net.encode(texts, batch_size=batch_size, show_progress_bar=False)


def exported(folder: Path) -> Path:
    """The ONNX file of the encoder, made by our exporter."""
    target = ROOT / "runs/encode" / f"{MODEL}-onnx"
    if not target.exists():
        import bert_jax

        target.parent.mkdir(parents=True, exist_ok=True)
        bert_jax.save(bert_jax.load(folder), target, format="onnx")
    return next(target.rglob("*.onnx"))


def onnxruntime_encoder(folder: Path, batch_size: int) -> Callable[[list[str]], object]:
    """Mean pooling and norms in NumPy of what :func:`onnxruntime_session` gives."""
    import numpy as np

    session = onnxruntime_session(exported(folder), folder, 256, "last_hidden_state")

    def encode(texts: list[str]):
        vectors = np.empty((len(texts), 384), np.float32)
        for chosen, mask, hidden in session(texts, batch_size):
            summed = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            vectors[chosen] = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return vectors

    return encode


def onnxruntime_session(file: Path, folder: Path, length: int, output: str) -> Callable[[list, int], Iterator[tuple]]:
    """A session with as many threads as cores: (texts or pairs, batch size) -> which of them, mask, ``output``, batch by
    batch, the longest first; the tokenizer is that of ``folder``, texts are cut at ``length`` tokens."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    names = [one.name for one in session.get_inputs()]

    def batches(texts: list, batch_size: int) -> Iterator[tuple]:
        encoded = tokenizer.encode_batch(texts)
        order = np.argsort([-len(one.ids) for one in encoded], kind="stable")
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask, segments = np.zeros((3, len(chosen), len(encoded[chosen[0]].ids)), np.int64)
            for row, k in enumerate(chosen):
                there = len(encoded[k].ids)
                ids[row, :there], mask[row, :there], segments[row, :there] = encoded[k].ids, 1, encoded[k].type_ids
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
            yield chosen, mask, session.run([output], {name: given[name] for name in names})[0]

    return batches


def worker(name: str, data: Path, count: int, batch_size: int) -> None:
    """A contestant's process: encodes all sentences at every turn, and after the first one says the vectors of some."""
    texts = sentences(data, count)
    encode = encoder(name, weights.weights_dir() / MODEL, batch_size)

    def run(times: int) -> None:
        for _ in range(times):
            encode(texts)

    def probe() -> dict:
        chosen = texts[:: max(1, count // PROBE)][:PROBE]
        return {"vectors": [[round(float(x), 6) for x in row] for row in encode(chosen)]}

    contest.answer(run, 1, probe)


def compare(data: Path, count: int, peers: list[str], rounds: int, batch_size: int) -> dict:
    """Sentences a second of everybody, and how many times as fast ours is, with the range over rounds."""
    arguments = ["--data", str(data), "--sentences", str(count), "--batch-size", str(batch_size)]
    found = contest.contest(__file__, ["ours", *peers], arguments, rounds, 1, f"batch {batch_size}: ")
    return contest.rates(found, count, "sentences", "vectors", CLOSE)


def main() -> None:
    """Reads the command line, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with sts/; default: ../shared/data, and nothing is measured without")
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32])
    parser.add_argument("--out", type=Path, help="JSON file to write; contestants left out keep their figures there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data is None and not (SHARED / "sts").is_dir():
        print("left out, for want of STS-B: sentence vectors (--data names the folder with sts/)", file=sys.stderr)
        return
    data = (arguments.data or SHARED).resolve()
    if not (weights.weights_dir() / MODEL / "config.json").exists():
        sys.exit(f"no weights: python benchmarks/weights.py {MODEL}")
    if arguments.worker:
        worker(arguments.worker, data, arguments.sentences, arguments.batch_size[0])
        return
    run, results = provenance.begin(), {}
    if "onnxruntime" in arguments.peers:
        exported(weights.weights_dir() / MODEL)
    for size in arguments.batch_size:
        rows = compare(data, arguments.sentences, arguments.peers, arguments.rounds, size)
        results[f"{arguments.sentences:,} sentences, batch {size}"] = rows
        for name, row in rows.items():
            middle, low, high = row["ours_over_it"]
            print(f"batch {size:3d} {name:14s} {row['sentences_per_second']:8.1f} sentences/s, first call "
                  f"{row['first_seconds']:5.1f} s   ours is {middle:.2f} x ({low:.2f} to {high:.2f})", flush=True)
    if arguments.out:
        versions = contest.environment("jax", "torch", "sentence-transformers", "onnxruntime", "tokenizers", "numpy")
        settings = {"environment": versions, "rounds": arguments.rounds, "results": results}
        contest.keep(arguments.out, provenance.ended(run) | settings)


if __name__ == "__main__":
    main()
