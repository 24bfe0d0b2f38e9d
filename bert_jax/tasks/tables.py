"""Labelled sentences and pairs from TSV and CSV files."""

import csv
import dataclasses
from pathlib import Path
from typing import NamedTuple

from bert_jax.errors import BertJaxError


class Rows(NamedTuple):
    """What a table holds: texts [n], of one or two sentences each, and the labels as they are written [n]."""

    texts: list[tuple[str, ...]]
    labels: list[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """A file of labelled sentences.

    Attributes:
      path: ``*.tsv``, fields apart by tabs and without quoting, as GLUE is written, or ``*.csv``, fields apart by commas.
      texts: the columns of the sentence, or of the two sentences of a pair. label: the column of the label.
        Columns go by their names in the first line, or in a file without such a line by their number from 0.
    """

    path: str
    texts: tuple[str, ...]
    label: str

    def __post_init__(self):
        if not 1 <= len(self.texts) <= 2:
            raise BertJaxError(f"{self.path}: texts={self.texts}: name one column, or the two of a pair")

    def read(self) -> Rows:
        """All rows.

        Raises:
          BertJaxError: no such file, not UTF-8, a column that is not there (those that are, are listed), a row that lacks one,
            an empty text or label, or no rows.
        """
        path = Path(self.path)
        if path.suffix not in (".tsv", ".csv"):
            raise BertJaxError(f"{path}: a table is a file *.tsv or *.csv")
        form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                lines = list(csv.reader(file, **form))
        except OSError as error:
            raise BertJaxError(f"{path}: cannot be read ({error.strerror})") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise BertJaxError(f"{path}: no table ({error})") from None
        columns, begin = self._columns(lines)
        rows = Rows([], [])
        for number, line in enumerate(lines[begin:], start=begin + 1):
            if not line:
                continue
            if max(columns) >= len(line):
                raise BertJaxError(f"{path}: row {number} has {len(line)} fields, column {max(columns) + 1} is wanted")
            *texts, label = (line[column].strip() for column in columns)
            if not all(texts) or not label:
                raise BertJaxError(f"{path}: row {number} has an empty {'text' if label else 'label'}")
            rows.texts.append(tuple(texts))
            rows.labels.append(label)
        if not rows.labels:
            raise BertJaxError(f"{path}: no rows")
        return rows

    def _columns(self, lines: list[list[str]]) -> tuple[list[int], int]:
        """Numbers of the columns, texts first, and the first line that is a row."""
        wanted = [*self.texts, self.label]
        if all(name.isdigit() for name in wanted):
            return [int(name) for name in wanted], 0
        header = [name.strip() for name in lines[0]] if lines else []
        for name in wanted:
            if name not in header:
                raise BertJaxError(f"{self.path}: no column {name!r}; there are {', '.join(header) or 'none'}")
        return [header.index(name) for name in wanted], 1
