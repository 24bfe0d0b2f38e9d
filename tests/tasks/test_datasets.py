"""Published data sets: what the table says is what the builders of tensorflow-datasets say, and both forms are read."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from bert_jax.errors import BertJaxError
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks import TASKS, Classification, Regression
from bert_jax.tasks.datasets import CONVERT, DATASETS, Named, find
from bert_jax.tasks.squad import Answer, Gold

PART = {"xnli": "de", "paws_x_wiki": "de", "wikiann": "de", "universal_dependencies": "en_ewt"}
LEGACY = {"glue": "text.glue", "xnli": "text.xnli", "conll2003": "text.conll2003.conll2003", "wikiann": "text.wikiann.wikiann"}
ON_TFDS = [name for name in DATASETS if DATASETS[name].builder]


def full(name: str) -> str:
    return f"{name}/{PART[name]}" if name in PART else name


@pytest.fixture(scope="module")
def tfds():
    found = pytest.importorskip("tensorflow_datasets")
    for module in LEGACY.values():  # these are found by name only once they are imported
        importlib.import_module(f"tensorflow_datasets.{module}")
    return found


class NothingDownloaded:
    """Stands in for TFDS's download manager: archives are folders that are not there."""

    def download(self, urls):
        return {name: epath.Path("absent") for name in urls} if isinstance(urls, dict) else epath.Path("absent")

    download_and_extract = extract = download


@pytest.mark.parametrize("name", ON_TFDS)
def test_the_table_agrees_with_the_builders(tfds, tmp_path, name):
    dataset, part = find(full(name))
    builder = tfds.builder(dataset.builder.format(part), data_dir=tmp_path)
    features = builder.info.features
    assert {*dataset.texts, dataset.label} <= set(features)
    names = getattr(getattr(features[dataset.label], "feature", features[dataset.label]), "names", None)
    assert tuple(names or ()) == dataset.labels
    splits = builder._split_generators(NothingDownloaded())
    splits = splits if isinstance(splits, dict) else [split.name for split in splits]
    assert {str(split) for split in splits} == set(dataset.splits)
    config = builder.builder_config
    if name.startswith("glue/") and name != "glue/mrpc":  # the files, too; MRPC's are not GLUE's
        for split, (table, *_) in dataset.files.items():
            if table.texts[0].isdigit():  # CoLA's have no names
                assert (table.texts, table.label) == (("3",), "1")
                continue
            assert table.texts == tuple(config.text_features[text] for text in dataset.texts), split
            assert table.label == (None if split.startswith("test") else config.label_column)


def rendered() -> str:
    """The table of docs/finetuning.md."""
    lines = ["| `Named` | kind | scores, by the first of which the best seed is chosen | splits |", "|---|---|---|---|"]
    for name, dataset in DATASETS.items():
        files = "" if dataset.builder else " (from a folder)"
        lines.append(f"| `{full(name)}`{files} | {dataset.kind} | {', '.join(dataset.scores)} | {', '.join(dataset.splits)} |")
    return "\n".join(lines)


def test_the_manual_has_the_table():
    """As it is; where it differs put in what this prints."""
    page = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text("utf-8")
    found = re.search(r"^\| `Named` \|(?:.*\n)+?(?=\n)", page, flags=re.M)
    assert found and found[0].rstrip("\n") == rendered(), rendered()


def test_every_kind_is_a_kind_of_fine_tuning():
    assert {dataset.kind for dataset in DATASETS.values()} == set(CONVERT) <= {kind.__name__ for kind in TASKS}
    for name, dataset in DATASETS.items():
        assert bool(dataset.labels) == (dataset.kind in ("Classification", "Tagging")), name
        assert set(dataset.files) <= set(dataset.splits)


@pytest.mark.parametrize(("name", "split", "rows", "first"), [
    ("glue/sst2", "train", 67349, "negative"), ("glue/sst2", "validation", 872, "positive"), ("glue/sst2", "test", 1821, None),
    ("glue/cola", "train", 8551, "acceptable"), ("glue/cola", "validation", 527, "acceptable"),
    ("glue/mrpc", "train", 3576, "equivalent"), ("glue/mrpc", "validation", 500, "equivalent"),
    ("glue/mrpc", "test", 1725, "equivalent"), ("glue/rte", "train", 2490, "not_entailment"),
    ("glue/rte", "validation", 277, "not_entailment"), ("glue/qnli", "validation", 5463, "entailment"),
    ("glue/wnli", "train", 518, "entailment"), ("chnsenticorp", "train", 9600, "1"),
])
def test_original_files(data_dir, name, split, rows, first):
    folder = data_dir / ("kg" if name == "chnsenticorp" else "glue") / name.split("/")[-1]
    source = Named(name, split, str(folder))
    found = source.read()
    assert len(found.texts) == rows and source.path.startswith(str(folder))
    assert found.labels[0] == first if first else found.labels == []


