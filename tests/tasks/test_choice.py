"""Multiple choice: the original formats, choices side by side, the loss and gradients of transformers."""

import dataclasses
import functools
import gzip
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks.choice import Choice, ChoiceTask, Chooses, Questions, swag
from bert_jax.tasks.race import Race
from bert_jax.tasks.tables import Rows
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from tests.tasks.plain_answers import predict
from tests.tasks.tiny_tasks import finetune

WORDS = "cat dog bird mat sat ran on the red blue one two".split()
TOKENIZER = WordPieceTokenizer([*SPECIALS, *WORDS, ".", "?"])
ENCODER = EncoderConfig(
    vocab_size=TOKENIZER.vocab_size, embedding_width=32, hidden_width=32, layers=2, heads=4, ffn_width=48, max_length=24,
    dropout=0.0, attention_dropout=0.0, with_heads=("pooler", "choice"),
)
# The columns of rowanz/swagaf's data/train.csv and val.csv (an index without a name first).
SWAG = """,video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label
0,anetv_x,1,The cat sat. She,The cat sat.,She,gold,"ran, then sat.",sat.,"said ""cat"".",ran.,2
7,lsmdc_y,2,A dog. Someone,A dog.,Someone,gen,a,b,c,d,0
"""
PASSAGE = {"article": "The cat sat on the mat.\nIt ran.", "answers": ["B", "D"], "id": "high1.txt",
           "options": [["cat", "dog", "bird", "mat"], ["one", "two", "red", "blue"]],
           "questions": ["Who sat?", "The _ ran and the _ sat."]}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_swag(tmp_path):
    assert swag(write(tmp_path / "val.csv", SWAG)).read() == (
        [("The cat sat.", "She ran, then sat.", "She sat.", 'She said "cat".', "She ran."),
         ("A dog.", "Someone a", "Someone b", "Someone c", "Someone d")],
        ["2", "0"],
    )


def test_race(tmp_path):
    write(tmp_path / "high" / "1.txt", json.dumps(PASSAGE))
    one = PASSAGE | {"questions": ["Who?"], "options": [["cat", "dog"]], "answers": ["A"]}
    write(tmp_path / "middle" / "10.txt", json.dumps(one))
    rows = Race(str(tmp_path)).read()
    assert rows.labels == ["1", "3", "0"]
    assert rows.texts[0][0] == PASSAGE["article"] and rows.texts[0][1:3] == ("Who sat? cat", "Who sat? dog")
    assert rows.texts[1][4] == "The blue ran and the blue sat." and rows.texts[2][1:] == ("Who? cat", "Who? dog")
    assert len(Race(str(tmp_path / "middle")).read().texts) == 1


def test_lines_with_named_fields(tmp_path):
    lines = [{"q": "Who?", "given": ["cat", "dog", "bird"], "right": 2}, {"q": "So?", "given": ["one", "two"], "right": "B"}]
    path = write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert Questions(path, ("q",), ("given",), "right").read() == (
        [("Who?", "cat", "dog", "bird"), ("So?", "one", "two")], ["2", "1"]
    )
    assert Questions(path, ("q",), ("given",)).read().labels == []
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "x.jsonl").read_bytes()))
    assert Questions(str(packed), ("q",), ("given",), "right").read() == Questions(path, ("q",), ("given",), "right").read()
    tsv = write(tmp_path / "x.tsv", 'a\tb\tl\tr\tn\nx "\ty\tl\tr\t1\n')
    assert Questions(tsv, ("a", "b"), ("l", "r"), "n").read() == ([('x " y', "l", "r")], ["1"])
    parts = [Questions(tsv, ("a", "b"), ("l", "r"), "n", share=share) for share in ((0.0, 0.5), (0.5, 1.0))]
    read = []
    for part in parts:
        try:
            read.append(part.read())
        except BertJaxError as error:
            assert "no rows in share=" in str(error)
    assert read == [Questions(tsv, ("a", "b"), ("l", "r"), "n").read()]  # one row is in one part


@pytest.mark.parametrize("line, message", [
    ({"q": "x", "c": ["a", "b"]}, "line 1 has no field 'l'; there are q, c"), ({"q": " ", "c": ["a", "b"], "l": 0}, "is empty"),
    ({"q": "x", "c": ["a", " "], "l": 0}, "choice 1: is empty"), ({"q": "x", "c": ["a"], "l": 0}, "1 choices; two or more"),
    ({"q": "x", "c": ["a", "b"], "l": 2}, "the label 2 is none of 2 choices"), ({"q": "x", "c": ["a", 1], "l": 0}, "a string"),
    ({"q": "x", "c": ["a", "b"], "l": "C"}, "the label 'C' is none"), ({"q": "x", "c": ["a", "b"], "l": -1}, "the label -1"),
    ({"q": "x", "c": "ab", "l": 0}, "1 choices"), (["x"], "line 1 is no JSON object"),
])
def test_lines_that_are_wrong(tmp_path, line, message):
    with pytest.raises(BertJaxError, match=message):
        Questions(write(tmp_path / "x.jsonl", json.dumps(line)), ("q",), ("c",), "l").read()


