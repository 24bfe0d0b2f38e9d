"""Channels added to a finished token store: which words belong together as a phrase or as a name.

A unit is two or more words within a sentence. Its channel is 1 on every token of its second and later words and 0 elsewhere, so
that a word with 0 begins something, a unit or itself. Units never overlap: what lies within a longer one gives way to it; where
two overlap otherwise, a number drawn from the place in the text decides between phrases (PMI-Masking leaves it to chance),
and the longer one wins among names.

The files of an annotation are written beside those that are there, into a folder named after what they are made from; then
``annotations.json`` is replaced, then the earlier folder is removed. At any moment the store can be read.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bert_jax.data import phrases, randomness
from bert_jax.data.gazetteer import Gazetteer, read_names
from bert_jax.data.prepare import one_line
from bert_jax.data.store import ANNOTATIONS, PARTIAL, Annotation, Split, TokenStore, digests
from bert_jax.errors import BertJaxError
from bert_jax.files import locked, put_in_place, write_whole
from bert_jax.progress import Progress

logger = logging.getLogger("bert_jax")

PHRASES = "phrases.tsv"
TOP = 0.25

Units = tuple[np.ndarray, np.ndarray]  # starts and ends, int64 [K]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What an annotation found: units in each split, the share of its tokens that lie in one, and (for phrases) lines to show:
    the best of them with count and PMI."""

    channel: str
    entries: int
    units: dict[str, int]
    share: dict[str, float]
    best: tuple[tuple[str, int, float], ...] = ()

    def __str__(self) -> str:
        found = "; ".join(f"{self.units[name]:,} in {name}, {self.share[name]:.1%} of its tokens" for name in self.units)
        return f"{self.channel}: {self.entries:,} entries; units: {found}"


def annotate_phrases(
    path: str | os.PathLike, *, minimum: int = phrases.MINIMUM, top: float = TOP, progress: bool = True
) -> Summary:
    """Adds the channel "phrases": n-grams of words that `bert_jax.data.phrases` finds in the train split, in all splits.

    Args:
      path: the store.
      minimum: how often an n-gram must occur (PMI-Masking: 11).
      top: the share of those n-grams that become phrases, fewer where a length lacks its part. The paper has no share but a
        number, 800,000, with which about half of all tokens of its corpus lay in phrases.
      progress: show on stderr, if that is a terminal and it takes seconds, how far it is.

    Raises:
      BertJaxError: wrong arguments, no store, one that another run is annotating, no such n-gram, a full disk.
    """
    if minimum < 2:
        raise BertJaxError(f"minimum={minimum}: a phrase occurs at least twice")
    if not 0 < top <= 1:
        raise BertJaxError(f"top={top}: give the share of frequent n-grams to take, above 0 and up to 1")
    options = {"minimum": minimum, "top": top, "longest": phrases.LONGEST}

    def find(store: TokenStore, folder: pathlib.Path, report: phrases.Report):
        train, tokenizer = store.split("train"), store.tokenizer
        wordlike = _wordlike(tokenizer)
        found = phrases.ngrams(train, wordlike, minimum=minimum, report=report)
        frequent = sum(len(found[n].hashes) for n in phrases.SHARES)
        chosen = phrases.best(found, round(top * frequent))
        if not sum(map(len, chosen.values())):
            raise BertJaxError(f"{path}: too little text, no phrase occurs {minimum} times: lower the minimum")
        rows = sorted(_rows(train, tokenizer, found, chosen), key=lambda row: (-row[2], -row[1], row[0]))
        lines = ["phrase\tcount\tpmi", *(f"{text}\t{count}\t{score:.4f}" for text, count, score in rows)]
        (folder / PHRASES).write_text("\n".join(lines) + "\n", encoding="utf-8")
        tables = {n: np.sort(found[n].hashes[index]) for n, index in chosen.items() if len(index)}
        return (lambda split: _phrase_units(split, tables, wordlike)), len(rows), tuple(rows[:20])

    return _annotate(pathlib.Path(path), "phrases", options, find, progress)


def annotate_entities(path: str | os.PathLike, files: Sequence[str | os.PathLike], *, progress: bool = True) -> Summary:
    """Adds the channel "entities": the names in `files` (see `bert_jax.data.gazetteer.read_names`), wherever they stand.

    Raises:
      BertJaxError: no store, one that another run is annotating, files that are no lists of names, names of which none occurs
        in the train split, a full disk.
    """
    names = read_names(files)
    content = hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
    options = {"files": [pathlib.Path(file).name for file in files], "names": len(names), "blake2b": content}

    def find(store: TokenStore, folder: pathlib.Path, report: phrases.Report):
        gazetteer = Gazetteer(names, store.tokenizer)
        if gazetteer.known < len(names):
            unknown = len(names) - gazetteer.known
            logger.warning("%s: %d of %d names have characters unknown to its tokenizer", path, unknown, len(names))
        return (lambda split: _name_units(split, gazetteer)), gazetteer.known, ()

    return _annotate(pathlib.Path(path), "entities", options, find, progress)


