"""Files of SQuAD, what is refused of them, and the scores of the official script."""

import json
import logging
import random

import numpy as np
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.tasks import squad
from bert_jax.tasks.squad import Answer, Gold, Squad

CONTEXT = "Ein Café 🙂 in 北京 öffnet."


def question(identity="q1", **changes):
    return {"id": identity, "question": "Where?", "answers": [{"text": "北京", "answer_start": 14}]} | changes


def write(folder, *questions, context=CONTEXT):
    path = folder / "squad.json"
    paragraph = {"context": context, "qas": list(questions)}
    path.write_text(json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": [paragraph]}]}), "utf-8")
    return str(path)


def test_questions_and_answers(tmp_path):
    assert CONTEXT[14:16] == "北京"
    impossible = question("q2", answers=[], is_impossible=True, plausible_answers=[{"text": "Ein", "answer_start": 0}])
    rows = Squad(write(tmp_path, question(is_impossible=False), impossible, question(3))).read()
    assert rows.texts == [("Where?", CONTEXT)] * 3
    assert rows.labels == [Gold("q1", (Answer("北京", 14),)), Gold("q2", ()), Gold("3", (Answer("北京", 14),))]


def test_articles_come_apart_whole(tmp_path):
    articles = [{"paragraphs": [{"context": CONTEXT, "qas": [question(f"{n}-{k}") for k in range(n + 1)]}]} for n in range(7)]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": articles}))
    parts = [Squad(str(path), part).read().labels for part in ((0, 0.75), (0.75, 1), (0, 1))]
    assert [gold.id for gold in parts[1]] == [f"{n}-{k}" for n in (5, 6) for k in range(n + 1)]
    assert parts[0] + parts[1] == parts[2]
    for part in ((0.5, 0.5), (0.5,), (-0.1, 1), (0, 1.1)):
        with pytest.raises(BertJaxError, match="a part is from where to where"):
            Squad(str(path), part)
    with pytest.raises(BertJaxError, match="no questions in articles"):
        Squad(str(path), (0, 0.01)).read()


def test_misplaced_answers_are_for_scores_alone(tmp_path, caplog):
    wrong = question("q2", answers=[{"text": "北京", "answer_start": 15}, {"text": "Ein", "answer_start": 0}])
    with caplog.at_level(logging.WARNING, "bert_jax"):
        rows = Squad(write(tmp_path, question(), wrong)).read()
    assert rows.labels[1].answers == (Answer("北京", -1), Answer("Ein", 0))
    assert len(caplog.records) == 1 and "1 of 3 answers are not in their contexts" in caplog.text
    assert "the first: question q2" in caplog.text
    # The end of a context is not its beginning, and negative places count from nowhere.
    negative = question(answers=[{"text": "Ein", "answer_start": -len(CONTEXT)}])
    with pytest.raises(BertJaxError, match="1 of 1 answers are not in their contexts at answer_start .*must count characters"):
        Squad(write(tmp_path, negative)).read()


@pytest.mark.parametrize("changes, message", [
    ({"answers": None}, "'answers' is NoneType"), ({"question": " \n"}, "an empty question"),
    ({"answers": [{"text": "北京"}]}, "question q1 has no 'answer_start'"),
    ({"answers": [{"text": "", "answer_start": 0}]}, "question q1 has an empty text"),
    ({"answers": ["北京"]}, "question q1 has no 'text'"), ({"id": 1.5}, "'id' is float"),
])
def test_questions_that_are_refused(tmp_path, changes, message):
    with pytest.raises(BertJaxError, match=message) as error:
        Squad(write(tmp_path, question(**changes))).read()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content, message", [
    ("{", "is not JSON"), ("[]", "not a SQuAD file: the whole has no 'data'"), ('{"data": {}}', "'data' is dict"),
    ('{"data": [{}]}', "article 1 has no 'paragraphs'"), ('{"data": []}', "no questions"),
    ('{"data": [{"paragraphs": []}, {"paragraphs": [{"qas": []}]}]}', "article 2 has no 'context'"),
    ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "article 1 has no 'qas'"),
    ('{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "b"}]}]}]}', "article 1 has no 'id'"),
    (b"\xff\xfe", "line 1 is not UTF-8"),
])
def test_files_that_are_refused(tmp_path, content, message):
    path = tmp_path / "squad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BertJaxError, match=message) as error:
        Squad(str(path)).read()
    assert "\n" not in str(error.value)


