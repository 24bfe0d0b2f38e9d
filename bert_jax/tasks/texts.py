"""Texts of any number, one row at a time, from files and standard input; :mod:`bert_jax.tasks.tables` reads whole tables."""

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import logging
import queue
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar, get_args

from bert_jax.errors import BertJaxError
from bert_jax.tasks.files import other_separator, unquoted, warn_of_numbers
from bert_jax.tasks.tables import FORMATS

Form = Literal["tsv", "csv", "jsonl", "lines"]
STDIN = "-"

log = logging.getLogger("bert_jax")
T = TypeVar("T")


class Texts(NamedTuple):
    """Rows that come when they are asked for.

    Attributes:
      rows: the texts of each, without white space around them unless it was asked for; a list of them is a tuple. columns:
        their names. size: of the file in bytes, None: not known. read: how many of these have been read so far.
    """

    rows: Iterator[tuple[str | tuple[str, ...], ...]]
    columns: tuple[str, ...]
    size: int | None
    read: Callable[[], int]


def open_texts(
    path: str, columns: tuple[str, ...] = (), form: Form | None = None, *, lists: int | None = None, whole: bool = False
) -> Texts:
    """The rows of a file, or of standard input (``-``).

    Args:
      path: ``*.tsv`` (fields apart by tabs, no quoting), ``*.csv``, ``*.jsonl``, each also with ``.gz``; all else, and standard
        input, is a text a line.
      columns: of the texts: names in the first line, or numbers from 0 where there is none; none: the only one.
      form: how it is written, where its name does not say that.
      lists: the number of a column that in ``*.jsonl`` may also hold lists of texts, from 0.
      whole: texts keep the white space around them: answers about places in them count it.

    Raises:
      BertJaxError: no such file, no such column (those that there are, are listed), or columns of plain lines. While rows are
        read: an empty text, a damaged line, no UTF-8, or no rows at all. Each message has the line.
    """
    form = form_of(path, form)
    if form not in get_args(Form):
        raise BertJaxError(f"{path}: the form {form!r} is none of {', '.join(get_args(Form))}")
    if form == "lines" and columns:
        raise BertJaxError(f"{path}: plain lines have no columns {', '.join(columns)}: name a *.tsv, *.csv or *.jsonl file, or "
                           "say --format")
    raw, size = _open(path)

    def counted() -> int:
        return (size if raw.closed else raw.tell()) if size is not None else 0

    data = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
    lines = _checked(_FIELDS[form](_decoded(data, path), path), path)
    take = functools.partial(_rows, path=path, whole=whole)
    first = next(lines, None)
    if first is None:
        raise BertJaxError(f"{path}: no rows: it is empty")
    if form == "lines":
        return Texts(take(first, lines, [0]), ("text",), size, counted)
    header = list(first[1]) if isinstance(first[1], dict) else [name.strip() for name in first[1]]
    if isinstance(first[1], list) and columns and all(name.isdigit() for name in columns):
        if max(map(int, columns)) >= len(header):
            hint = other_separator(header, form)
            raise BertJaxError(f"{path}: no column {max(columns, key=int)}; there are 0 to {len(header) - 1}{hint}")
        warn_of_numbers(header, columns, path)
        return Texts(take(first, lines, [int(name) for name in columns], width=len(header)), columns, size, counted)
    if not columns and len(header) > 1:
        raise BertJaxError(f"{path}: name the column of the text (--texts); there are {', '.join(header)}")
    columns = columns or tuple(header)
    for name in columns:
        if header.count(name) != 1:
            what = "no column" if name not in header else f"{header.count(name)} columns"
            hint = other_separator(header, form) if isinstance(first[1], list) else ""
            raise BertJaxError(f"{path}: {what} {name!r}; there are {', '.join(header)}{hint}")
    if isinstance(first[1], dict):
        return Texts(take(first, lines, list(columns), lists=lists), columns, size, counted)
    return Texts(take(None, lines, [header.index(name) for name in columns], width=len(header)), columns, size, counted)


def form_of(path: str, form: Form | None = None) -> Form:
    """How a file is written: as ``form`` says, else its name.

    Raises:
      BertJaxError: one JSON document, such as SQuAD's form: as lines its texts would be braces and quotation marks.
    """
    if form is not None:
        return form
    suffix = Path(path.removesuffix(".gz")).suffix.removeprefix(".")
    if suffix == "json" and path != STDIN:
        raise BertJaxError(f"{path}: one JSON document (SQuAD's form) is for models that answer questions about contexts: give "
                           "*.jsonl with an object a line, or say --format")
    return suffix if suffix in ("tsv", "csv", "jsonl") and path != STDIN else "lines"


def first_line(path: str) -> str:
    """Of a file; empty where it cannot be read, which :func:`open_texts` says."""
    raw, _ = _open(path)
    with raw, contextlib.suppress(OSError, EOFError, zlib.error):
        data = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        return next(iter(data), b"").decode("utf-8-sig", "replace").strip()
    return ""


def _open(path: str) -> tuple[BinaryIO, int | None]:
    if path == STDIN:
        return sys.stdin.buffer, None
    try:
        return open(path, "rb"), Path(path).stat().st_size
    except OSError as error:
        raise BertJaxError(f"{path}: cannot be read ({error.strerror})") from None


