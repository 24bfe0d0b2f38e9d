"""bert-jax predict: streams of any length, in order, compiled once a length; nothing half-written; one-line errors."""

import dataclasses
import gzip
import io
import itertools
import json
import logging
import os
import signal
import sys

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli, config, predicting
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.reporting import answers
from bert_jax.tasks import Classification, MaskedWords, answering
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.choice import Choice, swag
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.masked_words import Cloze
from bert_jax.tasks.tables import Table
from bert_jax.tasks.texts import open_texts
from tests.tasks.plain_answers import predict

WORDS = "cat dog bird mat road tree red".split()


def with_head(checkpoint, labels, *heads, **changes):
    """The tiny encoder with heads that have learnt nothing, but differ from row to row."""
    start = bert_jax.load(checkpoint)
    config = finetuned_encoder(start.config, labels, heads, init_std=0.5, **changes)
    return bert_jax.Model(jax.tree.map(np.asarray, api.init(config, jax.random.key(1))), config, start.tokenizer)


def with_tags(checkpoint, folder):
    bert_jax.save(with_head(checkpoint, ("N", "V"), "tagger"), folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint):
    return with_head(tiny_checkpoint, ("red", "blue"), "pooler", "classifier")


@pytest.fixture(scope="module")
def saved(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicting") / "model"
    bert_jax.save(classifier, folder)
    return folder


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 28))) for _ in range(count)]


def test_a_stream_answers_as_an_evaluation_does(classifier):
    rows = texts(300)  # several chunks of 32 * 2
    ready = predicting.of_model(classifier)
    wanted, _ = predict(ready.predictor, classifier.params, [(text,) for text in rows], (32,))
    found = list(bert_jax.predict(classifier, rows, batch_size=2))
    assert len(found) == len(wanted) and len({answer["probability"] for answer in found}) > 50
    for one, other in zip(found, wanted, strict=True):
        assert one["label"] == other["label"] and one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.parametrize("row, least, most", [(None, 2, 6), (64, 1, 1)])  # 8, 12, 16, 20, 24, 32 tokens at most
def test_nothing_is_compiled_again(classifier, monkeypatch, row, least, most):
    monkeypatch.setattr(answering, "cheapest_row", lambda *_: row)
    predicting._predictor.cache_clear()
    ready = predicting.of_model(classifier)
    stream = answering.Answering(ready.predictor, 4)
    rows = [(text,) for text in texts(400)]
    sizes = []
    for _ in stream.stream(ready.params, rows + rows + rows):
        sizes.append(stream.predictor.run._cache_size())
    assert least <= sizes[-1] <= most <= len(stream.lengths) == 6
    assert sizes[400] == sizes[-1], "the first of several rounds compiles all"
    assert list(stream.stream(jax.tree.map(np.copy, ready.params), rows))
    assert ready.predictor.run._cache_size() == sizes[-1]


def test_streams_may_be_endless_and_are_read_only_as_far_as_needed(classifier):
    taken = itertools.count()
    endless = (text for text in itertools.cycle(texts(50)) if next(taken) >= 0)
    answers = bert_jax.predict(classifier, endless, batch_size=1)
    assert len(list(itertools.islice(answers, 40))) == 40
    answers.close()
    assert next(taken) <= 5 * answering.CHUNK


def test_warnings_come_once(classifier, caplog):
    with caplog.at_level(logging.WARNING):
        list(bert_jax.predict(classifier, ["cat " * 50] * 200, batch_size=1))
    assert len([record for record in caplog.records if "more than 32 tokens" in record.getMessage()]) == 1


def test_a_stream_that_is_not_read_to_its_end_silences_nobody(classifier, caplog):
    long = ["cat " * 50] * 20
    with caplog.at_level(logging.WARNING):
        begun = bert_jax.predict(classifier, long, batch_size=2)
        next(begun)
        list(bert_jax.predict(classifier, long[:1]))
    assert [record.args[1] for record in caplog.records if "more than 32 tokens" in record.getMessage()] == [20, 1]
    assert len(list(begun)) == 19


def test_a_warning_about_some_rows_says_that_later_ones_are_not_counted(classifier, caplog):
    texts = ["cat"] * 63 + ["cat " * 50] * 70
    with caplog.at_level(logging.WARNING):
        list(bert_jax.predict(classifier, texts, batch_size=2))
    (line,) = [record.getMessage() for record in caplog.records if "more than 32 tokens" in record.getMessage()]
    assert line.startswith("1 of 64 ") and line.endswith("; of what comes after these it is not said again")


