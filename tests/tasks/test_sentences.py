"""Fine-tuning on labelled sentences: tables, batches, scores, and runs that learn."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from scipy import stats

from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks import classification, regression
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.batches import Encoded, EvalBatches, TrainBatches, encode
from bert_jax.tasks.classification import Classification, ClassificationTask
from bert_jax.tasks.regression import Regression, RegressionTask
from bert_jax.tasks.tables import Table
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.finetune import finetune
from bert_jax.training.optimizer import AdamW
from tests.tiny_bert import get_config


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_tables_with_and_without_names(tmp_path):
    tsv = write(tmp_path / "a.tsv", '\ufeffone\ttwo\tlabel\n"so\tthat " was\tyes\n\nb\tc\tno\n')
    assert Table(tsv, ("one", "two"), "label").read() == ([('"so', 'that " was'), ("b", "c")], ["yes", "no"])
    csv = write(tmp_path / "a.csv", '"a, b",c,1.5\nd,e,2\n')
    assert Table(csv, ("0",), "2").read() == ([("a, b",), ("d",)], ["1.5", "2"])


@pytest.mark.parametrize("text, message", [
    ("a\tb\n1\t2\n", "no column 'label'; there are a, b"), ("", "there are none"), ("a\tlabel\n", "no rows"),
    ("a\tlabel\nx\n", "row 2 has 1 fields"), ("a\tlabel\n \t1\n", "row 2 has an empty text"),
    ("a\tlabel\nx\t \n", "row 2 has an empty label"),
])
def test_tables_that_are_wrong(tmp_path, text, message):
    with pytest.raises(BertJaxError, match=message):
        Table(write(tmp_path / "x.tsv", text), ("a",), "label").read()
    with pytest.raises(BertJaxError, match="cannot be read"):
        Table(str(tmp_path / "none.tsv"), ("a",), "label").read()
    with pytest.raises(BertJaxError, match="tsv or"):
        Table("x.json", ("a",), "label").read()


def examples(count: int = 103) -> Encoded:
    rng = np.random.default_rng(0)
    ids = [np.full(size, number, np.int32) for number, size in enumerate(rng.integers(1, 33, count))]
    numbers = np.arange(count, dtype=np.int32)
    return Encoded({"input_ids": ids, "segment_ids": [np.zeros_like(one) for one in ids]}, {"label": numbers}, numbers)


def test_every_epoch_has_every_example_once_and_little_padding():
    batches = TrainBatches(examples(96), (8, 16, 32), 4, None, 0, seed=1)
    made = [next(batches) for _ in range(96)]  # four epochs, six stretches
    labels = np.concatenate([batch["label"] for batch in made])
    assert (np.bincount(labels) == 4).all()
    assert {batch["input_ids"].shape[1] for batch in made} == {8, 16, 32}
    for batch in made:
        assert (batch["input_ids"] == np.where(batch["attention_mask"], batch["label"][:, None], 0)).all()
    real, places = (sum(f(batch["attention_mask"]) for batch in made) for f in (np.sum, np.size))
    assert real / places > 0.65  # 16.5 / 32 without sorting
    assert not np.array_equal(labels[:96], labels[96:192])


def test_training_goes_on_where_it_was_and_rows_are_those_of_the_whole():
    whole, part = (TrainBatches(examples(), (8, 16, 32), 4, rows, 0, seed=1) for rows in (None, np.array([1, 2])))
    made = [next(whole) for _ in range(20)]
    part.set_state({"examples": 4 * 17})
    for batch in made[17:]:
        other = next(part)
        assert all((batch[name][1:3] == other[name]).all() for name in batch)
    assert part.get_state() == whole.get_state() == {"examples": 80}


def test_evaluation_keeps_the_tail():
    batches = EvalBatches(examples(), (8, 16, 32), 10, None, 0, None)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert len(batches) == 11 and sorted(labels[labels >= 0]) == list(range(103)) and (labels < 0).sum() == 7
    assert (labels[labels >= 0] == batches.order).all()
    assert len(EvalBatches(examples(), (8, 16, 32), 10, None, 0, 3)) == 3


def test_a_part_of_the_evaluation_is_whole_items():
    whole = examples()
    item = np.repeat(np.arange(40), 3)[:103].astype(np.int32)  # the last one has a single row
    batches = EvalBatches(whole._replace(item=item), (8, 16, 32), 10, None, 0, 3)
    chosen = np.concatenate([batch["example"] for batch in batches])
    counts = np.bincount(item[chosen[chosen >= 0]], minlength=35)
    assert 27 < counts.sum() <= 30 and (counts[:34][counts[:34] > 0] == 3).all()


def test_rows_side_by_side_and_labels_of_tokens():
    ids = [np.arange(6, dtype=np.int32).reshape(2, 3) + 1, np.arange(4, dtype=np.int32).reshape(2, 2) + 1]
    labels, numbers = [np.ones((2, 3), np.int32), np.ones((2, 2), np.int32)], np.arange(2, dtype=np.int32)
    data = Encoded({"input_ids": ids, "labels": labels}, {"scores": np.ones((2, 5), np.float32)}, numbers)
    batch = next(iter(EvalBatches(data, (4,), 3, None, 9, None)))
    assert batch["input_ids"].tolist() == [[[1, 2, 9, 9], [3, 4, 9, 9]], [[1, 2, 3, 9], [4, 5, 6, 9]], [[9] * 4] * 2]
    assert (batch["attention_mask"] == (batch["input_ids"] != 9)).all() and batch["attention_mask"].dtype == bool
    assert (batch["labels"] == np.where(batch["attention_mask"], 1, -1)).all() and batch["example"].tolist() == [1, 0, -1]
    assert np.isnan(batch["scores"][2]).all() and (batch["scores"][:2] == 1).all()


def test_too_long_pairs_lose_of_the_longer_text(tiny_store, caplog):
    from bert_jax.data.store import TokenStore

    tokenizer = TokenStore(tiny_store).tokenizer
    with caplog.at_level(logging.WARNING):
        made = encode(tokenizer, [("the cat", "a dog sat on the mat in the tree"), ("a", "b")], 10)
    assert "1 of 2 examples have more than 10 tokens" in caplog.text
    ids, segments = (made.tokens[name][0] for name in ("input_ids", "segment_ids"))
    assert len(ids) == 10 and tokenizer.decode(ids) == "[CLS] the cat [SEP] a dog sat on the [SEP]"
    assert segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_truncation_takes_single_tokens_from_the_longer():
    from bert_jax.tasks.batches import _longest_first

    for first in range(1, 12):
        for second in range(1, 12):
            for room in range(2, first + second):
                a, b = first, second
                while a + b > room:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                assert _longest_first(first, second, room) == [a, b], (first, second, room)


def test_scores_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    sklearn = pytest.importorskip("sklearn.metrics")
    for _ in range(20):
        logits, labels = rng.standard_normal((50, 2)).astype(np.float32), rng.integers(0, 2, 50)
        found, predicted = classification.scores(logits, labels), logits.argmax(1)
        assert np.isclose(found["matthews"], sklearn.matthews_corrcoef(labels, predicted))
        assert np.isclose(found["f1"], sklearn.f1_score(labels, predicted))
        assert np.isclose(found["accuracy"], sklearn.accuracy_score(labels, predicted))
    assert classification.scores(np.array([[1.0, 0], [1, 0]]), np.array([0, 0]))["matthews"] == 0
    x = rng.standard_normal(30)
    assert np.isclose(regression.scores(x, x**3)["spearman"], 1) and regression.scores(x, x**3)["pearson"] < 1
    assert np.isclose(regression.scores(x + 2, x)["rmse"], 2)
    assert regression.scores(np.ones(30), x)["spearman"] == 0
    assert np.isclose(regression.scores(-x, x)["pearson"], stats.pearsonr(-x, x).statistic)


@pytest.fixture(scope="module")
def start(tiny_store):
    """An encoder without training, with the tokenizer of the tiny store."""
    from bert_jax.data.store import TokenStore

    config = get_config().task.encoder
    return Model(api.init(config, jax.random.key(0)), config, TokenStore(tiny_store).tokenizer)


def tables(folder, label):
    """Pairs whose label is a function of whether the second begins with the first word of the first."""
    rng = np.random.default_rng(0)
    words = "cat dog bird mat road tree".split()
    for name, count in (("train", 256), ("dev", 70)):
        rows = ["first\tsecond\tlabel"]
        for _ in range(count):
            a, b = rng.choice(words, 2)
            rows.append(f"{a} sat on\t{b} ran\t{label(a, b)}")
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return [Table(str(folder / f"{name}.tsv"), ("first", "second"), "label") for name in ("train", "dev")]


def experiment(task, steps=60):
    return Experiment(
        task, AdamW(learning_rate=3e-3, warmup_steps=5, bias_correction=True),
        TrainConfig(steps=steps, batch_size=32, eval_every=steps, save_every=steps, log_every=20, eval_batches=None),
    )


def test_classification_learns(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: "red" if b < "d" else "blue")
    encoder = finetuned_encoder(start.config, ("red", "blue"), dropout=0.0, attention_dropout=0.0)
    config = Classification(encoder, "tiny", data, heldout, lengths=(8, 16))
    found = finetune(experiment(config), tmp_path / "run", start)
    assert found["accuracy"] > 0.95 and found["matthews"] > 0.9
    assert load(tmp_path / "run").config.labels == ("red", "blue")
    assert finetune(experiment(config), tmp_path / "run", start) == found  # over already: the same scores


def test_regression_learns(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: 10 + len(b))
    encoder = finetuned_encoder(start.config, ("length",), dropout=0.0, attention_dropout=0.0)
    config = Regression(encoder, "tiny", data, heldout, lengths=(8, 16), offset=13.0, scale=0.5)
    assert finetune(experiment(config), tmp_path / "run", start)["pearson"] > 0.95


def test_seeds_give_other_heads_and_the_checkpoint_s_encoder(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: "red")
    config = Classification(finetuned_encoder(start.config, ("red", "blue")), "tiny", data, heldout, lengths=(8, 16))
    task = ClassificationTask(config, start)
    one, two = (task.start(jax.random.key(seed)) for seed in (0, 1))
    assert not np.array_equal(one["classifier"]["dense"]["kernel"], two["classifier"]["dense"]["kernel"])
    assert np.array_equal(one["embeddings"]["token"], start.params["embeddings"]["token"]) and "mlm" not in one


def test_what_is_refused(tmp_path, start):
    data, heldout = tables(tmp_path, lambda a, b: "red")
    encoder = finetuned_encoder(start.config, ("blue", "green"))
    config = Classification(encoder, "tiny", data, heldout, lengths=(8, 16))
    with pytest.raises(BertJaxError, match="label 'red', task.encoder.labels are blue, green"):
        next(ClassificationTask(config, start).train_batches(4, 0))
    value = Regression(finetuned_encoder(start.config, ("x",)), "tiny", data, heldout, lengths=(8, 16))
    with pytest.raises(BertJaxError, match="row 1 has the value 'red'"):
        next(RegressionTask(value, start).train_batches(4, 0))
    with pytest.raises(BertJaxError, match="from 1 to the position table, 16"):
        dataclasses.replace(config, lengths=(8, 64))
    with pytest.raises(BertJaxError, match="two or more"):
        Classification(finetuned_encoder(start.config, ("x",)), "tiny", data, heldout, lengths=(8,))
    with pytest.raises(BertJaxError, match="has no tokenizer"):
        ClassificationTask(config, start._replace(tokenizer=None))
    with pytest.raises(BertJaxError, match="with_heads must be"):
        Classification(EncoderConfig(), "tiny", data, heldout)