def test_files_that_are_wrong(tmp_path):
    questions = functools.partial(Questions, first=("q",), choices=("c",), label="l")
    for name, text, message in (
        ("a.jsonl", "", "no questions"), ("b.jsonl", "{", "line 1 is not JSON"),
        ("c.csv", "q,c,l\n1,2\n", "line 2 has 2 fields, the first line 3"),
        ("d.csv", 'l,q,a,c\n0,f,x,"oops\n1,f,x,y\n', "is a quotation mark missing"),
        ("e.csv", "l,q,c,c\n0,f,x,y\n", "2 columns have the name 'c'"), ("f.csv", "", "no questions"),
    ):
        with pytest.raises(BertJaxError, match=message):
            questions(write(tmp_path / name, text)).read()
    nameless = Questions(write(tmp_path / "g.csv", "q,a,b,l,,\nx,y,z,0,,\n"), ("q",), ("a", "b"), "l")  # as spreadsheets save
    assert nameless.read() == ([("x", "y", "z")], ["0"])
    with pytest.raises(BertJaxError, match="cannot be read"):
        questions(str(tmp_path / "none.csv")).read()
    with pytest.raises(BertJaxError, match="csv, .*tsv or .*jsonl"):
        questions("x.json")
    with pytest.raises(BertJaxError, match="no questions"):
        Race(str(tmp_path / "none")).read()
    for name, text in (("1", "x"), ("2", json.dumps({"article": "x"})), ("3", json.dumps(PASSAGE | {"answers": ["A"]}))):
        write(tmp_path / name / "1.txt", text)
        with pytest.raises(BertJaxError, match="no passage of RACE"):
            Race(str(tmp_path / name)).read()
    write(tmp_path / "4" / "1.txt", json.dumps(PASSAGE | {"answers": ["A", "E"]}))
    with pytest.raises(BertJaxError, match="question 2: the label 'E' is none of 4"):
        Race(str(tmp_path / "4")).read()


@functools.cache
def make_model() -> Model:
    """Parameters far from the usual 0.02, so that every bias, norm and activation shows."""
    rng = np.random.default_rng(0)
    shapes = jax.jit(lambda key: api.init(ENCODER, key))(jax.random.key(0))
    return Model(jax.tree.map(lambda x: np.asarray(x + rng.normal(0, 0.2, x.shape), np.float32), shapes), ENCODER, TOKENIZER)


def make_rows(count: int, most: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, most + 1, count)
    texts = [tuple(" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(1 + size)) for size in sizes]
    return Rows(texts, [str(rng.integers(size)) for size in sizes])


def make_task(rows: Rows) -> ChoiceTask:
    source = Questions("x.csv", ("q",), ("c",), "l")
    task = ChoiceTask(Choice(ENCODER, "tiny", source, source, (16,)), make_model())
    task.__dict__ |= {"heldout": rows, "evaluation": task.labelled(task.predictor.encode(rows.texts), rows, source)}
    return task


def value_and_gradients(task: ChoiceTask, batch: dict):
    def loss(params):
        return task.loss(params, jax.tree.map(jnp.asarray, batch), None).terms["choice_loss"].value

    return jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, make_model().params))


def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers (the torch extra)")
    texts, labels = make_rows(5, 2)
    rows = Rows([(*text, "one cat") for text in texts], labels)  # three choices each: theirs knows no other number
    task = make_task(rows)
    batch = next(iter(task.eval_batches(6, None)))  # with an empty row, which weighs nothing
    assert batch["input_ids"].shape[:2] == (6, 3) and batch["choices"].tolist() == [3] * 5 + [-1]
    hf.export(make_model().params, ENCODER, TOKENIZER, tmp_path / "theirs")
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(tmp_path / "theirs", attn_implementation="eager").eval()
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask", "token_type_ids": "segment_ids", "labels": "label"}
    wanted = theirs(**{name: torch.tensor(batch[ours][:5]).long() for name, ours in inputs.items()}).loss
    wanted.backward()
    value, gradients = value_and_gradients(task, batch)
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    ours = hf.to_tensors(gradients, ENCODER)
    for name, parameter in theirs.named_parameters():
        reference = parameter.grad.numpy()
        largest = np.abs(reference).max()
        if ".key.bias" in name or name == "classifier.bias":  # softmax ignores them: zero but for rounding
            assert max(largest, np.abs(ours[name]).max()) < 1e-6
            continue
        np.testing.assert_allclose(ours[name], reference, atol=1e-5 * largest, rtol=0, err_msg=name)