def test_several_values_at_once_are_no_classes(tiny_checkpoint, tmp_path):
    bert_jax.save(with_head(tiny_checkpoint, ("x", "y"), "pooler", "classifier"), tmp_path / "model", format="hf")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": "regression"}))
    with pytest.raises(BertJaxError, match="gives 2 values at once"):
        list(bert_jax.predict(tmp_path / "model", ["cat"]))


def test_an_answer_s_place_counts_in_the_text_as_it_is_written(tiny_checkpoint, tmp_path):
    model = with_head(tiny_checkpoint, (), "span")
    bert_jax.save(model, tmp_path / "model")
    context = "\n  cat dog bird"
    (tmp_path / "x.jsonl").write_text(json.dumps({"question": "she ran", "context": context}) + "\n")
    assert cli.main(["predict", str(tmp_path / "model"), "--input", str(tmp_path / "x.jsonl"), "--texts", "question", "context",
                     "--out", str(tmp_path / "out.jsonl")]) == 0
    found = json.loads((tmp_path / "out.jsonl").read_text())
    assert context[found["start"]:].startswith(found["text"]) and found["text"]
    (answer,) = bert_jax.predict(tmp_path / "model", [("she ran", context)])
    assert (found["text"], found["start"]) == (answer["text"], answer["start"])


def squad_file(questions) -> str:
    """Of (id, question, context), without answers, as a test set has them."""
    entries = [{"context": context, "qas": [{"id": identity, "question": text}]} for identity, text, context in questions]
    return json.dumps({"data": [{"paragraphs": [entry]} for entry in entries]})


@pytest.mark.parametrize("name", ["test.json", "test.json.gz"])
def test_squad_s_form_is_answered_with_ids(name, tiny_checkpoint, tmp_path, capsys):
    model = with_head(tiny_checkpoint, (), "span")
    bert_jax.save(model, tmp_path / "model")
    questions = [("5", "she ran", " cat\tdog bird"), ("b", "the tree", "mat tree\nroad"), ("a", "she ran", " cat\tdog bird")]
    content = squad_file(questions).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    words = ["predict", str(tmp_path / "model"), "--input", str(tmp_path / name), "--batch-size", "2"]
    for out in ("out.json", "out.jsonl", "out.tsv"):
        assert cli.main([*words, "--out", str(tmp_path / out)]) == 0 and "3 rows" in capsys.readouterr().out
    asked = list(bert_jax.predict(tmp_path / "model", [question[1:] for question in questions]))
    wanted = [dict(zip(("id", "question", "context"), question, strict=True)) | answer
              for question, answer in zip(questions, asked, strict=True)]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == wanted
    said = json.loads((tmp_path / "out.json").read_text())
    assert said == {one["id"]: one["text"] for one in wanted} and all(said.values())
    header, *rows = (line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines())
    assert header == ["id", "question", "context", "text", "start", "score", "null_score"] and len(rows) == 3
    assert [row[0] for row in rows] == ["5", "b", "a"] and rows[0][2] == " cat dog bird"


def test_windows_fit_encoders_of_few_positions(tiny_checkpoint, tmp_path):
    """As fine-tuning sizes them: a model of 32 positions has no room for questions of 64 tokens."""
    bert_jax.save(with_head(tiny_checkpoint, (), "span"), tmp_path / "model")
    (answer,) = bert_jax.predict(tmp_path / "model", [("she ran", "cat dog bird " * 30)])
    assert answer["text"]


def test_every_head(tiny_checkpoint):
    tagger = with_head(tiny_checkpoint, ("O", "B-X", "I-X"), "tagger")
    for words, answer in zip((row := [text.split() for text in texts(9)]), bert_jax.predict(tagger, row), strict=True):
        assert len(answer["tags"]) == len(words) and all(entity["label"] == "X" for entity in answer["entities"])
    value = with_head(tiny_checkpoint, ("length",), "pooler", "classifier")
    assert all(set(answer) == {"length"} for answer in bert_jax.predict(value, [("cat", "dog")] * 3))
    choice = with_head(tiny_checkpoint, (), "pooler", "choice")
    asked = [("cat", "red dog", "the bird")] * 3
    assert {answer["text"] for answer in bert_jax.predict(choice, asked)} < {"red dog", "the bird"}


