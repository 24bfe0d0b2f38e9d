"""Text to token store.

This process reads and writes; worker processes split into sentences and tokenise. Work goes out in pieces of about
half a megabyte, a bounded number of them at a time, and comes back in the order it went. So the store is the same
byte for byte whatever the number of workers, and no process ever holds more than one document and a few pieces.

All is written into ``OUT.partial``, which is renamed to ``OUT`` when it is whole. Whenever a shard is full, what
stands on disk is recorded in ``OUT.partial/state.json``; the next run with the same inputs reads the text again
(fast), tokenises nothing of it again (slow), and goes on from there.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import logging
import math
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bert_jax.data.sentences import pieces, splitter
from bert_jax.data.sources import Corpus
from bert_jax.data.store import FORMAT, PARTIAL, Manifest, token_dtype, word_start_bit
from bert_jax.data.writer import STATE, StoreWriter, chained, locked
from bert_jax.errors import BertJaxError

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

TASK = 1 << 19  # characters sent to a worker at once


def prepare(
    sources: Sequence[str | os.PathLike],
    out_dir: str | os.PathLike,
    tokenizer: "Tokenizer",
    *,
    documents: str = "blank",
    sentences: str = "punkt",
    heldout: float = 0.01,
    workers: int | None = None,
    field: str = "text",
    shard_tokens: int = 1 << 24,
    progress: bool = True,
) -> Manifest:
    """Writes the token store of `sources` to `out_dir` and returns its manifest.

    Args:
      sources, documents, field: what to read, see `bert_jax.data.sources.Corpus`.
      out_dir: a folder that does not exist yet.
      tokenizer: applied to every sentence; saved inside the store.
      sentences: "punkt" or "line", see `bert_jax.data.sentences`.
      heldout: the share of documents kept apart for evaluation, in [0, 1). A hash of the text decides, so copies of a
        document land on the same side, and the choice does not depend on the rest of the corpus.
      workers: processes that tokenise; all cores by default. 1 works in this process.
      shard_tokens: a shard ends with the first document that fills it; also what an interruption can cost.
      progress: show a progress bar on stderr.

    Raises:
      BertJaxError: wrong arguments or text, nothing to read, an empty side of the split, a store or an unfinished other
        store in the way, a full disk, a worker killed.
      KeyboardInterrupt: after the workers have ended; the same call goes on later.
    """
    if not 0 <= heldout < 1:
        raise BertJaxError(f"heldout={heldout}: give the share of documents to keep apart, from 0 to below 1")
    if workers is not None and workers < 1:
        raise BertJaxError(f"workers={workers}: at least one is needed")
    if shard_tokens < 1:
        raise BertJaxError(f"shard_tokens={shard_tokens}: at least one is needed")
    splitter(sentences)  # refuses an unknown name
    out = pathlib.Path(out_dir)
    if out.exists():
        raise BertJaxError(f"{out}: exists already: remove it or choose another folder")
    corpus = Corpus(sources, documents=documents, field=field)
    _check_sides(corpus, heldout)
    inputs = {
        "format": FORMAT,
        "tokenizer": tokenizer.hash,
        "options": {
            "documents": documents,
            "sentences": sentences,
            "heldout": heldout,
            "field": field,
            "shard_tokens": shard_tokens,
        },
        "sources": [{"name": source.name, "bytes": source.size} for source in corpus.sources],
    }
    partial = out.with_name(out.name + PARTIAL)
    with _one_line(partial), locked(partial):
        writer = StoreWriter(partial, inputs, tokenizer, shard_tokens, ["train", "heldout"] if heldout else ["train"])
        try:
            _run(corpus, writer, tokenizer, sentences, heldout, workers or _cores(), progress)
            manifest = writer.finish(tokenizer)
        except BaseException:
            writer.abandon()
            raise
        os.rename(partial, out)
        (out / STATE).unlink()
    if manifest.documents_without_tokens:
        logger.warning("%s: %d documents without any token were dropped", out, manifest.documents_without_tokens)
    return manifest


# Reading


def _side(text_digest: bytes) -> float:
    """A number in [0, 1), the same for the same text; below `heldout` it is kept apart."""
    return int.from_bytes(text_digest[:8], "little") / 2.0**64


def _digest(document: str) -> bytes:
    return hashlib.blake2b(document.encode(), digest_size=16).digest()


def _check_sides(corpus: Corpus, heldout: float) -> None:
    """Reads until both sides have a document, so that a corpus too small for its split is refused at once."""
    count, lowest, highest = 0, 1.0, 0.0
    for document in corpus:
        if not document or document.isspace():
            continue
        number = _side(_digest(document))
        count, lowest, highest = count + 1, min(lowest, number), max(highest, number)
        if highest >= heldout and (lowest < heldout or not heldout):
            return
    if not count:
        raise BertJaxError(f"no text in {', '.join(source.name for source in corpus.sources[:3])}: nothing to prepare")
    if highest < heldout:
        raise BertJaxError(
            f"heldout={heldout} keeps all {count} documents apart and leaves none to train on: use a smaller share, 0 "
            "for none, or a larger corpus"
        )
    wanted = math.ceil(lowest * 1000 + 1) / 1000
    way_out = f"use {wanted} or more" if count > 1 and wanted < highest else "use a larger corpus"
    raise BertJaxError(
        f"heldout={heldout} keeps none of {count} documents apart: {way_out}, or 0 for no held-out side (is "
        f"documents={corpus.documents} right?)"
    )


@dataclasses.dataclass
class _Part:
    """One piece of a document, on its way to a worker and back."""

    text: str
    heldout: bool
    last: bool  # the document ends with it
    digest: bytes  # of the whole document
    position: int  # bytes of the corpus read when it was
    size: int  # of the whole document in UTF-8, on the last piece


def _parts(corpus: Corpus, heldout: float, skip: int, chain: str) -> Iterator[_Part]:
    """All pieces of all documents but the first `skip`, whose digests must chain to `chain`."""
    running = bytes(16)
    documents = iter(corpus)
    for document in itertools.islice(documents, skip):
        running = chained(running, _digest(document))
    if skip and running.hex() != chain:
        raise BertJaxError("the text is not what the interrupted run read: remove its .partial folder to start again")
    for document in documents:
        content = _digest(document)
        held = _side(content) < heldout
        size = len(document.encode())
        rest = pieces(document, TASK)
        text = next(rest)
        for following in rest:
            yield _Part(text, held, False, content, corpus.position, 0)
            text = following
        yield _Part(text, held, True, content, corpus.position, size)
        del document, rest  # before the next one is read


def _tasks(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    """Parts in groups of about `TASK` characters: small documents together, so that none costs a message of its own."""
    group: list[_Part] = []
    size = 0
    for part in parts:
        group.append(part)
        size += len(part.text) + 100
        if size >= TASK:
            yield group
            group, size = [], 0
    if group:
        yield group


# Working


@dataclasses.dataclass
class _Tokenised:
    """What a worker makes of N texts: stored tokens, tokens of each sentence, sentences of each text."""

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    sentence_counts: np.ndarray


class _Work:
    """Texts to stored tokens; made once in every worker."""

    def __init__(self, tokenizer: "Tokenizer", sentences: str):
        self.tokenizer = tokenizer
        self.split = splitter(sentences)
        dtype = token_dtype(tokenizer.vocab_size)
        starts = np.asarray(tokenizer.word_starts(), dtype)
        self.stored = np.arange(tokenizer.vocab_size, dtype=dtype) | starts * dtype.type(word_start_bit(dtype))

    def __call__(self, texts: list[str]) -> _Tokenised:
        tokens, lengths, counts = [], [], []
        for text in texts:
            encoded = [ids for ids in self.tokenizer.encode_batch(self.split(text)) if len(ids)]
            tokens += encoded
            lengths += map(len, encoded)
            counts.append(len(encoded))
        ids = np.concatenate(tokens) if tokens else np.empty(0, np.int32)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self.stored):
            raise BertJaxError(f"the tokenizer gave id {ids.max()}, but its vocab_size is {len(self.stored)}")
        return _Tokenised(self.stored[ids], np.array(lengths, np.int64), np.array(counts, np.int64))


_work: _Work | None = None


def _start_worker(tokenizer: "Tokenizer", sentences: str) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    parent = multiprocessing.parent_process()
    # A worker waits for its queue for ever, even when the parent was killed.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _work = _Work(tokenizer, sentences)


def _do_work(texts: list[str]) -> _Tokenised:
    return _work(texts)


@contextlib.contextmanager
def _workers(count: int, tokenizer: "Tokenizer", sentences: str):
    """A function that starts the work on texts and returns a function that waits for its result."""
    if count == 1:
        work = _Work(tokenizer, sentences)
        yield lambda texts: functools.partial(work, texts)
        return
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core, not threads in each as well
    pool = concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(tokenizer, sentences)
    )
    try:
        yield lambda texts: pool.submit(_do_work, texts).result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    corpus: Corpus,
    writer: StoreWriter,
    tokenizer: "Tokenizer",
    sentences: str,
    heldout: float,
    workers: int,
    show: bool,
) -> None:
    """Everything from the first document that is not written yet to the last."""
    parts = _parts(corpus, heldout, writer.consumed, writer.chain)
    waiting: collections.deque[tuple[list[_Part], Callable[[], _Tokenised]]] = collections.deque()
    with _workers(workers, tokenizer, sentences) as start, _Bar(corpus.total_bytes, writer, show) as bar:

        def write_oldest() -> None:
            group, result = waiting.popleft()
            _write(writer, group, result())
            bar.update(group[-1].position)

        for group in _tasks(parts):
            waiting.append((group, start([part.text for part in group])))
            for part in group:
                part.text = ""  # it has been sent
            if len(waiting) > 2 * workers + 2:
                write_oldest()
        while waiting:
            write_oldest()


def _write(writer: StoreWriter, group: list[_Part], made: _Tokenised) -> None:
    token = sentence = 0
    for part, count in zip(group, made.sentence_counts, strict=True):
        side = "heldout" if part.heldout else "train"
        lengths = made.sentence_lengths[sentence : sentence + count]
        size = int(lengths.sum())
        writer.append(side, made.tokens[token : token + size], lengths)
        sentence += count
        token += size
        if part.last:
            writer.end_document(side, part.digest, part.size)


class _Bar:
    """Documents, megabytes of text, tokens, speed and time left."""

    def __init__(self, total: int, writer: StoreWriter, show: bool):
        self.writer = writer
        self.progress = Progress(
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}% {task.fields[done]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(file=sys.stderr),
            disable=not show,
        )
        self.task = self.progress.add_task("", total=total or None, done="")
        self.text_before = writer.text_bytes

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *raised) -> None:
        self.progress.stop()

    def update(self, position: int) -> None:
        writer = self.writer
        elapsed = self.progress.tasks[0].elapsed or 1e-9
        rate = (writer.text_bytes - self.text_before) / 1e6 / elapsed
        megabytes, tokens = writer.text_bytes / 1e6, sum(split.tokens for split in writer.splits.values()) / 1e6
        done = f"{writer.consumed:,} documents  {megabytes:,.1f} MB  {tokens:,.1f}M tokens  {rate:.1f} MB/s"
        self.progress.update(self.task, completed=position, done=done)


@contextlib.contextmanager
def _one_line(folder: pathlib.Path):
    """Failures that are the machine's, said in one line."""
    try:
        yield
    except BrokenProcessPool as error:
        raise BertJaxError("a worker process was killed (out of memory?): run again, with fewer workers") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BertJaxError(f"{folder}: the disk is full: free some space and run again") from error
        raise BertJaxError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
