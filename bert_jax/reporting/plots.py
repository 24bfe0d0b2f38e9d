"""Pictures of held-out answers, as each kind of task needs them, and the learning curves of all seeds."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bert_jax.reporting.judged import Judged
from bert_jax.tasks import AnyFinetuning, Choice, Classification, MaskedWords, QuestionAnswering, Regression, Tagging
from bert_jax.tasks.tables import Rows
from bert_jax.tasks.tagging import entities, spans

BINS = 15  # of Guo et al. 2017, section 4
SHOWN_CLASSES = 40  # a confusion matrix of more has no readable names


class Calibration(NamedTuple):
    """How often predictions of about one probability are right.

    Attributes:
      error: the expected calibration error, the mean distance of accuracy and confidence, weighted by bins (Guo et al. 2017,
        equation 3). edges: float [n + 1]. confidence, accuracy: float [n], NaN where a bin is empty. count: int [n].
    """

    error: float
    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def calibration(probabilities: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], bins: int = BINS) -> Calibration:
    """Of the probabilities of the predicted classes, in ``bins`` of one width; a probability on an edge is in the lower bin."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, weights=probabilities, minlength=bins) / count
        accuracy = np.bincount(place, weights=right.astype(float), minlength=bins) / count
    error = float(np.nansum(np.abs(accuracy - confidence) * count) / max(len(probabilities), 1))
    return Calibration(error, edges, confidence, accuracy, count)