FORMS = [
    ("classifier", [("cat", "dog"), ("cat",)], "text 2 has 1 text, the first one has 2"),
    ("classifier", ["cat", ("cat", "dog bird")], "text 2 has 2 texts, the first one has 1"),
    ("classifier", ["cat", ("a", "b", "c")], "text 2 has 3 texts: the model needs a text or a pair"),
    ("value", [("cat",), ("cat", "dog bird")], "text 2 has 2 texts, the first one has 1"),
    ("choice", [("cat", "a", "b"), ("cat", "a")], "text 2 has 2 texts: the model needs a first text and two or more choices"),
    ("span", [("a cat", "the cat"), "the cat"], "text 2 has 1 text: the model needs a question and a context"),
    ("tagger", [("cat", "dog"), " "], "text 2 is empty, or nothing but white space"),
    ("classifier", ["cat", 3], "text 2 is .3,.: strings are needed"),
    ("classifier", ["cat", ("cat", None)], "text 2 is .'cat', None.: strings are needed"),
    ("classifier", ["cat", {"text": "cat", "text_pair": "dog"}], "text 2 is .{'text': 'cat', .*: strings are needed"),
    ("classifier", ["cat", {"cat"}], "text 2 is .{'cat'},.: strings are needed"),
    ("classifier", ["cat", "d\ud800g"], "text 2 has a lone surrogate at character 1: decode it as UTF-8"),
]


def of_kind(kind, checkpoint):
    labels = {"classifier": ("red", "blue"), "value": ("length",), "tagger": ("N", "V")}.get(kind, ())
    heads = {"tagger": ("tagger",), "span": ("span",), "choice": ("pooler", "choice")}.get(kind, ("pooler", "classifier"))
    return with_head(checkpoint, labels, *heads, max_length=128)


@pytest.mark.parametrize(("kind", "given", "message"), FORMS)
def test_texts_of_another_form_are_refused_by_their_number(kind, given, message, tiny_checkpoint):
    model = of_kind(kind, tiny_checkpoint)
    with pytest.raises(BertJaxError, match=message):
        list(bert_jax.predict(model, given))
    for _ in range(50):  # in a later chunk
        given = [given[0], *given]
    with pytest.raises(BertJaxError, match=message.replace("text 2", "text 52")):
        list(bert_jax.predict(model, given, batch_size=1))


@pytest.mark.parametrize(("data", "wanted", "given"), [
    (Table("x.tsv", ("a", "b"), "l"), "a pair", ["cat", ("cat", "dog"), "1 text"]),
    (Named("glue/mrpc", folder="x"), "a pair", ["cat", ("cat", "dog"), "1 text"]),
    (Table("x.tsv", ("a",), "l"), "a text alone", [("cat", "dog"), "cat", "2 texts"]),
])
def test_what_was_trained_on_pairs_takes_no_text_alone(data, wanted, given, classifier, tiny_checkpoint, tmp_path, capfd):
    """A work directory says on what; of its exported model by itself that is not known."""
    task = Classification(classifier.config, str(tiny_checkpoint), data, data, (32,))
    content = {"experiment": {"task": config.to_json(task)}}
    bert_jax.save(classifier, tmp_path / "model")
    (tmp_path / "finetune.json").write_text(json.dumps(content))
    (wrong, right, count), run = given, tmp_path
    assert len(list(bert_jax.predict(run, [right]))) == len(list(bert_jax.predict(run / "model", [wrong]))) == 1
    with pytest.raises(BertJaxError, match=f"^text 2 has {count}: the model needs {wanted}$"):
        list(bert_jax.predict(run, [right, wrong]))
    (tmp_path / "a.tsv").write_text("c\td\ncat\tdog\n")
    columns = ["c"] if isinstance(wrong, str) else ["c", "d"]
    assert cli.main(["predict", str(run), "--input", str(tmp_path / "a.tsv"), "--texts", *columns]) == 1
    assert f"{run} needs {wanted}, not {len(columns)} column" in capfd.readouterr().err
    (tmp_path / "a.txt").write_text("cat\n")
    assert cli.main(["predict", str(run), "--input", str(tmp_path / "a.txt")]) == (wanted == "a pair")
    assert ("give *.tsv, *.csv or *.jsonl, and name its columns" in capfd.readouterr().err) == (wanted == "a pair")


def test_a_single_text_is_no_list_of_letters(classifier):
    with pytest.raises(BertJaxError, match="^texts is a single string: give a list of texts$"):
        bert_jax.predict(classifier, "Great")


