"""The text of a data file, and the objects of one in JSON lines, for every kind of task; what is wrong with it in one line."""

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bert_jax.errors import BertJaxError

logger = logging.getLogger("bert_jax")


def text_of(path: str) -> str:
    """A file's text, decompressed where its name ends in ``.gz``, without a byte order mark.

    Raises:
      BertJaxError: it cannot be read, is damaged, or not UTF-8 (the first such line and byte are named).
    """
    try:
        data = Path(path).read_bytes()
        data = gzip.decompress(data) if path.endswith(".gz") else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BertJaxError(f"{path}: a damaged gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise BertJaxError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"0x{error.object[error.start]:02x}"
        raise BertJaxError(f"{path}: line {line} is not UTF-8 (byte {byte}): convert the file to UTF-8") from None


def objects_of(text: str, path: str) -> Iterator[tuple[int, dict]]:
    """The number of each line of ``text`` that is not empty, and its JSON object.

    Raises:
      BertJaxError: a line that is no JSON, or no object.
    """
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a string may hold U+2028 and the like
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise BertJaxError(f"{path}: line {number} is not JSON ({error}): an object a line is needed") from None
        if not isinstance(found, dict):
            raise BertJaxError(f"{path}: line {number} is no JSON object: {{\"field\": ..., ...}} is needed")
        yield number, found


def warn_of_numbers(first: Sequence[str], columns: Sequence[str], path: str) -> None:
    """One line where ``columns`` are taken for numbers of them, and the first line looks as if these were their names."""
    if all(first[int(column)].strip() == column for column in columns):
        logger.warning("%s: columns %s are taken by their number, and the first line, %s, is an example: if these are names, "
                       "take that line out", path, ", ".join(columns), ", ".join(first[:6]))


def unquoted(lines: Iterator[tuple[int, str]], path: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line of ``*.tsv`` that is not empty, as they stand, and its number; one warning line where they look
    as if a program had put them into quotation marks."""
    said = False
    for number, line in lines:
        if not line:
            continue
        fields = line.split("\t")
        if not said and '""' in line and any(_QUOTED.fullmatch(field) for field in fields):
            said = True
            logger.warning("%s: line %d has a field in quotation marks, with doubled ones inside: in *.tsv they stay in the "
                           "text, in *.csv they would not", path, number)
        yield number, fields


_QUOTED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')  # what a writer of quoted fields makes of one with a quotation mark


def check_characters(text: str, where: str) -> None:
    """Raises BertJaxError where a string of JSON has half a surrogate pair, which no tokenizer, file of text or picture takes.
    ``where``: what messages call it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise BertJaxError(f"{where} has half a character ({half!a}, of a surrogate pair): write the whole one") from None


def other_separator(header: Sequence[str], form: str) -> str:
    """A hint for a message, where the one column of ``*.csv`` or ``*.tsv`` looks like several, with something else between."""
    if len(header) != 1 or (sign := next((sign for sign in ";\t,|" if sign in header[0]), None)) is None:
        return ""
    return f": are its fields apart by {sign!r}? in *.{form} they have to be by {'commas' if form == 'csv' else 'tabs'}"