def _decoded(data: Iterable[bytes], path: str) -> Iterator[str]:
    """Lines, which end at line feeds alone, without a byte order mark."""
    for number, line in enumerate(data, start=1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            byte = f"0x{line[error.start]:02x}"
            raise BertJaxError(f"{path}: line {number} is not UTF-8 (byte {byte}): convert the file to UTF-8") from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def _checked(lines: Iterator[tuple[int, list | dict]], path: str) -> Iterator[tuple[int, list | dict]]:
    """The same, with what may be wrong with a file in one line."""
    number = 0
    try:
        for number, fields in lines:
            yield number, fields
    except csv.Error as error:
        raise BertJaxError(f"{path}: after line {number}: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise BertJaxError(f"{path}: after line {number}: no JSON object a line ({error})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BertJaxError(f"{path}: a damaged gzip file after line {number} ({error}): fetch it again") from None
    except OSError as error:
        raise BertJaxError(f"{path}: cannot be read ({error})") from None


def _rows(
    first: tuple | None, lines: Iterator[tuple[int, list | dict]], wanted: list, *, path: str, whole: bool,
    width: int | None = None, lists: int | None = None,
) -> Iterator[tuple[str | tuple[str, ...], ...]]:
    some = first is not None
    for number, fields in itertools.chain([first] if some else [], lines):
        found = _texts(number, fields, wanted, path, width, lists)
        yield found if whole else tuple(map(_stripped, found))
        some = True
    if not some:
        raise BertJaxError(f"{path}: no rows below the names of the columns")


def _texts(
    number: int, fields: list | dict, wanted: list, path: str, width: int | None, lists: int | None
) -> tuple[str | tuple[str, ...], ...]:
    where = f"{path}: line {number}"
    if width is not None and len(fields) != width:
        raise BertJaxError(f"{where} has {len(fields)} fields, the first line {width}")
    if isinstance(fields, dict) and (missing := [name for name in wanted if name not in fields]):
        raise BertJaxError(f"{where}: no column {missing[0]!r}; there are {', '.join(map(str, fields))}")
    return tuple(_text(fields[column], where, place == lists) for place, column in enumerate(wanted))


def _text(field: Any, where: str, lists: bool | None) -> str | tuple[str, ...]:
    """``lists``: whether this may be a list; None: it is in one."""
    if lists and isinstance(field, list) and field:
        return tuple(_text(one, where, None) for one in field)
    if isinstance(field, int | float) and lists is not None:  # as a table that is trained on takes them
        return json.dumps(field)
    if not isinstance(field, str):
        raise BertJaxError(f"{where}: a text is a string{', or a list of them' if lists else ''}")
    if not field.strip():
        raise BertJaxError(f"{where}: the text is empty, or nothing but white space: take the line out")
    return field


def _stripped(text: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return text.strip() if isinstance(text, str) else tuple(map(str.strip, text))


def _plain(file: Iterator[str], path: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, start=1):
        yield number, [line]


def _tabs(file: Iterator[str], path: str) -> Iterator[tuple[int, list[str]]]:
    return unquoted(((number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1)), path)


def _commas(file: Iterator[str], path: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((part for line in file for part in io.StringIO(line, newline="")), strict=True)
    for fields in reader:
        if fields:
            yield reader.line_num, fields


def _objects(file: Iterator[str], path: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            found = json.loads(line)
            if not isinstance(found, dict):
                raise json.JSONDecodeError("no object with columns", line, 0)
            yield number, found


_FIELDS: dict[str, Callable] = {"lines": _plain, "tsv": _tabs, "csv": _commas, "jsonl": _objects}


def check_lines(path: str, columns: tuple[str, ...]) -> None:
    """One warning line where the name of a file did not say that it has a text a line, and nobody else did.

    Raises:
      BertJaxError: its first line has the names of the ``columns`` that the model was trained on, so that it is a table.
    """
    if path == STDIN or not Path(path).is_file() or not (first := first_line(path)):  # a pipe gives its first line only once
        return
    header = [[name.strip(' "') for name in first.split(sign)] for sign in ("\t", ",")]
    named = columns if not all(column.isdigit() for column in columns) else ()
    if named and any(set(named) <= set(names) for names in header) or first.startswith(tuple(f'{{"{c}' for c in named)):
        raise BertJaxError(f"{path}: its first line has the columns {', '.join(columns)}, and its name is none of a table "
                           f"({', '.join(FORMATS)}): say --format")
    if Path(path.removesuffix(".gz")).suffix.lower() != ".txt":
        log.warning("%s is read as a text a line, since its name ends in none of %s: --format says otherwise", path,
                    ", ".join(FORMATS))


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; while one is used, the next is made in a thread. (A daemon: it may wait for input that never comes.)"""
    box: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(1)
    over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                box.put((item, error), timeout=0.1)
                return

    def fill() -> None:
        try:
            for item in items:
                put(item, None)
                if over.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # whatever it is, it is raised where the items are used
            put(None, error)

    threading.Thread(target=fill, daemon=True).start()
    try:
        while True:
            item, error = box.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        over.set()
