"""bert-jax evaluate of runs on named data: another split by its name, and files in whatever form the data set has."""

import json
import shutil

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli, evaluating
from bert_jax import config as configuration
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.tasks import Choice, Classification, QuestionAnswering, Regression, Tagging
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classifies
from bert_jax.tasks.datasets import DATASETS, Named, find
from bert_jax.training.experiment import Experiment
from tests.tasks import fake_tfds

HEADS = {"Tagging": ("tagger",), "QuestionAnswering": ("span",), "Choice": ("pooler", "choice")}
KINDS = {kind.__name__: kind for kind in (Choice, Classification, QuestionAnswering, Regression, Tagging)}
PASSAGE = {"article": "the cat sat.", "questions": ["the dog?"], "options": [["cat", "dog", "bird", "tree"]], "answers": ["B"]}


@pytest.fixture
def trained_on(tiny_checkpoint, tmp_path, monkeypatch):
    """``trained_on(name, folder)``: a work directory with a finished seed, as if it had been trained on that data set."""
    fake_tfds.use(monkeypatch, tmp_path)

    def get(name: str, folder: str | None = None, **fields):
        start, (dataset, _), run = bert_jax.load(tiny_checkpoint), find(name), tmp_path / "run"
        labels = dataset.labels or (("score",) if dataset.kind == "Regression" else ())
        encoder = finetuned_encoder(start.config, labels, HEADS.get(dataset.kind, ("pooler", "classifier")))
        data = Named(name, dataset.splits[0], folder)
        task = KINDS[dataset.kind](encoder, "tiny", data, data, lengths=(16,), **fields)
        params = jax.tree.map(np.asarray, api.init(encoder, jax.random.key(1)))
        run.mkdir()
        bert_jax.save(start._replace(params=params, config=encoder), run / "seed-0")
        (run / "seed-0" / "result.json").write_text("{}")
        (run / "finetune.json").write_text(json.dumps({"experiment": configuration.to_json(Experiment(task))}))
        return run

    return get


WINDOWS = {"stride": 4, "question_tokens": 4, "answer_tokens": 4}


@pytest.mark.parametrize(("name", "split", "score"), [
    ("glue/mnli", "glue/mnli:validation_mismatched", "matthews"), ("glue/mnli", "xnli/fr:test", "accuracy"),
    ("glue/stsb", "glue/stsb:validation[:50%]", "pearson"), ("squad/v1.1", "squad/v1.1:validation", "f1"),
    ("wikiann/en", "wikiann/de:test", "f1"), ("race/middle", "race/high:test", "accuracy"),
])
def test_another_split_by_its_name(trained_on, tmp_path, monkeypatch, name, split, score, capfd):
    run = trained_on(name, **(WINDOWS if name.startswith("squad") else {}))
    asked = fake_tfds.use(monkeypatch, tmp_path, count=6)
    assert cli.main(["evaluate", str(run), "--data", split]) == 0
    out, err = capfd.readouterr()
    assert 0 <= abs(json.loads(out)[score]["mean"]) <= 1
    assert set(asked) == {split.replace("/fr", "")}, "TFDS has all languages of XNLI in one"
    assert f"{12 if name.startswith('race') else 6} examples of {split}" in err


def test_several_seeds_are_given_what_was_tokenised_once(trained_on, monkeypatch):
    run, encode, calls = trained_on("glue/sst2"), Classifies.encode, []
    shutil.copytree(run / "seed-0", run / "seed-1")
    monkeypatch.setattr(Classifies, "encode", lambda self, texts: calls.append(len(texts)) or encode(self, texts))
    found = bert_jax.evaluate(run, "glue/sst2:test")
    assert set(found["accuracy"].seeds) == {0, 1} and len(calls) == 1


def test_a_split_is_read_where_the_training_data_of_that_name_were(trained_on, tmp_path):
    for name in ("train", "dev_mismatched"):
        (tmp_path / f"{name}.tsv").write_text("sentence1\tsentence2\tgold_label\nthe cat\tsat\tneutral\n")
    run = trained_on("glue/mnli", str(tmp_path))
    assert "1 examples" in bert_jax.evaluate(run, "glue/mnli:validation_mismatched").note
    assert "16 examples" in bert_jax.evaluate(run, "xnli/de:test").note, "TFDS, not that folder"


@pytest.mark.parametrize("name", ["glue/sst2", "glue/cola", "glue/mrpc", "glue/qqp", "glue/wnli", "paws_x_wiki/de"])
def test_classes_of_a_file_may_be_numbers(trained_on, tmp_path, name):
    """As GLUE's own files have them; the columns are those of the file that has this name, or as they are given."""
    dataset, run = find(name)[0], trained_on(name)
    table = dataset.files["validation"][0]
    columns = {"texts": table.texts, "label": table.label}
    header = ["", "", "", ""] if table.label.isdigit() else [*table.texts, table.label]  # CoLA's have no names
    place = int(table.label) if table.label.isdigit() else -1

    def save(file, labels):
        rows = [header] if any(header) else []
        for label in labels:
            rows.append(["the cat"] * len(header))
            rows[-1][place] = label
        return write(tmp_path / file, "".join("\t".join(row) + "\n" for row in rows))

    labels = ("0", "1", *dataset.labels)
    for file, given in ((table.path, {}), (table.path, columns), ("mine.tsv", columns)):
        found = bert_jax.evaluate(run, save(file, labels), **given)
        assert "4 examples" in found.note and found["accuracy"].mean == 0.5
    with pytest.raises(BertJaxError, match=f"this was trained on {name}: name the columns of your file"):
        bert_jax.evaluate(run, tmp_path / "mine.tsv")
    with pytest.raises(BertJaxError, match=f"mine.tsv has the label '2', those of {name} are {', '.join(dataset.labels)}"):
        bert_jax.evaluate(run, save("mine.tsv", ("1", "2")), **columns)


