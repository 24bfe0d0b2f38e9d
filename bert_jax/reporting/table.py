"""Scores of several seeds: mean, standard deviation, the best, and each of them; on the terminal and in files."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as Lines

from bert_jax.errors import BertJaxError
from bert_jax.files import write_json, write_whole
from bert_jax.task import SMALLER_IS_BETTER

SCORES = "scores.json"


class Row(NamedTuple):
    """One score. deviation: of the sample (n - 1), None of one seed. best: the largest, or the smallest of what is better so;
    None of a threshold, which is no score. seeds: the value of each."""

    name: str
    mean: float
    deviation: float | None
    best: float | None
    seeds: dict[int, float]


class Scores(NamedTuple):
    """What runs that differ only in their seeds came to: a row for each score. note: what the names do not say."""

    rows: list[Row]
    note: str = ""

    def __getitem__(self, name: str) -> Row:  # of a tuple, but nobody wants its first field by number
        return next(row for row in self.rows if row.name == name)

    @property
    def seeds(self) -> list[int]:
        return list(self.rows[0].seeds)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return markdown(self)


def gather(
    evaluations: Mapping[int, Mapping[str, float]], labels: Sequence[str] = (), chosen_by: str | None = None
) -> Scores:
    """The table of the evaluations of each seed. Losses and accuracies of single terms, which the loop records, are left out
    where they only say ``loss`` and a score again.

    Args:
      labels: of classes; where there are two, F1 is that of the second.
      chosen_by: ``train.best``, by which each seed's evaluation was chosen, which flatters it.

    Raises:
      BertJaxError: seeds that were not measured alike, as by another version.
    """
    first = next(iter(evaluations.values()))
    for seed, found in evaluations.items():
        if different := sorted(found.keys() ^ first.keys()):
            raise BertJaxError(
                f"seed {seed} was measured otherwise than seed {next(iter(evaluations))} ({', '.join(different)}): remove "
                "result.json in the folder of each seed, and the same command measures them again"
            )
    names = [name for name in first if not name.endswith(("_loss", "_accuracy")) or name == "no_answer_accuracy"]
    names.sort(key=lambda name: name == "loss")  # last, the others as they come
    rows = []
    for name in names:
        values = {seed: float(found[name]) for seed, found in sorted(evaluations.items())}
        every = list(values.values())
        deviation = statistics.stdev(every) if len(every) > 1 and all(map(math.isfinite, every)) else None
        best = None if name.endswith("_threshold") else (min if name in SMALLER_IS_BETTER else max)(every)
        rows.append(Row(name, statistics.fmean(every), deviation, best, values))
    notes = [f"f1 is that of the label {labels[1]!r}."] if len(labels) == 2 and "f1" in names else []
    if chosen_by:
        notes.append(f"Each seed's scores are of the evaluation with the best {chosen_by.removeprefix('-')} on these very "
                     "examples: on new data expect less.")
    return Scores(rows, " ".join(notes))


def of_seed(seed: int) -> str:
    return f"seed {seed}"


def cells(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """The table as text: the head, and a line for each score."""
    head = ["score", "mean", "deviation", "best", *map(of_seed, scores.seeds)]
    body = [[row.name, *(_number(value) for value in (row.mean, row.deviation, row.best, *row.seeds.values()))]
            for row in scores.rows]
    return head, body


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or not abs(value) < 1e-3 else f"{value:.2e}"


def markdown(scores: Scores) -> str:
    """A table of GitHub's Markdown, and the note under it."""
    head, body = cells(scores)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    note = f"\n{scores.note}\n" if scores.note else ""
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + note


def show(scores: Scores, console: Console) -> None:
    """Prints it, in parts one below another where seeds are too many for the width, and the note under it."""
    head, body = cells(scores)
    columns = list(zip(head, *body, strict=True))
    for part in _parts([max(map(len, column)) + 3 for column in columns], console.width - 1):
        lines = Lines()
        for number in part:
            lines.add_column(head[number], justify="right" if number else "left", no_wrap=True)
        for row in body:
            lines.add_row(*(row[number] for number in part))
        console.print(lines)
    if scores.note:
        console.print(scores.note, markup=False, highlight=False, soft_wrap=True)


def _parts(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns that fit side by side; the first one, the names, begins every part."""
    parts = [[0]]
    for number in range(1, len(widths)):
        if len(parts[-1]) > 1 and sum(widths[one] for one in parts[-1]) + widths[number] > room:
            parts.append([0])
        parts[-1].append(number)
    return parts


def to_json(scores: Scores) -> dict[str, Any]:
    """By name of the score mean, deviation, best, and the value of each seed."""
    return {row.name: {"mean": row.mean, "deviation": row.deviation, "best": row.best, "seeds": row.seeds}
            for row in scores.rows}


def write(scores: Scores, folder: Path, facts: Mapping[str, Any]) -> None:
    """``scores.json`` (with ``facts``), ``scores.md`` and ``scores.tsv``."""
    note = {"note": scores.note} if scores.note else {}
    write_json(folder / SCORES, dict(facts) | {"scores": to_json(scores)} | note)
    write_whole(folder / "scores.md", markdown(scores))
    lines = [["score", "mean", "deviation", "best", *map(of_seed, scores.seeds)]]
    lines += [[row.name, *("" if value is None else repr(value) for value in (row.mean, row.deviation, row.best,
                                                                             *row.seeds.values()))] for row in scores.rows]
    write_whole(folder / "scores.tsv", "".join("\t".join(line) + "\n" for line in lines))