def test_a_question_is_the_same_among_others_with_more_choices():
    """Loss, gradients and probabilities of a question with two choices, alone and beside one with five."""
    few, many = make_rows(1, 2, seed=1), Rows([("cat", *"cat dog bird mat ran".split())], ["4"])
    both = Rows([few.texts[0], many.texts[0]], [few.labels[0], many.labels[0]])
    single = [value_and_gradients(task, next(iter(task.eval_batches(1, None)))) for task in map(make_task, (few, many))]
    value, gradients = value_and_gradients(make_task(both), next(iter(make_task(both).eval_batches(2, None))))
    np.testing.assert_allclose(value, (single[0][0] + single[1][0]) / 2, rtol=1e-5)
    for ours, one, other in zip(*map(jax.tree.leaves, (gradients, single[0][1], single[1][1])), strict=True):
        np.testing.assert_allclose(ours, (one + other) / 2, atol=1e-5 * max(np.abs(ours).max(), 1e-2), rtol=0)
    run = functools.partial(predict, Chooses(ENCODER, TOKENIZER, 16), make_model().params, lengths=(16,), batch_size=4)
    (alone,), _ = run(few.texts)
    answers, outputs = run(both.texts)
    assert answers[0]["choice"] == alone["choice"] and np.isclose(answers[0]["probability"], alone["probability"])
    assert answers[0]["text"] == few.texts[0][1 + alone["choice"]] and (outputs["logits"][0][2:] < -1e38).all()


def test_scores_and_masks():
    rows = make_rows(21, 4)
    task = make_task(rows)
    outputs: dict = {"logits": [], "example": []}
    for batch in task.eval_batches(8, None):
        assert (batch["attention_mask"] == (batch["input_ids"] != TOKENIZER.pad_id)).all()
        there = batch["attention_mask"].any(-1).sum(-1)
        assert (there == np.maximum(batch["choices"], 0)).all()
        outputs["logits"].extend(np.eye(4, dtype=np.float32)[np.maximum(batch["label"], 0)] * 5)
        outputs["example"].extend(batch["example"])
    assert task.scores(outputs) == {"accuracy": 1.0}
    right = sum(label == "0" for label in rows.labels) / 21
    outputs["logits"] = [np.array([1.0, 0, 0, 0], np.float32)] * len(outputs["example"])
    assert task.scores(outputs) == {"accuracy": pytest.approx(right)}


def test_long_texts_are_cut_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        encoded = Chooses(ENCODER, TOKENIZER, 8).encode([("cat " * 9, "dog", "dog bird")])
    assert "2 of 2 examples have more than 8 tokens" in caplog.text
    shown = [TOKENIZER.decode(ids) for ids in encoded.tokens["input_ids"][0]]
    assert shown == ["[CLS] cat cat cat cat [SEP] dog [SEP]", "[CLS] cat cat cat [SEP] dog bird [SEP]"]
    source = Questions("x.csv", ("q",), ("c",), "l")
    ends = ChoiceTask(Choice(ENCODER, "tiny", source, source, (8,), truncate="end"), make_model()).predictor
    shown = TOKENIZER.decode(ends.encode([("cat cat bird bird bird bird", "dog", "dog")]).tokens["input_ids"][0][0])
    assert shown == "[CLS] bird bird bird bird [SEP] dog [SEP]"
    with pytest.raises(BertJaxError, match="row 2: a first text and two"):
        Chooses(ENCODER, TOKENIZER, 8).encode([("cat", "dog", "bird"), ("cat", "dog")])
    with pytest.raises(BertJaxError, match="no texts"):
        Chooses(ENCODER, TOKENIZER, 8).encode([])


def test_choice_learns_from_a_folder(tmp_path):
    """The right choice repeats a word of the article; passages in RACE's format, whose folder is the run's identity."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 150), ("dev", 30)):
        for number in range(count):
            options = [str(word) for word in rng.choice(WORDS[:4], 3, replace=False)]
            right = int(rng.integers(3))
            one = {"article": options[right], "questions": ["the _"], "options": [options], "answers": ["ABC"[right]]}
            write(tmp_path / name / f"{number}.txt", json.dumps(one))
    experiment = Experiment(
        Choice(ENCODER, "tiny", Race(str(tmp_path / "train")), Race(str(tmp_path / "dev")), (8,), shapes=1),
        AdamW(learning_rate=5e-3, warmup_steps=5, bias_correction=True),
        TrainConfig(steps=60, batch_size=32, eval_every=60, save_every=60, log_every=20, eval_batches=None),
    )
    start = Model({k: v for k, v in make_model().params.items() if k != "choice"}, ENCODER, TOKENIZER)
    found = finetune(experiment, tmp_path / "run", start)
    assert found["accuracy"] > 0.9 and found["choice_accuracy"] == pytest.approx(found["accuracy"])
    model = load(tmp_path / "run")
    answers, _ = predict(Chooses(model.config, model.tokenizer, 8), model.params, [("cat", "the bird", "the cat")], (8,))
    assert answers[0]["choice"] == 1 and answers[0]["text"] == "the cat" and answers[0]["probability"] > 0.5
    with pytest.raises(BertJaxError, match="with_heads must be pooler and choice"):
        dataclasses.replace(experiment.task, encoder=dataclasses.replace(ENCODER, with_heads=("pooler",)))
    write(tmp_path / "train" / "0.txt", json.dumps(PASSAGE))
    with pytest.raises(BertJaxError, match="was trained with data"):
        finetune(experiment, tmp_path / "run", start)
