"""How fast text becomes a token store, with the memory it takes; and beside it, what the tokenizers library alone takes.

python benchmarks/prepare.py books.txt.gz --vocab vocab.txt --documents formfeed [--keep STORE] [--json FILE]
python benchmarks/prepare.py books.txt.gz --vocab vocab.txt --documents formfeed --rounds 5 [--json FILE]
python benchmarks/prepare.py SOURCES --vocab vocab.txt --runner beam [--beam-options --direct_num_workers=2 ...]

With `--rounds` the library takes turns with `prepare`, each in a process of its own, on as many cores: its own threads, or as
many processes as `prepare` has workers. It is given texts in memory, whole documents or paragraphs, and nobody takes its ids;
`prepare` reads files, finds sentences and writes a store. Ratios are taken round by round, of time and of processor time; the
latter says more on a machine that does other work.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import pathlib
import platform
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

import contest
import numpy as np
import nupunkt
import provenance
import tokenizers as rust_tokenizers

from bert_jax import tokenizers
from bert_jax.data.prepare import prepare
from bert_jax.data.sentences import MODES, splitter
from bert_jax.data.sources import Corpus
from bert_jax.data.stages import Recipe

OURS = "prepare"
# What the library is called with: the method (the fast one leaves out offsets), and how texts are cut.
TEXTS = {
    "documents": ("encode_batch", lambda document: [document]),
    "paragraphs": ("encode_batch_fast", lambda document: re.split(r"\n\s*\n", document)),
}
# Contestants, and the characters of a call, as suits the library: it takes longer over more, but its threads share one call.
LIBRARY = {
    "threads documents": 1 << 22,
    "threads paragraphs": 1 << 18,
    "processes documents": 1 << 16,
    "processes paragraphs": 1 << 16,
}


def measure_splitting(corpus: Corpus, sentences: str, limit: int) -> float:
    """Megabytes per second of processor time of the sentence splitter alone, over the first `limit` characters."""
    split = splitter(sentences)
    text = ""
    for document in corpus:
        text += document[: limit - len(text)]
        if len(text) >= limit:
            break
    split(text[:1000])  # loads the model
    began = time.process_time()
    split(text)
    return len(text.encode()) / 1e6 / (time.process_time() - began)


def measure(options: argparse.Namespace, recipe: Recipe, corpus: Corpus) -> dict:
    """One store: seconds, bytes and memory."""
    tokenizer = tokenizers.load(options.vocab)
    splitting = measure_splitting(corpus, options.sentences, 4_000_000)
    text_bytes = sum(len(document.encode()) for document in corpus)
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = sum(sum(resource.getrusage(who)[:2]) for who in processes)
    with tempfile.TemporaryDirectory() as folder:
        out = options.keep or pathlib.Path(folder) / "store"
        if options.runner == "beam":
            from bert_jax.data.beam import prepare_with_beam  # an extra

        began = time.perf_counter()
        if options.runner == "beam":
            manifest = prepare_with_beam(options.sources, out, tokenizer, recipe, beam_options=options.beam_options)
        else:
            manifest = prepare(options.sources, out, tokenizer, workers=options.workers, **dataclasses.asdict(recipe))
        seconds = time.perf_counter() - began
        disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        if not options.keep:
            shutil.rmtree(out)
    unit = 1e6 if sys.platform == "darwin" else 1e3  # getrusage counts bytes there and kilobytes on Linux
    return {
        "runner": " ".join([options.runner, *options.beam_options]),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "tokenizers": rust_tokenizers.__version__,
            "nupunkt": nupunkt.__version__,
        },
        "text_mb": round(text_bytes / 1e6, 1),
        "seconds": round(seconds, 1),
        # Of this process and those that it started: less than `seconds` times the cores where others use them too.
        "processor_seconds": round(sum(sum(resource.getrusage(who)[:2]) for who in processes) - before, 1),
        "mb_per_second": round(text_bytes / 1e6 / seconds, 2),
        "sentence_splitting_mb_per_second": round(splitting, 2),
        "store_mb": round(disk / 1e6, 1),
        "peak_mb_main": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit),
        # At least what this process held when it started them: Linux counts a child from before its exec.
        "peak_mb_largest_worker": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit),
        "splits": {
            name: {"documents": info.documents, "sentences": info.sentences, "tokens": info.tokens}
            for name, info in manifest.splits.items()
        },
    }


# Contestants


def preparing(options: argparse.Namespace, recipe: Recipe) -> Callable[[], int]:
    """A turn of `prepare`: files to a store that is thrown away. Returns its tokens."""
    tokenizer = tokenizers.load(options.vocab)

    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            manifest = prepare(
                options.sources, pathlib.Path(folder) / "store", tokenizer, workers=options.workers, progress=False,
                **dataclasses.asdict(recipe),
            )  # fmt: skip
        return sum(split.tokens for split in manifest.splits.values())

    return run


def batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """All texts, as many at a time as have about so many characters."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_encode: Callable[[int], int]  # here, where processes that are forked find it


