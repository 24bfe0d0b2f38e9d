"""Tables over seeds, predictions as files, the page and the card."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from bert_jax.errors import BertJaxError
from bert_jax.reporting import card, judged, page, table
from bert_jax.reporting.judged import Judged
from bert_jax.tasks.tables import Rows
from tests.tasks.tiny_tasks import make_task


def evaluations():
    return {0: {"loss": 0.5, "classifier_loss": 0.5, "classifier_accuracy": 0.5, "accuracy": 0.5, "best_f1_threshold": 1.0},
            3: {"loss": 0.3, "classifier_loss": 0.3, "classifier_accuracy": 0.9, "accuracy": 0.9, "best_f1_threshold": 2.0}}


def test_mean_deviation_best(tmp_path):
    scores = table.gather(evaluations())
    assert [row.name for row in scores.rows] == ["accuracy", "best_f1_threshold", "loss"] and scores.seeds == [0, 3]
    assert scores["accuracy"].mean == pytest.approx(0.7) and scores["accuracy"].best == 0.9
    assert scores["accuracy"].deviation == pytest.approx(np.std([0.5, 0.9], ddof=1))
    assert scores["loss"].best == 0.3 and scores["best_f1_threshold"].best is None
    assert table.gather({1: {"accuracy": 1.0}})["accuracy"].deviation is None
    table.write(scores, tmp_path, {"command": "x"})
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["scores"]["accuracy"]["seeds"] == {"0": 0.5, "3": 0.9} and found["command"] == "x"
    rows = list(csv.DictReader((tmp_path / "scores.tsv").open(), delimiter="\t"))
    assert float(rows[0]["mean"]) == scores["accuracy"].mean and rows[0]["seed 3"] == "0.9"
    assert (tmp_path / "scores.md").read_text().splitlines()[2] == "| accuracy | 0.7000 | 0.2828 | 0.9000 | 0.5000 | 0.9000 |"
    terminal = io.StringIO()
    table.show(scores, Console(file=terminal, width=100))
    assert "0.2828" in terminal.getvalue() and "seed 3" in terminal.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("seeds", [1, 5, 10])
def test_on_a_narrow_terminal_nothing_is_cut(width, seeds):
    """A pipe has 80 columns, and `finetune --config` five seeds."""
    terminal = io.StringIO()
    found = {seed: {"accuracy": 0.8 + seed / 1000, "has_answer_exact_match": 0.5 + seed / 999} for seed in range(seeds)}
    scores = table.gather(found)
    table.show(scores, Console(file=terminal, width=width))
    shown = terminal.getvalue()
    head, body = table.cells(scores)
    assert all(cell in shown for line in (head, *body) for cell in line) and "…" not in shown
    assert max(map(len, shown.splitlines())) <= max(width, 40)
    assert shown.count("has_answer_exact_match") == shown.count("score ")  # names begin each part


def test_a_seed_chosen_by_its_held_out_scores_is_said(tmp_path):
    scores = table.gather({0: {"accuracy": 1.0, "f1": 0.5}}, ("no", "yes"), "-loss")
    assert scores.note == (
        "f1 is that of the label 'yes'. Each seed's scores are of the evaluation with the best loss on these very examples: on "
        "new data expect less."
    )
    table.write(scores, tmp_path, {})
    assert json.loads((tmp_path / "scores.json").read_text())["note"] == scores.note
    assert scores.note in (tmp_path / "scores.md").read_text()


def test_the_note_says_of_which_label_f1_is():
    found, terminal = {0: {"accuracy": 1.0, "f1": 0.5}}, io.StringIO()
    table.show(table.gather(found, ("no", "[b]yes")), Console(file=terminal, width=20))
    assert terminal.getvalue().endswith("f1 is that of the label '[b]yes'.\n")
    assert not table.gather(found, ("no", "yes", "both")).note and not table.gather({0: {"accuracy": 1.0}}, ("no", "yes")).note


def test_seeds_that_were_measured_otherwise_are_refused():
    with pytest.raises(BertJaxError, match=r"seed 3 was measured otherwise than seed 0 \(f1\): remove result.json"):
        table.gather({0: {"accuracy": 1.0}, 3: {"accuracy": 1.0, "f1": 0.5}})
    with pytest.raises(BertJaxError, match=r"seed 3 was measured otherwise than seed 0 \(f1\): remove result.json"):
        table.gather({0: {"accuracy": 1.0, "f1": 0.5}, 3: {"accuracy": 1.0}})


def test_predictions_are_a_line_each(tmp_path):
    rows = [Judged(("a\tb\nc\u2028d", '"x"'), "red", "blue", 0.25, 0.25), Judged(("e", "f"), "red", "red", 1.0, 0.0)]
    judged.write(tmp_path / "p.tsv", ("one", "two"), rows)
    assert (tmp_path / "p.tsv").read_text().splitlines() == [
        "one\ttwo\tlabel\tprediction\tprobability", 'a b c d\t"x"\tred\tblue\t0.250000', "e\tf\tred\tred\t1.000000",
    ]
    assert judged.hardest(rows, 5) == rows[:1] and judged.by_id(rows) == {}
    answered = [Judged(("q", "a b"), "a", "a\tb", None, 0.0, "x1", {"start": 0, "score": 0.1, "null_score": -2.5})]
    judged.write(tmp_path / "p.tsv", ("question", "context"), answered)
    assert (tmp_path / "p.tsv").read_text().splitlines() == [
        "id\tquestion\tcontext\tlabel\tprediction\tstart\tscore\tnull_score", "x1\tq\ta b\ta\ta b\t0\t0.1\t-2.5",
    ]
    assert judged.by_id(answered) == {"x1": "a\tb"}


def test_numbers_keep_their_digits(tmp_path):
    found = judged.judge(
        make_task("Regression").config, Rows([("a",), ("b",)], ["1234567.89", "0.000012"]),
        [{"size": float(np.float32(1234567.9))}, {"size": float(np.float32(1.2e-5))}],
    )
    judged.write(tmp_path / "p.tsv", ("text",), found)
    assert [line.split("\t")[1:] for line in (tmp_path / "p.tsv").read_text().splitlines()[1:]] == [
        ["1234567.89", "1234567.9"], ["0.000012", "1.2e-05"],
    ]
    scores = table.gather({0: {"rmse": 1.25e-5}, 1: {"rmse": 1.75e-5}})
    assert table.cells(scores)[1] == [["rmse", "1.50e-05", "3.54e-06", "1.25e-05", "1.25e-05", "1.75e-05"]]


def test_texts_cannot_break_the_page(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    evil = "<script src='https://x'></script>{0} & \ud800"
    page.write(
        tmp_path / "r.html", title=evil, scores=table.gather(evaluations()), summary=evil,
        pictures=[(evil, tmp_path / "p.png")],
        hardest=[Judged((evil,), evil, evil, None, 1.0)], columns=("text",), configuration=evil, facts={"command": evil},
    )
    text = (tmp_path / "r.html").read_text()
    assert "<script" not in text and text.count("&lt;script") >= 7 and "data:image/png;base64,iVBORw==" in text


def test_front_matter_is_yaml():
    yaml = pytest.importorskip("yaml")
    value = {"a": 'quote " colon: # é', "b": [1.5, "x"], "c": [{"d": {"e": [{"f": 1, "g": "h"}]}, "i": "2"}]}
    assert yaml.safe_load("\n".join(card._yaml(value))) == value