def write(path, text):
    path.write_text(text)
    return path


def test_forms_that_say_where_everything_is(trained_on, tmp_path):
    answer = {"text": "cat", "answer_start": 4}
    questions = [{"id": "a", "question": "the dog", "answers": [answer]}]
    squad = write(tmp_path / "dev-v1.1.json",
                  json.dumps({"data": [{"paragraphs": [{"context": "the cat sat on", "qas": questions}]}]}))
    run = trained_on("squad/v1.1", **WINDOWS)
    assert "1 examples" in bert_jax.evaluate(run, squad).note
    with pytest.raises(BertJaxError, match="its form says where texts and labels are: leave --texts out"):
        bert_jax.evaluate(run, squad, ["question", "context"])


def test_a_threshold_for_questions_without_an_answer(trained_on, tmp_path, capsys):
    questions = [{"id": "a", "question": "the dog", "answers": [], "is_impossible": True}]
    squad = write(tmp_path / "dev-v2.0.json",
                  json.dumps({"data": [{"paragraphs": [{"context": "the cat sat on", "qas": questions}]}]}))
    run = trained_on("squad/v1.1", **WINDOWS)
    with pytest.raises(BertJaxError, match=r"1 of 1 questions have no answer.*\(evaluate --null-threshold 0\)"):
        bert_jax.evaluate(run, squad)
    assert bert_jax.evaluate(run, squad, null_threshold=1e9)["exact_match"].mean == 0
    words = ["evaluate", str(run), "--data", str(squad), "--null-threshold=-1e9"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["exact_match"]["mean"] == 1
    with pytest.raises(BertJaxError, match="answers no questions about contexts: leave the null threshold out"):
        (tmp_path / "run").rename(tmp_path / "other")
        bert_jax.evaluate(trained_on("glue/mnli"), "glue/mnli:validation_mismatched", null_threshold=0.0)


@pytest.mark.parametrize(("name", "file", "text"), [
    ("universal_dependencies/en_ewt", "x.conllu", "# a\n1\tthe\t_\tDET\n2\tcat\t_\tNOUN\n"),
    ("conll2003", "eng.testb", "-DOCSTART- -X- O O\n\nthe DT I-NP O\ncat NN I-NP I-LOC\n"),
    ("conll2003", "x.iob2", "1\tthe\tO\t-\n2\tcat\tB-LOC\t-\n"),
    ("wikiann/en", "test", "de:the\tO\nde:cat\tB-LOC\n"),
])
def test_files_of_words_with_tags(trained_on, tmp_path, name, file, text):
    found = bert_jax.evaluate(trained_on(name), write(tmp_path / file, text))
    assert "1 examples" in found.note and found["accuracy"].mean in (0, 0.5, 1)


def test_passages_of_race(trained_on, tmp_path, capfd):
    run = trained_on("race/middle")
    (tmp_path / "test").mkdir()
    for name in ("1", "2"):
        write(tmp_path / "test" / f"{name}.txt", json.dumps(PASSAGE))
    table = write(tmp_path / "x.jsonl", json.dumps({"q": "the cat", "a": "sat", "b": "ran", "label": 1}) + "\n")
    words = ["evaluate", str(run), "--data"]
    for given, count in ((["test"], 2), (["test/1.txt"], 1), (["x.jsonl", "--texts", "q", "a", "b", "--label", "label"], 1)):
        assert cli.main([*words, str(tmp_path / given[0]), *given[1:]]) == 0
        assert f"{count} examples" in capfd.readouterr().err
    assert cli.main([*words, str(table)]) == 1
    assert "trained on race/middle: name the columns of your file" in capfd.readouterr().err


@pytest.mark.parametrize(("data", "message"), [
    ("glue/stsb:validation", "glue/stsb is for Regression, not for Classification"),
    ("glue/sst3:validation", "there is no data set 'glue/sst3'; there are glue/cola"),
    ("glue/sst2:dev", "no split 'dev'; there are train, validation, test"),
    ("glue/rte:validation", "has the label 'entailment', task.encoder.labels are negative, positive"),
    ("nothing.tsv", "name the columns of your file"),
])
def test_what_is_refused(trained_on, data, message):
    with pytest.raises(BertJaxError, match=message):
        bert_jax.evaluate(trained_on("glue/sst2"), data)


def test_a_split_has_its_own_columns_and_labels(trained_on, monkeypatch, tmp_path):
    run = trained_on("glue/sst2")
    with pytest.raises(BertJaxError, match="leave --texts and --label out"):
        bert_jax.evaluate(run, "glue/sst2:validation", ["sentence"], "label")
    unlabelled = [record | {"label": -1} for record in fake_tfds.records("glue/sst2", 4)]
    monkeypatch.setattr(fake_tfds, "records", lambda name, count: unlabelled)
    with pytest.raises(BertJaxError, match="has no labels: training and evaluation need them"):
        bert_jax.evaluate(run, "glue/sst2:test")


def test_every_name_is_for_a_kind_that_is_evaluated_here():
    assert {dataset.kind for dataset in DATASETS.values()} == KINDS.keys()


def test_a_damaged_run_is_no_traceback(tmp_path):
    for damage in ("{}", '{"task": null}', '{"task": {"kind": "Pretraining"}}'):
        (tmp_path / "experiment.json").write_text(damage)
        assert not evaluating.is_finetuning(tmp_path)
