"""Answers about a file, written as they come: TSV, JSON lines, or what the official scripts of SQuAD take; whole or not at
all."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from bert_jax.errors import BertJaxError
from bert_jax.progress import Progress
from bert_jax.reporting.judged import one_line

FORMS = (".tsv", ".jsonl")
BY_ID = ".json"


def check(out: Path | None, identified: bool = False) -> None:
    """Raises BertJaxError where ``out`` exists, or its name is of no form; ``identified``: whether what is answered has ids."""
    if out is None:
        return
    forms = (*FORMS, BY_ID) if identified else FORMS
    if out.suffix not in forms:
        raise BertJaxError(f"{out}: what is written is named {' or '.join(f'*{form}' for form in forms)}")
    if out.exists():
        raise BertJaxError(f"{out}: exists already: remove it or choose another name")


def write(
    columns: Sequence[str], rows: Iterable[tuple[tuple[str, ...], dict[str, Any]]], out: Path | None,
    size: int | None, done: Callable[[int], float],
) -> int:
    """Writes each row's texts and answer, and says how many.

    In TSV, tabs and line breaks within a text become blanks; JSON lines keep them. A column of the answer with the name of a
    text's is called ``predicted NAME``.

    Args:
      out: ``*.tsv`` or ``*.jsonl``, or of rows whose first column is an id ``*.json``, one object ``{id: text}``; made when all
        is there. None: standard output, as TSV.
      size: bytes or rows of the input; None: not known. done: of how many of them so many rows are the answers, for the time
        left.
    """
    count, form = 0, ".tsv" if out is None else out.suffix
    with _open(out) as file, Progress("predicting", size) as progress:
        for count, (texts, answer) in enumerate(rows, start=1):
            names = [*_names(columns, len(texts)), *(f"predicted {name}" if name in columns else name for name in answer)]
            values = [*texts, *answer.values()]
            if form == BY_ID:
                pair = (json.dumps(value, ensure_ascii=False) for value in (texts[0], answer["text"]))
                file.write(("{\n" if count == 1 else ",\n") + ": ".join(pair))
            elif form == ".jsonl":
                file.write(json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False) + "\n")
            else:
                if count == 1:
                    header = names
                    file.write("\t".join(map(one_line, names)) + "\n")
                elif names != header:
                    raise BertJaxError(f"row {count} has other columns than the first ({', '.join(names)}): --out *.jsonl has "
                                       "names of its own for each row")
                file.write("\t".join(map(one_line, values)) + "\n")
            if count % 256 == 0:
                progress.update(done(count), f"{count:,} rows")
        if form == BY_ID:
            file.write("\n}\n")
    return count


def _names(columns: Sequence[str], count: int) -> list[str]:
    if all(name.isdigit() for name in columns):
        return [f"column {name}" for name in columns]
    return list(columns[:count])


@contextlib.contextmanager
def _open(out: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that takes its name at the end and else disappears."""
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
            sys.stdout.reconfigure(encoding="utf-8")  # as a file would be, whatever the locale
        yield sys.stdout
        sys.stdout.flush()
        return
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