Find = Callable[[TokenStore, pathlib.Path, phrases.Report], tuple[Callable[[Split], Iterator["_Stretch"]], int, tuple]]


@dataclasses.dataclass
class _Stretch:
    """Successive tokens of a split: how many, int64 [W] where words begin, int64 [K] where units start and end."""

    size: int
    begins: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def _annotate(path: pathlib.Path, channel: str, options: dict[str, Any], find: Find, progress: bool) -> Summary:
    store = TokenStore(path)
    with one_line(path), locked(path):
        annotations = dict(TokenStore(path, verify=False).annotations)  # as they are now that nobody else changes them
        before = annotations.get(channel)
        made_from = json.dumps([store.identity(), options], sort_keys=True).encode()
        folder = f"{channel}/{hashlib.blake2b(made_from, digest_size=6).hexdigest()}"
        for left in (path / channel).glob("*"):  # by an interrupted run
            if before is None or left != path / before.folder:
                shutil.rmtree(left)
        if before is not None and before.folder == folder:
            logger.warning("%s: its %s are replaced by the same", path, channel)
        elif before is not None:
            logger.warning("%s: its %s, made with %s, are replaced", path, channel, before.options)
        partial = path / (folder + PARTIAL)
        partial.mkdir(parents=True)
        try:
            with _reporting(progress, {name: split.tokens for name, split in store.manifest.splits.items()}) as report:
                units_of, entries, best = find(store, partial, report)
                units, share = {}, {}
                for name in store.splits:
                    marking = _marked(units_of(store.split(name)), report, f"marking {name}")
                    sizes = [tokens for _, tokens in store.manifest.splits[name].shards]
                    units[name], inside = _write_split(partial, name, sizes, marking)
                    share[name] = inside / sum(sizes)
                if not units["train"]:
                    raise BertJaxError(f"{path}: none of {entries} {channel} occurs in its train split as several words (a "
                                       "single one is a unit anyway): are they for this text?")
            names = sorted(file.name for file in partial.iterdir())
            found = digests(partial, names, "hashing")
            files = {
                f"{folder}/{name}": {"size": (partial / name).stat().st_size, "blake2b": found[name]} for name in names
            }
            annotations[channel] = Annotation(folder, options, files)
            if before is not None and before.folder == folder:
                shutil.rmtree(partial)  # the same bytes are there, and were checked above
            else:
                put_in_place(partial, path / folder)
                text = json.dumps({name: dataclasses.asdict(made) for name, made in annotations.items()}, indent=1)
                write_whole(path / ANNOTATIONS, text + "\n")
                if before is not None:
                    shutil.rmtree(path / before.folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                (path / channel).rmdir()  # if nothing is in it
            raise
    return Summary(channel, entries, units, share, best)


def _wordlike(tokenizer) -> np.ndarray:
    """bool [V]: pieces with a letter or digit."""
    wordlike = np.array([any(map(str.isalnum, piece)) for piece in tokenizer.pieces])
    wordlike[list(tokenizer.special_ids)] = False
    return wordlike


def _rows(split: Split, tokenizer, found, chosen) -> Iterator[tuple[str, int, float]]:
    for n, index in chosen.items():
        table = found[n]
        for start, end, count, score in zip(
            table.starts[index], table.ends[index], table.counts[index], table.scores[index], strict=True
        ):
            ids = split.stretch(int(start), int(end)) & split.dtype.type(split.word_start - 1)
            yield tokenizer.decode(ids).strip(), int(count), float(score)


# Units


def _phrase_units(split: Split, tables: dict[int, np.ndarray], wordlike: np.ndarray) -> Iterator[_Stretch]:
    for part in phrases.words(split, wordlike):
        offset, size = part.starts[0], int(part.ends[-1] - part.starts[0])
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for n, hashes in enumerate(phrases.ngram_hashes(part.hashes, phrases.LONGEST), 1):
            if n in tables:
                fits = np.flatnonzero(part.room[: len(hashes)] >= n)
                here = fits[phrases.find(tables[n], hashes[fits]) >= 0]
                starts.append(part.starts[here])
                ends.append(part.ends[here + n - 1])
        starts, ends = np.concatenate(starts), np.concatenate(ends)
        chosen = choose(starts, ends, randomness.bits(starts.astype(np.uint64), 0, ends - starts))
        yield _Stretch(size, part.starts - offset, starts[chosen] - offset, ends[chosen] - offset)


def _name_units(split: Split, gazetteer: Gazetteer) -> Iterator[_Stretch]:
    for offset, raw, sentence_starts in phrases.chunks(split):
        begins = np.flatnonzero((raw >= split.word_start) | sentence_starts)
        ids = raw & split.dtype.type(split.word_start - 1)
        starts, ends = gazetteer.matches(ids, begins, sentence_starts)
        several = np.searchsorted(begins, ends) - np.searchsorted(begins, starts) > 1  # one word is a unit anyway
        starts, ends = starts[several], ends[several]
        length = np.minimum(ends - starts, 255).astype(np.uint64)
        drawn = randomness.bits((offset + starts).astype(np.uint64), 0)
        chosen = choose(starts, ends, (length << np.uint64(56)) | (drawn >> np.uint64(8)))
        yield _Stretch(len(raw), begins, starts[chosen], ends[chosen])


def choose(starts: np.ndarray, ends: np.ndarray, priority: np.ndarray) -> np.ndarray:
    """Indices, in order of place, of those of K different intervals that remain when none may overlap.

    An interval within another is dropped at once. Of the rest the one with the highest priority stays and those that it
    overlaps go, and so on; all that have no higher neighbour are settled together, so that random priorities take
    a logarithmic number of rounds. All are [K]; priority is uint64.
    """
    order = np.lexsort((-ends, starts))
    furthest = np.maximum.accumulate(np.concatenate([[-1], ends[order]]))
    left = order[ends[order] > furthest[:-1]]  # from here on, starts and ends both increase
    kept = [np.empty(0, np.int64)]
    while len(left):
        beaten = np.zeros(len(left), bool)
        conflicts = []
        for distance in range(1, len(left)):
            overlap = starts[left[distance:]] < ends[left[:-distance]]
            if not overlap.any():
                break
            conflicts.append(overlap)
            later = priority[left[distance:]] > priority[left[:-distance]]
            beaten[:-distance] |= overlap & later
            beaten[distance:] |= overlap & ~later
        gone = ~beaten
        for distance, overlap in enumerate(conflicts, 1):
            gone[:-distance] |= overlap & ~beaten[distance:]
            gone[distance:] |= overlap & ~beaten[:-distance]
        kept.append(left[~beaten])
        left = left[~gone]
    kept = np.concatenate(kept)
    return kept[np.argsort(starts[kept])]


# Files


def _marked(stretches: Iterator[_Stretch], report: phrases.Report, what: str) -> Iterator[tuple[np.ndarray, int, int]]:
    """The channel's bytes of each stretch, its units and the tokens in them."""
    for stretch in stretches:
        change = np.zeros(stretch.size + 1, np.int8)
        second = stretch.begins[np.searchsorted(stretch.begins, stretch.starts, side="right")]
        change[second] += 1
        change[stretch.ends] -= 1
        report(what, stretch.size)
        marks = np.cumsum(change[:-1], dtype=np.int8).view(np.uint8)
        yield marks, len(stretch.starts), int((stretch.ends - stretch.starts).sum())


def _write_split(
    folder: pathlib.Path, name: str, sizes: list[int], marked: Iterator[tuple[np.ndarray, int, int]]
) -> tuple[int, int]:
    """Cuts the channel where the tokens are cut; returns the number of units and of tokens in them."""
    units = inside = 0
    rest = np.empty(0, np.uint8)
    for number, size in enumerate(sizes):
        with open(folder / f"{name}-{number:05d}.bin", "wb") as file:
            while size:
                if not len(rest):
                    rest, more, tokens = next(marked)
                    units, inside = units + more, inside + tokens
                part, rest = rest[:size], rest[size:]
                file.write(part.tobytes())
                size -= len(part)
            file.flush()
            os.fsync(file.fileno())
    return units, inside


@contextlib.contextmanager
def _reporting(progress: bool, tokens: dict[str, int]) -> Iterator[phrases.Report]:
    """What takes a part of the work, one of ``tokens`` each, and how much more of it is done."""
    parts: list[str] = []
    with Progress("annotating", show=progress) as shown:

        def report(what: str, done: int) -> None:
            if what not in parts:
                parts.append(what)
                shown.begin(what, tokens[what.rpartition(" ")[2] if what.startswith("marking") else "train"])
            shown.advance(done)

        yield report
