"""The numbers behind the pictures."""

import dataclasses

import numpy as np
import pytest

from bert_jax.reporting import plots
from bert_jax.reporting.judged import judge
from bert_jax.tasks.tables import Rows
from tests.tasks.tiny_tasks import make_task


def test_confusion_is_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = ("b", "a", "c")
    wanted, found = ([labels[k] for k in rng.integers(0, 3, 100)] for _ in range(2))
    expected = metrics.confusion_matrix(wanted, found, labels=list(labels))
    np.testing.assert_array_equal(plots.confusion(wanted, found, labels), expected)


def test_calibration_by_hand():
    found = plots.calibration(np.array([0.95, 0.85, 0.55, 1.0]), np.array([True, False, True, True]), bins=2)
    assert found.count.tolist() == [0, 4] and np.isnan(found.accuracy[0])
    assert found.error == pytest.approx(abs(0.75 - 0.8375))
    edges = plots.calibration(np.array([0.0, 0.5, 1.0]), np.ones(3, bool), bins=2)
    assert edges.count.tolist() == [2, 1]
    assert plots.calibration(np.array([0.7] * 10), np.arange(10) < 7).error == pytest.approx(0, abs=1e-12)


def test_calibration_is_the_reference_s():
    """torchmetrics' formula written out per example: bins (lower, upper], weighted distance of means."""
    rng = np.random.default_rng(0)
    probabilities, right = rng.random(500), rng.random(500) < 0.6
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (probabilities > low) & (probabilities <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - probabilities[inside].mean())
    assert plots.calibration(probabilities, right).error == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("tags", [("O", "B-X", "I-X", "B-Y", "I-Y"), ("NOUN", "VERB", "ADJ")])
def test_f1_by_label_is_the_library_s(tags):
    rng = np.random.default_rng(0)
    wanted, found = ([[tags[k] for k in rng.integers(0, len(tags), 9)] for _ in range(40)] for _ in range(2))
    ours = plots.f1_by_label(wanted, found, tags)
    if "O" in tags:
        report = pytest.importorskip("seqeval.metrics").classification_report(wanted, found, output_dict=True)
        expected = {kind: report[kind]["f1-score"] for kind in ("X", "Y")}
    else:
        metrics = pytest.importorskip("sklearn.metrics")
        values = metrics.f1_score(sum(wanted, []), sum(found, []), labels=sorted(tags), average=None)
        expected = dict(zip(sorted(tags), values, strict=True))
    assert ours == pytest.approx(expected)


def test_tags_of_entities_without_any_are_drawn_too(tmp_path):
    task = make_task("Tagging").config
    task = dataclasses.replace(task, encoder=dataclasses.replace(task.encoder, labels=("O", "B-X", "I-X")))
    rows, answers = Rows([("a", "cat")], [("O", "O")]), [{"tags": ["O", "O"], "entities": []}]
    assert plots.f1_by_label(rows.labels, [["O", "O"]], task.encoder.labels) == {}
    assert plots.f1_by_label(rows.labels, [["O", "B-X"]], task.encoder.labels) == {"X": 0}
    found = plots.draw(task, rows, answers, judge(task, rows, answers), tmp_path)
    assert [path.name for path in found] == ["f1_by_label.png", "confusion.png"] and all(path.is_file() for path in found)


@pytest.mark.parametrize(("gold", "found", "kind"), [
    ((3, 7), (3, 7), "right"), (None, None, "right"), (None, (1, 2), "answered, has none"), ((1, 2), None, "not answered"),
    ((3, 7), (4, 7), "too short"), ((3, 7), (3, 9), "too long"), ((3, 7), (5, 9), "overlapping"), ((3, 7), (7, 9), "elsewhere"),
])
def test_kinds_of_span_errors(gold, found, kind):
    assert plots.span_error(gold, found) == kind and kind in plots.SPAN_ERRORS
