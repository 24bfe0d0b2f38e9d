"""Sentences and pairs, with or without labels, from TSV, CSV and JSONL files."""

import csv
import dataclasses
import hashlib
import io
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol

from bert_jax.errors import BertJaxError
from bert_jax.tasks.files import check_characters, objects_of, other_separator, text_of, unquoted, warn_of_numbers

logger = logging.getLogger("bert_jax")

FORMATS = (".tsv", ".csv", ".jsonl")
LARGEST = 3.4e38  # number that float32 holds
MANY_LABELS = 20  # so many are classes, even where hardly two rows have the same one
_DECIMAL = re.compile(r"[+-]?\d+(\.\d*)?")
_WITH_COMMA = re.compile(r"[+-]?\d+([.,]\d+)*")


class Rows(NamedTuple):
    """What a source holds: texts [n], each a tuple of as many as its kind has (a sentence, a pair, words, a question and its
    choices), and the labels as they are written [n], or none at all."""

    texts: list[tuple[str, ...]]
    labels: list[Any]


class Source(Protocol):
    """Where rows come from.

    Attributes:
      path: the file or folder that holds them; what messages name, and what must not change between the parts of a run.
    """

    @property
    def path(self) -> str: ...

    def read(self) -> Rows: ...


@dataclasses.dataclass(frozen=True)
class Table:
    """A file of sentences.

    Attributes:
      path: ``*.tsv``, fields apart by tabs and without quoting, as GLUE is written; ``*.csv``, fields apart by commas, quoted
        where needed; or ``*.jsonl``, an object a line. Each also with ``.gz`` behind.
      texts: the columns of the sentence, or of the two sentences of a pair. label: the column of the label; None: there is
        none, as where labels are to be predicted. Columns go by their names in the first line, or in a file without such a line
        by their number from 0.
      rows: of the file's examples only those from the first of these numbers up to, without it, the second: (0, 4032) are the
        first 4,032. Empty: all.
      share: of these only a part, by chance but always the same one: (0, 0.9) about nine tenths, (0.9, 1) the rest. Examples
        with the same texts come into the same part, so that nothing held out was trained on. Empty: all.
    """

    path: str
    texts: tuple[str, ...]
    label: str | None = None
    rows: tuple[int, ...] = ()
    share: tuple[float, ...] = ()

    def __post_init__(self):
        if not 1 <= len(self.texts) <= 2:
            raise BertJaxError(f"{self.path}: texts={self.texts}: name one column, or the two of a pair")
        if len({*self.texts, self.label}) <= len(self.texts):
            raise BertJaxError(f"{self.path}: texts={self.texts}, label={self.label!r}: name every column once")
        if self.rows and not (len(self.rows) == 2 and 0 <= self.rows[0] < self.rows[1]):
            raise BertJaxError(f"{self.path}: rows={self.rows}: say from where up to where, such as (0, 4032)")
        check_share(self.share, self.path)

    def read(self, damaged: Literal["refuse", "skip"] = "refuse") -> Rows:
        """The rows that are asked for, in the order of the file, without blanks around texts and labels; no ``labels`` where
        there is no label column.

        Args:
          damaged: whether lines with too few or too many fields, or without a text or label, are refused, or skipped with one
            warning line: published files have such lines.

        Raises:
          BertJaxError: no such file, not UTF-8 or otherwise no table, a column that is not there (those that are, are listed)
            or that is there twice, a damaged line, or no rows.
        """
        wanted = [*self.texts] if self.label is None else [*self.texts, self.label]
        rows, skipped = Rows([], []), 0
        for line, fields in self._lines(wanted):
            problem = fields if isinstance(fields, str) else next(
                (f"has nothing in column {name!r}" for name, field in zip(wanted, fields, strict=True) if not field), None
            )
            if problem and damaged == "refuse":
                raise BertJaxError(f"{self.path}: line {line} {problem}")
            if problem:
                skipped += 1
                continue
            rows.texts.append(tuple(fields[: len(self.texts)]))
            rows.labels.extend(fields[len(self.texts) :])
        if skipped:
            logger.warning("%s: %d lines that lack fields or have too many were skipped", self.path, skipped)
        if not rows.texts:
            raise BertJaxError(f"{self.path}: no rows")
        if self.rows and self.rows[1] > len(rows.texts):
            raise BertJaxError(f"{self.path}: rows={self.rows}, and there are {len(rows.texts)}")
        rows = Rows(*(column[slice(*self.rows)] for column in rows)) if self.rows else rows
        return part_of(rows, self.share, self.path)

    def _lines(self, wanted: list[str]) -> Iterator[tuple[int, list[str] | str]]:
        """The number of each line that is not empty, and its wanted fields, or what is wrong with it."""
        form = self.path.removesuffix(".gz")
        if not form.endswith(FORMATS):
            raise BertJaxError(f"{self.path}: a table is a file *.tsv, *.csv or *.jsonl, or one of these with .gz behind")
        text = text_of(self.path)
        if form.endswith(".jsonl"):
            yield from self._objects(text, wanted)
            return
        lines = separated(text, self.path)
        if (begun := next(lines, None)) is None:
            raise BertJaxError(f"{self.path}: no rows: it is empty")
        columns, named = self._columns(begun[1], wanted)
        width = len(begun[1])
        if not named:
            lines = iter([begun, *lines])
        for number, fields in lines:
            if len(fields) == width:
                yield number, [fields[column].strip() for column in columns]
            else:
                yield number, f"has {len(fields)} fields, the first line {width}"

    def _objects(self, text: str, wanted: list[str]) -> Iterator[tuple[int, list[str] | str]]:
        for number, found in objects_of(text, self.path):
            missing = next((name for name in wanted if name not in found), None)
            if missing is not None:
                raise self._no_column(missing, found, f"line {number} has ")
            wrong = next((name for name in wanted if isinstance(found[name], dict | list)), None)
            if wrong is not None:
                raise BertJaxError(f"{self.path}: line {number}: column {wrong!r} is neither text nor a number")
            for name in wanted:
                if isinstance(found[name], str):
                    check_characters(found[name], f"{self.path}: line {number}: column {name!r}")
            values = (found[name] for name in wanted)
            yield number, ["" if value is None else (value if isinstance(value, str) else json.dumps(value)).strip()
                           for value in values]

    def _columns(self, first: list[str], wanted: list[str]) -> tuple[list[int], bool]:
        """Numbers of the columns, texts first, and whether the first line has their names."""
        if all(name.isdigit() for name in wanted):
            columns = [int(name) for name in wanted]
            if max(columns) >= len(first):
                hint = other_separator(first, self._form)
                raise BertJaxError(f"{self.path}: no column {max(columns)}; there are 0 to {len(first) - 1}{hint}")
            warn_of_numbers(first, wanted, self.path)
            return columns, False
        header = [name.strip() for name in first]
        for name in wanted:
            if name not in header:
                raise self._no_column(name, header, "there are ")
            if header.count(name) > 1:
                raise BertJaxError(f"{self.path}: {header.count(name)} columns have the name {name!r}: rename all but one")
        return [header.index(name) for name in wanted], True

    def _no_column(self, name: str, present: Sequence[str] | dict[str, Any], where: str) -> BertJaxError:
        hint = "" if isinstance(present, dict) else other_separator(present, self._form)
        return BertJaxError(f"{self.path}: no column {name!r}; {where}{', '.join(map(str, present)) or 'none'}{hint}")

    @property
    def _form(self) -> str:
        return self.path.removesuffix(".gz").rpartition(".")[2]