def test_further_refusals(tmp_path):
    with pytest.raises(BertJaxError, match="cannot be read"):
        Squad(str(tmp_path / "none.json")).read()
    with pytest.raises(BertJaxError, match="the id q1 comes twice"):
        Squad(write(tmp_path, question(), question())).read()
    with pytest.raises(BertJaxError, match="article 1 has an empty context"):
        Squad(write(tmp_path, question(), context=" ")).read()


def random_predictions(count, seed):
    """Predictions, golds, and margins that are smaller where there is an answer."""
    rng = random.Random(seed)

    def pick(values):
        return values[int(rng.random() * len(values))]

    words = ["The", "cat", "a", "Dog,", "an", "14th", "cat's", "Zürich", "U.S.", "–", "北京。", "(red)", "blue!", "the"]

    def text(most):
        return " ".join(pick(words) for _ in range(1 + int(rng.random() * most)))

    predictions, golds, margins = [], [], []
    for k in range(count):
        no_answer = rng.random() < 0.4
        answers = () if no_answer else tuple(Answer(text(3), 0) for _ in range(1 + int(rng.random() * 3)))
        golds.append(Gold(str(k), answers))
        predictions.append(pick([a.text for a in answers]) if answers and rng.random() < 0.4 else text(4))
        margins.append(8 * rng.random() - 4 - (2 if answers else 0))
    return predictions, golds, np.array(margins)


# What evaluate-v2.0.py, the official script, printed of random_predictions(300, 0) with a threshold of -0.5 and the margins as
# --na-prob-file, in percent.
OFFICIAL = {
    "exact_match": 35.0, "f1": 40.36666666666667, "has_answer_exact_match": 20.967741935483872,
    "has_answer_f1": 29.62365591397849, "no_answer_accuracy": 57.89473684210526, "best_exact_match": 42.666666666666664,
    "best_exact_match_threshold": -4.174004076139778, "best_f1": 44.9888888888889, "best_f1_threshold": -3.9959492691004757,
}


def test_scores_are_those_of_the_official_script():
    found = squad.scores(*random_predictions(300, 0), -0.5)
    assert found.keys() == OFFICIAL.keys()
    for name, value in found.items():
        assert value == pytest.approx(OFFICIAL[name] / (1 if name.endswith("threshold") else 100), abs=1e-12), name


def test_the_best_threshold_gives_the_best_scores():
    for seed in range(5):
        predictions, golds, margins = random_predictions(80, seed)
        # (Of articles alone: empty in the scores, but not in the official search for a threshold.)
        predictions = [text if squad.normalise(text) else "cat" for text in predictions]
        margins = np.round(margins)  # many are equal
        found = squad.scores(predictions, golds, margins)
        for name in ("exact_match", "f1"):
            every = [squad.scores(predictions, golds, margins, t)[name] for t in np.arange(-8, 6)]
            at = squad.scores(predictions, golds, margins, found[f"best_{name}_threshold"])[name]
            assert at == pytest.approx(max(every)) == pytest.approx(found[f"best_{name}"])
    nothing = squad.scores(["a"], [Gold("1", ())], np.array([-3.0]))
    assert nothing["best_f1"] == 1 and nothing["best_f1_threshold"] < -3


def test_normalisation():
    assert squad.normalise("The  U.S.\t(a) «Theatre»\n an\u00a0apple!") == "us «theatre» apple"
    assert squad.scores(["北京。"], [Gold("1", (Answer("北京", 0),))])["f1"] == 0  # full-width marks stay
    assert squad.scores(["the cat sat"], [Gold("1", (Answer("A cat.", 0), Answer("dog", 0)))])["f1"] == pytest.approx(2 / 3)
    assert squad.scores(["x"], [Gold("1", (Answer("x", 0),))]) == {"exact_match": 1, "f1": 1}


def test_real_files(data_dir):
    rows = Squad(str(data_dir / "qa/squad/dev-v1.1.json")).read()
    assert len(rows.texts) == 10_570 and all(answer.start >= 0 for gold in rows.labels for answer in gold.answers)
    parts = [Squad(str(data_dir / "qa/squad/dev-v1.1.json"), part).read() for part in ((0, 0.75), (0.75, 1))]
    assert not {context for _, context in parts[0].texts} & {context for _, context in parts[1].texts}
    assert len(parts[0].texts) + len(parts[1].texts) == 10_570
    texts = [gold.answers[0].text for gold in rows.labels]
    assert squad.scores(texts, rows.labels) == {"exact_match": 1, "f1": 1}
