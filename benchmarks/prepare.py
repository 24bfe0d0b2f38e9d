"""How fast text becomes a token store, with the memory it takes.

python benchmarks/prepare.py books.txt.gz --vocab vocab.txt --documents formfeed [--keep STORE] [--json FILE]
python benchmarks/prepare.py SOURCES --vocab vocab.txt --runner beam [--beam-options --direct_num_workers=2 ...]
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import resource
import shutil
import sys
import tempfile
import time

import numpy as np
import nupunkt
import tokenizers as rust_tokenizers

from bert_jax import tokenizers
from bert_jax.data.prepare import prepare
from bert_jax.data.sentences import MODES, splitter
from bert_jax.data.sources import Corpus
from bert_jax.data.stages import Recipe


def measure_splitting(corpus: Corpus, sentences: str, limit: int) -> float:
    """Megabytes a second of the sentence splitter alone, on one core, over the first `limit` characters."""
    split = splitter(sentences)
    text = ""
    for document in corpus:
        text += document[: limit - len(text)]
        if len(text) >= limit:
            break
    split(text[:1000])  # loads the model
    began = time.perf_counter()
    split(text)
    return len(text.encode()) / 1e6 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", help="what to read: files, globs, tfds:NAME")
    parser.add_argument("--vocab", required=True, help="a tokenizer: vocab.txt, tokenizer.json, .model or a folder")
    parser.add_argument("--documents", default="blank", help="where documents begin (default blank)")
    parser.add_argument("--sentences", default="punkt", choices=MODES, help="how sentences are found (default punkt)")
    parser.add_argument("--heldout", type=float, default=0.02, help="share of documents kept apart (default 0.02)")
    parser.add_argument("--workers", type=int, help="processes that tokenise (default: all cores)")
    parser.add_argument("--runner", choices=["local", "beam"], default="local", help="what prepares (default local)")
    parser.add_argument("--beam-options", nargs=argparse.REMAINDER, default=[], help="everything after it is Beam's")
    parser.add_argument("--keep", type=pathlib.Path, help="leave the store here")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    options = parser.parse_args()

    tokenizer = tokenizers.load(options.vocab)
    corpus = Corpus(options.sources, documents=options.documents)
    splitting = measure_splitting(corpus, options.sentences, 4_000_000)
    text_bytes = sum(len(document.encode()) for document in corpus)
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = sum(sum(resource.getrusage(who)[:2]) for who in processes)
    with tempfile.TemporaryDirectory() as folder:
        out = options.keep or pathlib.Path(folder) / "store"
        recipe = Recipe(documents=options.documents, sentences=options.sentences, heldout=options.heldout)
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
    result = {
        "command": "python benchmarks/prepare.py SOURCES --vocab VOCAB",
        "runner": " ".join([options.runner, *options.beam_options]),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
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
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