def test_labels_of_files(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t1\nb\tnegative\nc\n")
    assert Named("glue/sst2", "train", str(tmp_path)).read() == ([("a",), ("b",)], ["positive", "negative"])
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t2\n")
    with pytest.raises(BertJaxError, match="has the label '2', those of glue/sst2 are negative, positive"):
        Named("glue/sst2", "train", str(tmp_path)).read()


@pytest.mark.parametrize(("arguments", "message"), [
    (("glue/sst3",), "no data set 'glue/sst3'; there are glue/cola, .*, and tables of one's own"),
    (("wikiann",), "say which part, as in wikiann/de"), (("glue/sst2/de",), "there is no data set"),
    (("swag",), "swag is not in TFDS: .* tasks.choice.swag"), (("glue/sst2", "dev"), "no split 'dev'; there are train, valid"),
    (("chnsenticorp",), "not in TFDS: name the folder"),
    (("squad/v1.1", "train", "x"), "read its files with tasks.squad.Squad"),
    (("wikiann/de", "train", "x"), "read its files with tasks.columns"), (("xnli/de", "test", "x"), "only from TFDS"),
])
def test_what_is_refused(arguments, message):
    with pytest.raises(BertJaxError, match=message):
        Named(*arguments)


def test_files_and_data_sets_that_are_not_there(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(BertJaxError, match="has no train.tsv or raw/in_domain_train.tsv"):
        Named("glue/cola", "train", str(tmp_path)).read()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(BertJaxError, match="tfds:squad/v1.1:train: not on disk"):
        Named("squad/v1.1").read()


def test_a_data_set_is_for_its_kind():
    encoder = EncoderConfig(with_heads=("pooler", "classifier"), labels=("a", "b"))
    with pytest.raises(BertJaxError, match="glue/stsb is for Regression, not for Classification"):
        Classification(encoder, "x", Named("glue/stsb"), Named("glue/stsb", "validation"))
    encoder = EncoderConfig(with_heads=("pooler", "classifier"), labels=("a",))
    assert Regression(encoder, "x", Named("glue/stsb"), Named("glue/stsb", "validation")).data.split == "train"


BUILDERS = """
import sys
import tensorflow_datasets as tfds
from tensorflow_datasets.text import glue, xnli
from tensorflow_datasets.text.conll2003 import conll2003

def write(name, **splits):
    real = tfds.builder(name, data_dir=sys.argv[1])

    class Copy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION, BUILDER_CONFIGS = real.VERSION, real.BUILDER_CONFIGS

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=real.info.features)

        def _split_generators(self, download):
            return {split: enumerate(records) for split, records in splits.items()}

        _generate_examples = None

    Copy.name = real.name
    config = name.partition("/")[2] or None
    Copy(config=config, data_dir=sys.argv[1], file_format="array_record").download_and_prepare()

pairs = [{"sentence1": "\u00fc", "sentence2": str(k), "idx": k, "label": k / 2} for k in range(3)]
write("glue/stsb", train=pairs)
write("glue/qqp", train=[{"question1": "a", "question2": text, "idx": k, "label": 1} for k, text in enumerate(["b", "", " "])])
write("glue/mrpc", train=[pair | {"label": min(1, pair["idx"])} for pair in pairs], test=[pairs[0] | {"label": -1}])
languages = xnli._LANGUAGES
write("xnli", test=[{"premise": {x: f"p {x}" for x in languages}, "hypothesis": {x: f"h {x}" for x in languages}, "label": 2}])
question = {"id": "a", "title": "t", "context": "\u00e4 cat sat", "question": "who?", "is_impossible": False,
            "answers": {"text": ["cat", "dog"], "answer_start": [2, 3]}, "plausible_answers": {"text": [], "answer_start": []}}
nothing = {"id": "b", "question": "why?", "is_impossible": True, "answers": {"text": [], "answer_start": []}}
write("squad/v2.0", train=[question, question | nothing])
words = {"tokens": ["J\u00f6rg", "ran"], "ner": ["B-PER", "O"], "pos": ["NN", "VB"], "chunks": ["B-NP", "O"]}
write("conll2003", train=[{"tokens": ["-DOCSTART-"], "ner": ["O"], "pos": ["NN"], "chunks": ["O"]}, words])
"""


def test_data_sets_on_disk(tmp_path, monkeypatch, caplog):
    """Written with the features of the real builders by another process, and read without TensorFlow."""
    pytest.importorskip("tensorflow_datasets")
    subprocess.run([sys.executable, "-c", BUILDERS, tmp_path], check=True, capture_output=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert sorted(zip(*Named("glue/mrpc").read(), strict=True)) == [
        (("ü", "0"), "not_equivalent"), (("ü", "1"), "equivalent"), (("ü", "2"), "equivalent")]
    assert Named("glue/qqp").read() == ([("a", "b")], ["duplicate"])  # the real one has two such rows
    assert "glue/qqp: 2 rows that lack a text were skipped" in caplog.text
    assert sorted(Named("glue/stsb").read().labels) == ["0", "0.5", "1"]
    assert len(Named("glue/stsb", "train[:2]").read().texts) == 2
    assert Named("glue/mrpc", "test").read() == ([("ü", "0")], [])
    path = Named("glue/mrpc").path
    assert path.startswith(str(tmp_path / "glue" / "mrpc")) and json.loads(Path(path).read_text())["configName"] == "mrpc"
    assert Named("xnli/de", "test").read() == ([("p de", "h de")], ["contradiction"])
    with pytest.raises(BertJaxError, match="no language 'xx'; there are ar, bg, de"):
        Named("xnli/xx", "test").read()
    assert dict(zip(*Named("squad/v2.0").read(), strict=True)) == {
        ("who?", "ä cat sat"): Gold("a", (Answer("cat", 2), Answer("dog", -1))), ("why?", "ä cat sat"): Gold("b", ())}
    assert Named("conll2003").read() == ([("Jörg", "ran")], [("B-PER", "O")])
    assert "tensorflow" not in sys.modules
    other = dataclasses.replace(DATASETS["glue/mrpc"], labels=("equivalent", "not_equivalent"))
    monkeypatch.setitem(DATASETS, "glue/mrpc", other)
    with pytest.raises(BertJaxError, match="the labels are not_equivalent, equivalent, not equiv"):
        Named("glue/mrpc").read()


def test_passages_of_race():
    record = {"article": b"He ran. ", "questions": [b"Who ran?", b"He _ ."], "answers": [b"B", b"A"],
              "options": [[b"She", b"He"], [b"ran", b"sat", "lay"]]}
    assert CONVERT["Choice"](DATASETS["race/high"], "", [record]) == (
        [("He ran.", "Who ran? She", "Who ran? He"), ("He ran.", "He ran .", "He sat .", "He lay .")], ["1", "0"])


def test_race_is_as_from_its_files(tmp_path):
    from bert_jax.tasks.race import Race

    record = {"article": "He ran.", "questions": ["Who ran?", "He _ ."], "answers": ["B", "A"],
              "options": [["She", "He", "It", "I"], ["ran", "sat", "lay", "is"]]}
    (tmp_path / "1.txt").write_text(json.dumps(record))
    assert CONVERT["Choice"](DATASETS["race/high"], "", [record]) == Race(str(tmp_path)).read()


def test_a_letter_that_is_no_choice_is_one_line(tmp_path):
    record = {"article": b"He ran.", "questions": [b"Who?"], "answers": [b"E"], "options": [[b"She", b"He"]]}
    with pytest.raises(BertJaxError, match="race/high.*: record 0: question 1: the label 'E' is none of 2 choices"):
        CONVERT["Choice"](DATASETS["race/high"], "", [record])


def test_what_is_written_for_several_words_is_no_word():
    """TFDS keeps both, as rows of CoNLL-U: German "im" with the tag _, then "in" and "dem"."""
    dataset = DATASETS["universal_dependencies"]
    tags = [dataset.labels.index(tag) for tag in ("_", "ADP", "DET", "NOUN")]
    record = {"tokens": [b"im", b"in", b"dem", b"Haus"], "upos": tags}
    alone = {"tokens": [b"im"], "upos": tags[:1]}
    assert CONVERT["Tagging"](dataset, "de_gsd", [record, alone]) == ([("in", "dem", "Haus")], [("ADP", "DET", "NOUN")])


def test_files_that_glue_cut_otherwise_are_said_to_be(tmp_path, caplog):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "in_domain_dev.tsv").write_text("gj04\t1\t\tThe sailors rode the breeze.\n")
    assert len(Named("glue/cola", "validation", str(tmp_path)).read().texts) == 1
    assert "in_domain_dev.tsv has half of the development set (527 of 1,043 rows), not the rows of glue/cola" in caplog.text
    caplog.clear()
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tThe sailors rode the breeze.\n")
    Named("glue/cola", "validation", str(tmp_path)).read()
    assert not caplog.messages


def test_answers_of_tfds_are_checked_as_those_of_files(caplog):
    dataset = DATASETS["squad/v1.1"]
    record = {"id": b"a", "context": b"A cat sat.", "question": b"who?", "answers": {"text": [b"cat"], "answer_start": [2]}}
    other = record | {"id": b"b", "answers": {"text": [b"cat"], "answer_start": [3]}}
    rows = CONVERT["QuestionAnswering"](dataset, "", [record, other])
    assert [gold.answers[0].start for gold in rows.labels] == [2, -1]
    assert "squad/v1.1: 1 of 2 answers are not in their contexts" in caplog.text
    for records, message in (([other], "1 of 1 answers are not in their contexts"), ([record, record], "the id a comes twice")):
        with pytest.raises(BertJaxError, match=message):
            CONVERT["QuestionAnswering"](dataset, "", records)