def confusion(wanted: Sequence[str], found: Sequence[str], labels: Sequence[str]) -> Int[np.ndarray, "C C"]:
    """Counts: rows are what is right, columns what was predicted."""
    number = {label: place for place, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(matrix, ([number[label] for label in wanted], [number[label] for label in found]), 1)
    return matrix


def f1_by_label(
    wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, float]:
    """F1 of each entity kind that occurs, whole entities alone, where ``labels`` are of entities; else of each tag, word by
    word."""
    whole = entities(labels)
    right, there, said = Counter(), Counter(), Counter()
    for tags, others in zip(wanted, found, strict=True):
        ours, theirs = (set(spans(one)) if whole else {(tag, n, n) for n, tag in enumerate(one)} for one in (tags, others))
        right.update(label for label, _, _ in ours & theirs)
        there.update(label for label, _, _ in ours)
        said.update(label for label, _, _ in theirs)
    return {label: 2 * right[label] / (there[label] + said[label]) for label in sorted(there | said)}


SPAN_ERRORS = ("right", "too short", "too long", "overlapping", "elsewhere", "answered, has none", "not answered")


def span_error(gold: tuple[int, int] | None, found: tuple[int, int] | None) -> str:
    """Which of ``SPAN_ERRORS`` a prediction (first character, one behind the last) is; None: no answer."""
    if gold is None or found is None:
        return "right" if gold == found else "answered, has none" if gold is None else "not answered"
    if gold == found:
        return "right"
    if gold[0] <= found[0] and found[1] <= gold[1]:
        return "too short"
    if found[0] <= gold[0] and gold[1] <= found[1]:
        return "too long"
    return "overlapping" if found[0] < gold[1] and gold[0] < found[1] else "elsewhere"


def draw(task: AnyFinetuning, rows: Rows, answers: Sequence[dict[str, Any]], judged: list[Judged], folder: Path) -> list[Path]:
    """The pictures of a kind, as PNG files in ``folder``; the paths, in the order in which they should be shown."""
    found = []
    for name, make in _PICTURES[next(kind for kind in type(task).__mro__ if kind in _PICTURES)]:
        path = folder / f"{name}.png"
        _save(path, lambda figure, make=make: make(figure, task, rows, answers, judged))
        found.append(path)
    return found


def draw_curves(records: dict[int, list[dict]], scores: Sequence[str], path: Path) -> None:
    """Training loss and held-out loss over updates, and the held-out scores, one line a seed; ``records`` are the rows of each
    seed's metrics.jsonl."""
    panels = ["train loss", "loss", *(name for name in scores if name != "loss")][:6]

    def make(figure):
        figure.set_size_inches(4.2 * len(panels), 3.4)
        axes = figure.subplots(1, len(panels), squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            kind, name = ("train", "loss") if panel == "train loss" else ("eval", panel)
            for place, (seed, record) in enumerate(records.items()):
                points = [(row["step"], row[name]) for row in record if row["kind"] == kind and name in row]
                axis.plot(*zip(*points, strict=True) if points else ([], []), "-" if kind == "train" else "o-",
                          color=f"C{place % 10}", lw=1, ms=3, label=f"seed {seed}")
            axis.set(title=f"{'training' if kind == 'train' else 'held out'}: {name}", xlabel="updates")
            axis.grid(alpha=0.3)
        axes[0][0].legend(fontsize=7)

    _save(path, make)


def _save(path: Path, make: Callable) -> None:
    """Without pyplot, which a notebook shows its own pictures with: a backend set here would be set there."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False}):  # labels may hold dollar signs
        figure = Figure()
        make(figure)
        figure.tight_layout()
        temporary = path.with_suffix(".tmp")
        figure.savefig(temporary, dpi=100, format="png")
        temporary.replace(path)


def _confusion(figure, task, rows, answers, judged):
    labels = sorted({one.label for one in judged} | {one.prediction for one in judged})
    labels = [label for label in task.encoder.labels if label in labels] or labels
    matrix = confusion([one.label for one in judged], [one.prediction for one in judged], labels)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = min(max(3.2, 0.6 * len(labels) + 2), 14)
    figure.set_size_inches(size + 0.8, size)
    axis = figure.subplots()
    figure.colorbar(axis.imshow(share, cmap="Blues", vmin=0, vmax=1), label="share of the right label's rows", shrink=0.8)
    axis.set(xlabel="predicted", ylabel="right", title=f"{len(judged):,} held-out examples")
    if len(labels) <= SHOWN_CLASSES:
        axis.set_xticks(range(len(labels)), [_short(label) for label in labels], rotation=45, ha="right")
        axis.set_yticks(range(len(labels)), [_short(label) for label in labels])
    if len(labels) <= 20:
        for i, j in np.ndindex(matrix.shape):
            axis.text(j, i, matrix[i, j], ha="center", va="center", fontsize=8, color="w" if share[i, j] > 0.5 else "k")


def _reliability(figure, task, rows, answers, judged):
    found = calibration(np.array([one.probability for one in judged]), np.array([one.error == 0 for one in judged]))
    figure.set_size_inches(4.6, 5)
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    heights, widths = np.nan_to_num(found.accuracy), np.diff(found.edges)
    axis.bar(found.edges[:-1], heights, widths, align="edge", edgecolor="w", label="accuracy")
    axis.plot([0, 1], [0, 1], "k--", lw=1)
    axis.plot(found.confidence, found.accuracy, "o", color="C1", ms=4, label="mean confidence")
    axis.set(ylabel="share that is right", ylim=(0, 1), xlim=(0, 1), title=f"expected calibration error {found.error:.4f}")
    axis.legend(fontsize=8, loc="upper left")
    below.bar(found.edges[:-1], found.count, widths, align="edge", color="C7", edgecolor="w")
    below.set(xlabel="probability of the prediction", ylabel="examples")


def _scatter(figure, task, rows, answers, judged):
    wanted, said = _values(task, rows, answers)
    figure.set_size_inches(4.8, 4.6)
    axis = figure.subplots()
    axis.scatter(wanted, said, s=8, alpha=0.4)
    ends = [min(wanted.min(), said.min()), max(wanted.max(), said.max())]
    axis.plot(ends, ends, "k--", lw=1)
    axis.set(xlabel=f"{task.encoder.labels[0]}, held out", ylabel="predicted", title=f"{len(wanted):,} held-out examples")
    axis.grid(alpha=0.3)


def _residuals(figure, task, rows, answers, judged):
    wanted, said = _values(task, rows, answers)
    figure.set_size_inches(8, 3.6)
    left, right = figure.subplots(1, 2)
    left.scatter(said, said - wanted, s=8, alpha=0.4)
    left.axhline(0, color="k", lw=1, ls="--")
    left.set(xlabel="predicted", ylabel="predicted - right")
    right.hist(said - wanted, bins=min(50, max(5, len(said) // 5)))
    error = said - wanted
    right.set(xlabel="predicted - right", ylabel="examples", title=f"mean {error.mean():.3g}, deviation {error.std():.3g}")


def _values(task, rows, answers) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(label) for label in rows.labels]), np.array([answer[task.encoder.labels[0]] for answer in answers])


def _span_errors(figure, task, rows, answers, judged):
    counts, starts, ends = Counter(), [], []
    for gold, answer in zip(rows.labels, answers, strict=True):
        found = (answer["start"], answer["start"] + len(answer["text"])) if answer["text"] else None
        given = [(one.start, one.start + len(one.text)) for one in gold.answers if one.start >= 0]
        if gold.answers and not given:  # misplaced, all of them: where is not known
            continue
        # Of several right answers the one that is nearest.
        nearest = min(given, key=lambda span: abs(span[0] - found[0]) + abs(span[1] - found[1])) if given and found else None
        counts[span_error(nearest or (given[0] if given else None), found)] += 1
        if nearest:
            starts.append(found[0] - nearest[0])
            ends.append(found[1] - nearest[1])
    figure.set_size_inches(10, 4)
    left, right = figure.subplots(1, 2)
    left.scatter(starts, ends, s=8, alpha=0.4)
    left.set_xscale("symlog", linthresh=10)
    left.set_yscale("symlog", linthresh=10)
    left.axhline(0, color="k", lw=0.5)
    left.axvline(0, color="k", lw=0.5)
    left.set(xlabel="start: predicted - right, characters", ylabel="end: predicted - right, characters")
    kinds = [kind for kind in SPAN_ERRORS if counts[kind]]
    bars = right.barh(kinds, [counts[kind] for kind in kinds])
    right.bar_label(bars)
    right.invert_yaxis()
    right.set(xlabel="questions")


def _tag_bars(figure, task, rows, answers, judged):
    scores = f1_by_label(rows.labels, [answer["tags"] for answer in answers], task.encoder.labels)
    figure.set_size_inches(5.5, 1 + 0.3 * len(scores))
    axis = figure.subplots()
    axis.bar_label(axis.barh(list(scores), list(scores.values())), fmt="%.3f")
    axis.invert_yaxis()
    axis.set(xlabel="F1", xlim=(0, 1.12))


def _tag_confusion(figure, task, rows, answers, judged):
    pairs = [
        Judged((), tag, said, None, 0.0) for tags, answer in zip(rows.labels, answers, strict=True)
        for tag, said in zip(tags, answer["tags"], strict=True)
    ]
    _confusion(figure, task, rows, answers, pairs)
    figure.axes[0].set_title(f"{len(pairs):,} held-out words")


def _short(label: str) -> str:
    return label if len(label) <= 18 else label[:17] + "…"


_RELIABILITY = ("calibration", _reliability)
_PICTURES: dict[type, tuple[tuple[str, Callable], ...]] = {
    Classification: (("confusion", _confusion), _RELIABILITY),
    Regression: (("scatter", _scatter), ("residuals", _residuals)),
    QuestionAnswering: (("span_errors", _span_errors),),
    Tagging: (("f1_by_label", _tag_bars), ("confusion", _tag_confusion)),
    Choice: (_RELIABILITY,),
    MaskedWords: (("confusion", _confusion), _RELIABILITY),
}