def test_a_tagger_takes_the_words_between_blanks(tiny_checkpoint):
    tagger, rows = of_kind("tagger", tiny_checkpoint), texts(9)
    found = list(bert_jax.predict(tagger, rows))
    assert found == list(bert_jax.predict(tagger, [tuple(text.split()) for text in rows]))
    assert [len(answer["tags"]) for answer in found] == [len(text.split()) for text in rows]


def test_special_pieces_in_texts_are_what_they_are_in_transformers(tiny_checkpoint, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    marked, plain = "the cat [SEP] the dog [MASK] ran", "a red [CLS] road[PAD]"

    def opened(kind, auto):
        model = of_kind(kind, tiny_checkpoint)
        bert_jax.save(model, tmp_path / kind)
        return model, auto.from_pretrained(tmp_path / kind).eval(), transformers.AutoTokenizer.from_pretrained(tmp_path / kind)

    def asked(network, tokenizer, *texts):
        encoded = tokenizer(*texts, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            return network(**encoded), offsets, encoded

    model, network, tokenizer = opened("classifier", transformers.AutoModelForSequenceClassification)
    pipe = transformers.pipeline("text-classification", model=network, tokenizer=tokenizer)
    for text in (marked, (marked, plain)):
        (ours,) = bert_jax.predict(model, [text])
        theirs = pipe(text if isinstance(text, str) else dict(zip(("text", "text_pair"), text, strict=True)), top_k=None)
        theirs = {one["label"]: one["score"] for one in theirs}
        assert {name: ours[f"probability of {name}"] for name in theirs} == pytest.approx(theirs, abs=1e-5)

    model, network, tokenizer = opened("choice", transformers.AutoModelForMultipleChoice)
    (ours,) = bert_jax.predict(model, [(marked, plain, "cat", marked)])
    encoded = tokenizer([marked] * 3, [plain, "cat", marked], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = network(**{name: ids[None] for name, ids in encoded.items()}).logits[0]
    assert ours["choice"] == int(logits.argmax()) and ours["probability"] == pytest.approx(
        float(logits.softmax(-1).max()), abs=1e-5
    )

    model, network, tokenizer = opened("tagger", transformers.AutoModelForTokenClassification)
    (ours,) = bert_jax.predict(model, [marked])
    found, offsets, _ = asked(network, tokenizer, marked)
    starts = np.cumsum([0] + [len(word) + 1 for word in marked.split()])[:-1].tolist()
    tag_at = {begin: network.config.id2label[int(tag)] for (begin, end), tag in
              zip(offsets, found.logits[0].argmax(-1), strict=True) if end}
    assert ours["tags"] == [tag_at[start] for start in starts]

    model, network, tokenizer = opened("span", transformers.AutoModelForQuestionAnswering)
    for question, context in ((marked, plain), (plain, marked), ("a cat", f"[CLS] {marked}")):
        (ours,) = bert_jax.predict(model, [(question, context)])
        found, offsets, encoded = asked(network, tokenizer, question, context)
        first = (encoded["token_type_ids"][0] == 1).nonzero()[0].item()
        inside = range(first, len(offsets) - 1)
        starts, ends = found.start_logits[0], found.end_logits[0]
        best, begin, end = max((float(starts[a] + ends[b]), -a, -b) for a in inside for b in inside if a <= b < a + 30)
        assert ours["score"] == pytest.approx(best, abs=1e-4)
        assert ours["null_score"] == pytest.approx(float(starts[0] + ends[0]), abs=1e-4)
        assert ours["text"] == context[offsets[-begin][0] : offsets[-end][1]]


def test_what_the_tokenizer_cannot_keep_is_refused_by_its_row(tiny_checkpoint, tmp_path, capfd):
    model = of_kind("span", tiny_checkpoint)
    bert_jax.save(model, tmp_path / "model")
    rows = [("a cat", "the cat sat")] * 40 + [("a cat", "\u200b")]
    with pytest.raises(BertJaxError, match="^text 41: the context has no character that the tokenizer keeps$"):
        list(bert_jax.predict(model, rows, batch_size=1))
    for kind, wrong, what in (
        ("classifier", ("\u200b",), "the text"), ("value", ("a cat", "\u200b"), "a text of it"),
        ("choice", ("a cat", "the cat", "\u200b"), "a text of it"),
    ):
        good = tuple("cat" for _ in wrong)
        with pytest.raises(BertJaxError, match=f"^text 41: {what} has no character that the tokenizer keeps$"):
            list(bert_jax.predict(of_kind(kind, tiny_checkpoint), [good] * 40 + [wrong, good], batch_size=1))
    path = tmp_path / "a.tsv"
    path.write_text("q\tc\n" + "".join("\t".join(row) + "\n" for row in rows))
    words = ["predict", str(tmp_path / "model"), "--input", str(path), "--texts", "q", "c", "--batch-size", "1"]
    assert cli.main(words) == 1
    assert f"error: {path}: row 41: the context has no character that the tokenizer keeps\n" in capfd.readouterr().err
    path.write_text("q\ta\tb\n" + "a\tb\tc\n")
    bert_jax.save(of_kind("choice", tiny_checkpoint), tmp_path / "choice")
    assert cli.main(["predict", str(tmp_path / "choice"), "--input", str(path), "--texts", "q", "a"]) == 1
    assert f"{path}: row 1 has 2 texts: the model needs a first text and two" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.txt", "a.tsv.gz", "-"])
def test_every_form_of_input(name, saved, classifier, tmp_path, monkeypatch, capsys):
    rows = [*texts(20), "the 'cat', and a \"dog\""]
    lines = {
        "tsv": ["id\ttext", *(f"{k}\t{text}" for k, text in enumerate(rows))],
        "csv": ["id,text", *(f'{k},"{text.replace(chr(34), 2 * chr(34))}"' for k, text in enumerate(rows))],
        "jsonl": [json.dumps({"id": k, "text": text}) for k, text in enumerate(rows)],
    }.get(name.removeprefix("a.").removesuffix(".gz"), rows)
    data = ("\n".join(lines) + "\n").encode()
    path = name if name == "-" else str(tmp_path / name)
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    else:
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    columns = [] if name in ("-", "a.txt") else ["--texts", "text"]
    wanted = list(bert_jax.predict(classifier, rows))
    out = tmp_path / "out.jsonl"
    assert cli.main(["predict", str(saved), "--input", path, "--out", str(out), *columns]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in found] == rows and [row["label"] for row in found] == [row["label"] for row in wanted]
    assert [row["probability"] for row in found] == pytest.approx([row["probability"] for row in wanted], abs=1e-6)
    if name != "-":
        capsys.readouterr()
        assert cli.main(["predict", str(saved), "--input", path, *columns, "--batch-size", "4"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == "text\tlabel\tprobability\tprobability of red\tprobability of blue" and len(printed) == 22
        assert [line.split("\t")[0] for line in printed[1:]] == rows


def test_how_far_it_is_is_what_is_answered_not_what_is_read(saved, tmp_path, monkeypatch):
    """Chunks are read ahead of those that are answered: half of a file was said to be done when all of it had been read."""
    path, shown = tmp_path / "x.txt", {}
    path.write_text("".join(f"{text}\n" for text in texts(1500)))

    class Watched(answers.Progress):
        def update(self, done, note):
            shown[int(note.split()[0].replace(",", ""))] = done / self._total
            super().update(done, note)

    monkeypatch.setattr(answers, "Progress", Watched)
    assert predicting.predict_file(str(saved), str(path), str(tmp_path / "out.tsv"), batch_size=16) == 1500
    assert list(shown) == [256, 512, 768, 1024, 1280]
    for count, share in shown.items():
        assert share == pytest.approx(count / 1500, rel=0.1)


def test_tabs_in_texts_become_blanks_in_tsv_and_stay_in_json(saved, tmp_path):
    (tmp_path / "a.csv").write_text('text\n"cat\tdog\nbird"\n')
    for name in ("out.tsv", "out.jsonl"):
        assert cli.main(["predict", str(saved), "--input", str(tmp_path / "a.csv"), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "out.tsv").read_text().splitlines()[1].startswith("cat dog bird\t")
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == "cat\tdog\nbird"


@pytest.fixture
def heeding_interrupts():
    """As in a terminal: what a shell starts in the background ignores SIGINT, tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_what_was_interrupted(number, saved, tmp_path, monkeypatch, heeding_interrupts):
    (tmp_path / "a.txt").write_text("cat\n" * 500)
    answers, before = predicting.Classifies.answers, []

    def interrupted(*words):
        before.append(1)
        if len(before) == 3:
            os.kill(os.getpid(), number)
        return answers(*words)

    monkeypatch.setattr(predicting.Classifies, "answers", interrupted)
    words = ["predict", str(saved), "--input", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out.tsv"), "--batch-size", "2"]
    assert cli.main(words) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_refused(saved, tiny_checkpoint, tmp_path, capfd):
    def refused(part, content="cat\n", name="a.txt", *options, model=saved):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        before = sorted(tmp_path.iterdir())
        capfd.readouterr()
        assert cli.main(["predict", str(model), "--input", str(path), "--out", str(tmp_path / "out.tsv"), *options]) == 1
        lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("bert-jax: WARNING")]
        assert len(lines) == 1 and lines[0].startswith("bert-jax: error: ") and part in lines[0], lines
        assert sorted(tmp_path.iterdir()) == before

    refused("no such file or directory", model=tmp_path / "absent")
    refused("no classifier, tagger, span or choice head (it has pooler, mlm, pair)", model=tiny_checkpoint)
    refused("absent.txt: cannot be read", None, "absent.txt")
    refused("a.txt: no rows: it is empty", "")
    refused("a.txt: line 2: the text is empty, or nothing but white space", "cat\n  \t \ndog\n")
    latin = b"cat\n\n" * 2000 + b"d\xffg\n"
    refused("a.txt: line 2 is not UTF-8 (byte 0xff): convert the file to UTF-8", b"cat\nd\xffg\n")
    for name in ("b.tsv", "b.csv", "b.tsv.gz"):
        content = gzip.compress(latin) if name.endswith(".gz") else latin
        refused(f"{name}: line 4001 is not UTF-8 (byte 0xff)", content, name)
    refused("b.jsonl: line 3 is not UTF-8", b'{"a": "cat"}\n\n{"a": "d\xffg"}\n', "b.jsonl")
    refused("a.txt: plain lines have no columns text", "cat\n", "a.txt", "--texts", "text")
    refused("a.tsv: no column 'text'; there are id, review", "id\treview\n1\tcat\n", "a.tsv", "--texts", "text")
    for columns in (("text",), ("0", "1")):
        refused("are its fields apart by ';'? in *.csv", "text;label\na;b\n", "c.csv", "--texts", *columns)
    refused("a.tsv: name the column of the text (--texts); there are id, review", "id\treview\n1\tcat\n", "a.tsv")
    refused("a.tsv: line 3 has 1 fields, the first line 2", "id\treview\n1\tcat\n2\n", "a.tsv", "--texts", "review")
    for options in ((), ("--texts", "question", "context")):
        refused("qa.json: one JSON document (SQuAD's form) is for models that answer questions about contexts: give *.jsonl",
                '{"data": []}', "qa.json", *options)
    refused("qa.json.gz: one JSON document", gzip.compress(b"{}"), "qa.json.gz")
    spans = tmp_path.parent / "spans"
    bert_jax.save(with_head(tiny_checkpoint, (), "span"), spans)
    refused("qa.json: no questions", '{"data": []}', "qa.json", model=spans)
    refused("qa.json: not a SQuAD file: the whole has no 'data'", "{}", "qa.json", model=spans)
    refused("qa.json: SQuAD's form has no columns question, context: leave --texts out", squad_file([("a1", "she ran", "cat")]),
            "qa.json", "--texts", "question", "context", model=spans)
    refused("qa.json: the id a1 comes twice", squad_file([("a1", "she ran", "cat")] * 2), "qa.json", model=spans)
    refused("qa.json: question 2: the question has no character that the tokenizer keeps",
            squad_file([("a1", "she ran", "cat"), ("a2", "\u200b", "cat")]), "qa.json", model=spans)
    refused("what is written is named *.tsv or *.jsonl or *.json", squad_file([("a1", "she ran", "cat")]), "qa.json", "--out",
            str(tmp_path / "out.csv"), model=spans)
    refused("what is written is named *.tsv or *.jsonl", "cat\n", "a.txt", "--out", str(tmp_path / "out.json"))
    refused("a.tsv: no rows below the names", "id\treview\n", "a.tsv", "--texts", "review")
    refused("a.tsv: no column 2; there are 0 to 1", "1\tcat\n", "a.tsv", "--texts", "2")
    refused("a.csv: after line 1: ", 'review\n"cat', "a.csv")
    refused("a.jsonl: after line 1: no JSON object", '{"text": "cat"}\n[1]\n', "a.jsonl")
    refused("a.jsonl: line 2: no column 'text'; there are review", '{"text": "cat"}\n{"review": "x"}\n', "a.jsonl")
    refused("a.jsonl: line 1: a text is a string", '{"text": null}\n', "a.jsonl")
    damaged = gzip.compress(b"cat\n" * 9)[:10] + b"\x07" + bytes(20)  # a block of no type that there is
    refused("a.txt.gz: a damaged gzip file after line 0 (", damaged, "a.txt.gz")
    refused("a.txt.gz: a damaged gzip file after line", gzip.compress(b"cat\n" * 9)[:-9], "a.txt.gz")
    refused("b.txt.gz: a damaged gzip file after line", b"cat\n", "b.txt.gz")
    refused("a.conllu.gz: it has a word a line", gzip.compress(b"cat N\n"), "a.conllu.gz",
            model=with_tags(tiny_checkpoint, tmp_path.parent / "tags"))
    refused("needs a text or a pair, not 3 columns", "a\tb\tc\n1\t2\t3\n", "b.tsv", "--texts", "a", "b", "c")
    refused("batch_size is 0", "cat\n", "a.txt", "--batch-size", "0")
    refused("what is written is named *.tsv or *.jsonl", "cat\n", "a.txt", "--out", str(tmp_path / "out.csv"))
    (tmp_path / "mine.tsv").touch()
    refused("mine.tsv: exists already", "cat\n", "a.txt", "--out", str(tmp_path / "mine.tsv"))
    with pytest.raises(BertJaxError, match="text 2 is empty, or nothing but white space"):
        list(bert_jax.predict(saved, ["cat", " \u3000"]))


@pytest.mark.parametrize(("data", "said"), [
    (swag("x.csv"), "(sent1, sent2 + ending0, sent2 + ending1,"), (Named("race/high"), "(article, question + option)"),
])
def test_texts_that_were_put_together_are_told_of(data, said, tiny_checkpoint, tmp_path, caplog, capfd):
    """SWAG's endings have the beginning of their sentence in front of them in training."""
    model = with_head(tiny_checkpoint, (), "pooler", "choice")
    task = Choice(model.config, str(tiny_checkpoint), data, data, (32,))
    bert_jax.save(model, tmp_path / "model")
    (tmp_path / "finetune.json").write_text(json.dumps({"experiment": {"task": config.to_json(task)}}))
    names = ["sent1", *(f"ending{n}" for n in range(4))]
    (tmp_path / "a.csv").write_text(",".join(names) + "\ncat,dog,bird,mat,tree\n")
    with caplog.at_level(logging.WARNING):
        assert cli.main(["predict", str(tmp_path), "--input", str(tmp_path / "a.csv"), "--texts", *names]) == 0
    assert f"put together from columns {said}" in capfd.readouterr().err + caplog.text


def test_words_that_differ_from_row_to_row_are_no_table(tiny_checkpoint, tmp_path, capfd):
    model = with_head(tiny_checkpoint, (), "mlm")
    data = Cloze(Table("x.tsv", ("s",), "l"), "{0} [MASK]", ("a", "b"), ("cat", "dog"))
    task = MaskedWords(model.config, str(tiny_checkpoint), data, data, (32,))
    bert_jax.save(model, tmp_path / "model", format="bert_jax")
    (tmp_path / "finetune.json").write_text(json.dumps({"experiment": {"task": config.to_json(task)}}))
    (tmp_path / "a.tsv").write_text("s\ta\tb\nthe [MASK] sat\tcat\tdog\nthe [MASK] sat\tdog\tmat\n")
    command = ["predict", str(tmp_path), "--input", str(tmp_path / "a.tsv"), "--texts", "s", "a", "b", "--out"]
    assert cli.main([*command, str(tmp_path / "out.tsv")]) == 1
    assert "row 2 has other columns than the first" in capfd.readouterr().err and not (tmp_path / "out.tsv").exists()
    assert cli.main([*command, str(tmp_path / "out.jsonl")]) == 0
    assert "log probability of mat" in (tmp_path / "out.jsonl").read_text().splitlines()[1]


def test_numbered_columns_and_what_has_been_read(tmp_path):
    (tmp_path / "a.tsv").write_text("1\tcat\n2\tdog\n")
    source = open_texts(str(tmp_path / "a.tsv"), ("1",))
    assert list(source.rows) == [("cat",), ("dog",)] and source.read() == source.size == 12


def test_who_asks_again_compiles_nothing(saved):
    ready = predicting.load(saved)
    found = [list(bert_jax.predict(ready, [text]))[0] for text in ("cat dog", "a bird sat", "the road")]
    assert ready.predictor.run._cache_size() == 1
    assert found[0]["probability"] == pytest.approx(next(bert_jax.predict(saved, ["cat dog"]))["probability"], abs=1e-6)


def test_a_loaded_model_that_is_asked_again_compiles_nothing_either(classifier):
    predicting._predictor.cache_clear()
    first = list(bert_jax.predict(classifier, ["cat dog"]))
    ready = predicting.of_model(classifier)
    compiled = ready.predictor.run._cache_size()
    moved = classifier._replace(params=jax.tree.map(lambda leaf: leaf + 0.1, classifier.params))  # of other parameters
    assert list(bert_jax.predict(classifier, ["cat dog"])) == first != list(bert_jax.predict(moved, ["cat dog"]))
    assert ready.predictor.run._cache_size() == compiled == 1
    longer = classifier._replace(config=dataclasses.replace(classifier.config, labels=("one", "two")))
    assert predicting.of_model(longer).predictor is not ready.predictor
    assert next(bert_jax.predict(longer, ["cat dog"]))["label"] in ("one", "two")


class Frame:
    """As tables of pandas and polars iterate."""

    columns = ("text",)

    def __iter__(self):
        return iter(self.columns)


@pytest.mark.parametrize("given", [{"text": "cat", "text_pair": "dog"}, {"cat", "dog"}, Frame()])
def test_what_iterates_over_something_else_is_no_list_of_texts(given, classifier):
    for verb in (bert_jax.predict, bert_jax.embed):
        with pytest.raises(BertJaxError, match=f"^texts is a {type(given).__name__}: give a list of texts"):
            verb(classifier, given)


def test_a_table_under_another_name_is_not_answered_line_by_line(classifier, tiny_checkpoint, tmp_path, capfd, caplog):
    data = Table("x.tsv", ("note",), "l")
    task = Classification(classifier.config, str(tiny_checkpoint), data, data, (32,))
    bert_jax.save(classifier, tmp_path / "model")
    (tmp_path / "finetune.json").write_text(json.dumps({"experiment": {"task": config.to_json(task)}}))
    tables = {"NEW.CSV": "id,note\n1,cat\n", "new.txt": "note\tx\ncat\t1\n", "new.ndjson": '{"note": "cat"}\n'}
    for name, content in tables.items():
        (tmp_path / name).write_text(content)
        assert cli.main(["predict", str(tmp_path), "--input", str(tmp_path / name)]) == 1
        assert f"{name}: its first line has the columns note" in capfd.readouterr().err
    assert cli.main(["predict", str(tmp_path), "--input", str(tmp_path / "NEW.CSV"), "--format", "csv"]) == 0
    assert capfd.readouterr().out.count("\n") == 2
    (tmp_path / "plain").write_text("a cat, a note\n")
    assert cli.main(["predict", str(tmp_path), "--input", str(tmp_path / "plain")]) == 0
    assert "plain is read as a text a line, since its name ends in none of .tsv, .csv, .jsonl" in caplog.text
    caplog.clear()
    (tmp_path / "plain.txt").write_text("a cat, a note\n")
    assert cli.main(["predict", str(tmp_path), "--input", str(tmp_path / "plain.txt")]) == 0
    assert not caplog.messages


def test_a_number_of_which_nothing_is_said_is_said_to_be_one(tiny_checkpoint, tmp_path, caplog):
    bert_jax.save(with_head(tiny_checkpoint, ("value",), "pooler", "classifier"), tmp_path / "one")
    path = tmp_path / "one" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in settings.items() if name != "problem_type"}))
    assert list(bert_jax.predict(tmp_path / "one", ["cat"]))
    assert caplog.text.count("gives one number and does not say what it is (problem_type)") == 1
    caplog.clear()
    path.write_text(json.dumps(settings | {"problem_type": "regression"}))
    assert list(bert_jax.predict(tmp_path / "one", ["cat"])) and "one number" not in caplog.text


def test_numbers_are_texts_where_they_are_in_training(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 3, "label": "x"}\n{"text": 2.5, "label": "y"}\n{"text": "a", "label": "x"}\n')
    assert list(open_texts(str(path), ("text",)).rows) == Table(str(path), ("text",), "label").read().texts
