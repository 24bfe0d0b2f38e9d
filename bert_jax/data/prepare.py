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
import errno
import functools
import itertools
import logging
import multiprocessing
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from bert_jax.data.parallel import ParallelCorpus
from bert_jax.data.sources import Corpus, Group
from bert_jax.data.stages import Assembly, Part, Recipe, Tokenised, Work, check_sides, digest, parts, tasks, warn_of_doubts
from bert_jax.data.store import MANIFEST, PARTIAL, Manifest
from bert_jax.data.workers import SPAWN
from bert_jax.data.writer import STATE, StoreWriter, chained
from bert_jax.errors import BertJaxError
from bert_jax.files import check_local, locked, put_in_place
from bert_jax.progress import Progress

if TYPE_CHECKING:
    from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")


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
    case: bool = False,
    words: str = "tokenizer",
    parallel: bool = False,
    progress: bool = True,
) -> Manifest:
    """Writes the token store of `sources` to `out_dir` and returns its manifest.

    Args:
      sources: what to read, see `bert_jax.data.sources.Corpus`; with `parallel`, see `bert_jax.data.parallel`.
      out_dir: a folder that does not exist yet.
      tokenizer: applied to every sentence; saved inside the store.
      documents, sentences, heldout, field, shard_tokens, case, words, parallel: see `bert_jax.data.stages.Recipe`; a shard
        is also what an interruption can cost.
      workers: processes that tokenise; all cores by default. 1 works in this process.
      progress: show a progress bar on stderr.

    Raises:
      BertJaxError: wrong arguments or text, nothing to read, an empty side of the split, a store or an unfinished other
        store in the way, a full disk, a worker killed.
      KeyboardInterrupt: after the workers have ended; the same call goes on later.
    """
    recipe = Recipe(documents, sentences, heldout, field, shard_tokens, case, words, parallel)
    if workers is not None and workers < 1:
        raise BertJaxError(f"workers={workers}: at least one is needed")
    check_local(out_dir)
    out = pathlib.Path(out_dir)
    if out.exists():
        raise BertJaxError(f"{out}: exists already: remove it or choose another folder")
    corpus = recipe.corpus(sources)
    for source in corpus.sources:
        if source.kind != "tfds" and not os.path.isfile(source.path):
            raise BertJaxError(f"{source.path}: a pipe or device, which gives its text only once, while it is read twice here: "
                               "write it into a file first")
    check_sides(corpus, heldout)
    partial = out.with_name(out.name + PARTIAL)
    with one_line(partial), locked(partial):
        writer = StoreWriter(partial, recipe.inputs(corpus, tokenizer), tokenizer, shard_tokens, recipe.sides)
        try:
            _run(corpus, writer, tokenizer, recipe, workers or _cores(), progress)
            manifest = writer.finish(tokenizer)
        except BaseException as error:
            writer.abandon(error)
            raise
        put_in_place(partial, out, MANIFEST)
        (out / STATE).unlink()
    warn_of_doubts(out)
    if manifest.documents_without_tokens:
        logger.warning("%s: %d documents without any token were dropped", out, manifest.documents_without_tokens)
    if isinstance(corpus, ParallelCorpus) and corpus.left_out:
        names = ", ".join(corpus.languages)
        logger.warning("%s: %d documents were left out, whose numbers of lines differ in %s", out, corpus.left_out, names)
    return manifest


def _unwritten(corpus: Corpus | ParallelCorpus, writer: StoreWriter) -> Iterator[Group]:
    """What the writer does not have yet; the digests of what it has must chain to its own."""
    running = bytes(16)
    groups = corpus.groups()
    for group in itertools.islice(groups, writer.consumed // writer.group):
        for text in group.texts:
            running = chained(running, digest(text))
    if running != writer.chain:
        raise BertJaxError("the text is not what the interrupted run read: remove its .partial folder to start again")
    return groups


# Working


_work: Work | None = None


def _start_worker(tokenizer: "Tokenizer", recipe: Recipe) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    parent = multiprocessing.parent_process()
    # A worker waits for its queue for ever, even when the parent was killed.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _work = Work(tokenizer, recipe)


def _do_work(texts: list[tuple[str, ...]]) -> Tokenised:
    return _work(texts)


@contextlib.contextmanager
def _workers(count: int, tokenizer: "Tokenizer", recipe: Recipe):
    """A function that starts the work on texts and returns a function that waits for its result."""
    work = Work(tokenizer, recipe)  # also where workers make their own: what it refuses is said here, in one line
    if count == 1:
        yield lambda texts: functools.partial(work, texts)
        return
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process a core, not threads in each as well
    pool = concurrent.futures.ProcessPoolExecutor(
        count, SPAWN, initializer=_start_worker, initargs=(tokenizer, recipe)
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
    corpus: Corpus | ParallelCorpus,
    writer: StoreWriter,
    tokenizer: "Tokenizer",
    recipe: Recipe,
    workers: int,
    show: bool,
) -> None:
    """Everything from the first document that is not written yet to the last."""
    groups = _unwritten(corpus, writer)
    assembly = Assembly(writer)
    waiting: collections.deque[tuple[list[Part], Callable[[], Tokenised], int]] = collections.deque()
    text_before, began = writer.text_bytes, time.monotonic()
    with _workers(workers, tokenizer, recipe) as start, Progress("prepare", corpus.total_bytes, show) as progress:

        def write_oldest() -> None:
            group, result, position = waiting.popleft()
            assembly.write(group, result())
            progress.update(position, _state(writer, text_before, began))

        for group in tasks(parts(groups, recipe.heldout)):
            waiting.append((group, start([part.texts for part in group]), corpus.position))
            for part in group:
                part.texts = ("",) * len(part.texts)  # they have been sent
            if len(waiting) > 2 * workers + 2:
                write_oldest()
        while waiting:
            write_oldest()


def _state(writer: StoreWriter, text_before: int, began: float) -> str:
    """Documents, megabytes of text, tokens and speed."""
    megabytes, tokens = writer.text_bytes / 1e6, sum(split.tokens for split in writer.splits.values()) / 1e6
    rate = (writer.text_bytes - text_before) / 1e6 / max(time.monotonic() - began, 1e-9)
    return f"{writer.consumed:,} documents  {megabytes:,.1f} MB  {tokens:,.1f}M tokens  {rate:.1f} MB/s"


@contextlib.contextmanager
def one_line(folder: str | os.PathLike):
    """Failures that are the machine's, said in one line."""
    try:
        yield
    except BrokenProcessPool as error:
        raise BertJaxError("a worker process ended (out of memory?): run again, with fewer workers") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BertJaxError(f"{folder}: the disk is full: free some space and run again") from error
        reason = error.strerror or str(error).partition("\n")[0]  # Beam's own have no more than a text
        raise BertJaxError(f"{error.filename or folder}: cannot be written ({reason})") from error