def separated(text: str, path: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each line of a ``*.tsv`` or ``*.csv`` that is not empty (the last of a quotation), and its fields."""
    if path.removesuffix(".gz").endswith(".tsv"):
        lines = enumerate(text.split("\n"), start=1)  # not splitlines: a text may hold U+2028 and the like
        yield from unquoted(((number, line.removesuffix("\r")) for number, line in lines), path)
        return
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for fields in lines:
            if fields:
                yield lines.line_num, fields
    except csv.Error as error:
        raise BertJaxError(f"{path}: line {lines.line_num}: {error}: is a quotation mark missing?") from None


def check_share(share: tuple[float, ...], path: str) -> None:
    """Refuses what is neither empty nor (from, up to) within 0 and 1."""
    if share and not (len(share) == 2 and 0 <= share[0] < share[1] <= 1):
        raise BertJaxError(f"{path}: share={share}: say from where up to where, such as (0, 0.9) and (0.9, 1)")


def part_of(rows: Rows, share: tuple[float, ...], path: str, texts: int | None = None) -> Rows:
    """The rows whose :func:`place` is in ``share``, in their order; all, where it is empty. ``texts``: how many of the first
    texts of a row place it; None: all.

    Raises:
      BertJaxError: none of them is.
    """
    if share:
        kept = [k for k, row in enumerate(rows.texts) if share[0] <= place(row[:texts]) < share[1]]
        rows = Rows(*([column[k] for k in kept] if column else [] for column in rows))
    if not rows.texts:
        raise BertJaxError(f"{path}: no rows in share={share}")
    return rows


def place(texts: tuple[str, ...]) -> float:
    """Where texts are between 0 and 1, the same on every machine and as good as random."""
    digest = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53


def labels_of(table: Source) -> tuple[str, ...]:
    """The labels that a table has: numbers in their order, or else words in that of their characters.

    Raises:
      BertJaxError: see :meth:`Table.read`; no labels, one alone, so many that they look like texts, or a number in two ways.
    """
    labels = _labels(table)
    counts, written = Counter(labels), {}
    for label in filter(_DECIMAL.fullmatch, counts):
        if (other := written.setdefault(Decimal(label), label)) != label:
            one, two = (listed([row for row, found in enumerate(labels, start=1) if found == way]) for way in (other, label))
            raise BertJaxError(
                f"{table.path}: the labels {other!r} ({one}) and {label!r} ({two}) are one number, and would be two classes: "
                "write it in one way"
            )
    if len(counts) < 2:
        raise BertJaxError(f"{table.path}: every row has the label {labels[0]!r}: there is nothing to learn")
    numbers = _numbers(counts)
    if numbers is None and len(counts) > max(MANY_LABELS, len(labels) // 2):
        longest = max(counts, key=len)
        raise BertJaxError(
            f"{table.path}: {len(counts)} different labels in {len(labels)} rows, such as {longest[:60]!r}: is this the column "
            "of the label?"
        )
    if numbers is None:
        return tuple(sorted(counts))
    return tuple(label for _, label in sorted(zip(numbers, counts, strict=True)))


def kind_of(table: Source) -> Literal["classification", "regression"]:
    """What the labels of a table ask for: regression where all are numbers and one at least has a fraction (3.8), else
    classification; whole numbers are taken for names of classes.

    Raises:
      BertJaxError: see :meth:`Table.read`; no labels; a few among numbers that are none, or not finite; whole ones so many of
        which differ that they may be values, as years and prices are.
    """
    labels = _labels(table)
    if 0 < len(odd := not_numbers(labels)) < len(labels) / 10:
        named = isinstance(table, Table) and odd[0] == 1 and (table.label or "").isdigit()
        mend = "name the columns, do not number them, if this row has their names" if named else "mend it, or take the row out"
        raise BertJaxError(
            f"{table.path}: {len(labels) - len(odd)} labels are numbers, not so {listed(odd)}, the first is "
            f"{labels[odd[0] - 1]!r}: {mend}; --kind classification if these are names of classes"
        )
    numbers = _numbers(labels)
    if numbers is None:
        comma = next((label for label in labels if "," in label), None)
        if comma and all(map(_WITH_COMMA.fullmatch, labels)):
            logger.warning("%s: labels such as %r are taken for names of classes: values need a decimal point, and no commas",
                           table.path, comma)
        return "classification"
    if all(number.is_integer() for number in numbers):
        different = len(set(numbers))
        if different > max(MANY_LABELS, len(numbers) // 10):
            raise BertJaxError(
                f"{table.path}: {different} different whole numbers in {len(numbers)} rows: say whether they are values "
                "or classes, with --kind regression or --kind classification"
            )
        return "classification"
    if odd:
        raise BertJaxError(f"{table.path}: values that are not finite in {listed(odd)}, the first is {labels[odd[0] - 1]!r}")
    return "regression"


def _labels(table: Source) -> list[str]:
    labels = table.read().labels
    if not labels:
        raise BertJaxError(f"{table.path}: no labels: name their column")
    return labels


def not_numbers(labels: Sequence[str]) -> list[int]:
    """Which labels, counted from 1, are no finite number."""
    return [row for row, label in enumerate(labels, start=1) if not abs((_numbers([label]) or [math.nan])[0]) <= LARGEST]


def _numbers(labels: Sequence[str] | Counter) -> list[float] | None:
    try:
        return [float(label) for label in labels]
    except ValueError:
        return None


def in_file(source: Source, rows: Rows, wrong: Sequence[int]) -> list[int]:
    """The numbers, in the file of ``source``, of some of the ``rows`` that were read of it; all count from 1."""
    before, share = (getattr(source, "rows", ()) or (0,))[0], getattr(source, "share", ())
    if not share:
        return [before + row for row in wrong]
    part, places = iter(rows.texts), []
    wanted = next(part, None)
    for number, texts in enumerate(dataclasses.replace(source, share=()).read().texts, start=before + 1):
        if texts == wanted:  # rows with the same texts are in the same part
            places.append(number)
            wanted = next(part, None)
    return [places[row - 1] for row in wrong]


def listed(rows: Sequence[int]) -> str:
    """Numbers of rows for a message, the first few of them."""
    first, rest = ", ".join(map(str, rows[:3])), len(rows) - 3
    return f"row{'s' * (len(rows) > 1)} {first}" + (f" and {rest} more" if rest > 0 else "")