def _encode_batch(number: int) -> int:
    return _encode(number)


def library(name: str, options: argparse.Namespace, corpus: Corpus) -> Callable[[], int]:
    """A turn of the library: texts in memory to encodings that nobody reads. Returns its tokens."""
    global _encode
    way, texts = name.split()
    method, cut = TEXTS[texts]
    with tempfile.TemporaryDirectory() as folder:
        tokenizers.load(options.vocab).save(folder)
        pipeline = rust_tokenizers.Tokenizer.from_file(str(pathlib.Path(folder, "tokenizer.json")))
    calls = list(batches((text for document in corpus for text in cut(document)), LIBRARY[name]))
    call = getattr(pipeline, method)
    _encode = lambda number: sum(map(len, call(calls[number], add_special_tokens=False)))  # noqa: E731
    if way == "threads":
        os.environ["RAYON_NUM_THREADS"] = str(options.workers)
        return lambda: sum(map(_encode, range(len(calls))))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def run() -> int:
        with multiprocessing.get_context("fork").Pool(options.workers) as pool:
            tokens = sum(pool.imap_unordered(_encode_batch, range(len(calls))))
            pool.close()
            pool.join()  # their processor time counts when they have ended
        return tokens

    return run


def contestant(options: argparse.Namespace, recipe: Recipe, corpus: Corpus) -> None:
    turn = preparing(options, recipe) if options.worker == OURS else library(options.worker, options, corpus)
    said = {}

    def run(count: int) -> None:
        for _ in range(count):
            said["tokens"] = turn()

    contest.answer(run, 1, lambda: said)


def compare(options: argparse.Namespace, recipe: Recipe, text_mb: float) -> dict:
    """Seconds of everybody, and how many times as long the library takes as `prepare`, with the range over rounds."""
    arguments = [*map(str, options.sources), "--vocab", options.vocab, "--workers", str(options.workers)]
    for name in ("documents", "sentences", "heldout"):
        arguments += [f"--{name}", str(getattr(recipe, name))]
    found = contest.contest(__file__, [OURS, *LIBRARY], arguments, options.rounds, 1)
    seconds = {name: statistics.median(times.turns) for name, times in found.items()}
    ours = found[OURS]
    rows = {
        name: {
            "seconds": round(seconds[name], 2),
            "processor_seconds": round(statistics.median(times.processor), 2),
            "mb_per_second": round(text_mb / seconds[name], 2),
            "tokens": times.said["tokens"],
            "ours_over_it": [round(value, 3) for value in contest.ratio(times.turns, ours.turns)],
            "ours_over_it_processor": [round(value, 3) for value in contest.ratio(times.processor, ours.processor)],
        }
        for name, times in found.items()
    }
    return {
        "rounds": options.rounds, "workers": options.workers,
        "best_of_library": min(LIBRARY, key=seconds.get), "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="what to read: files, globs, tfds:NAME")
    parser.add_argument("--vocab", required=True, help="a tokenizer: vocab.txt, tokenizer.json, .model or a folder")
    parser.add_argument("--documents", default="blank", help="where documents begin (default blank)")
    parser.add_argument("--sentences", default="punkt", choices=MODES, help="how sentences are found (default punkt)")
    parser.add_argument("--heldout", type=float, default=0.02, help="share of documents kept apart (default 0.02)")
    parser.add_argument("--workers", type=int, help="processes that tokenise (default: all cores)")
    parser.add_argument("--rounds", type=int, default=0, help="turns that the library takes with it (default 0)")
    parser.add_argument("--runner", choices=["local", "beam"], default="local", help="what prepares (default local)")
    parser.add_argument("--beam-options", nargs=argparse.REMAINDER, default=[], help="everything after it is Beam's")
    parser.add_argument("--keep", type=pathlib.Path, help="leave the store here")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()

    recipe = Recipe(documents=options.documents, sentences=options.sentences, heldout=options.heldout)
    corpus = recipe.corpus(options.sources)
    if options.worker:
        contestant(options, recipe, corpus)
        return
    begun = provenance.begin()
    result = measure(options, recipe, corpus)
    if options.rounds:
        options.workers = options.workers or len(os.sched_getaffinity(0))
        result["library"] = compare(options, recipe, result["text_mb"])
    text = json.dumps(provenance.ended(begun) | result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
