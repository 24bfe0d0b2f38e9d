"""NSP and SOP against NumPy, and what a task's configuration refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, NextSentence, SentenceOrder, pretraining
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask, Turn

ENCODER = EncoderConfig(vocab_size=96, embedding_width=16, hidden_width=16, layers=1, heads=2, ffn_width=16, max_length=16)


@pytest.mark.parametrize("objective", [NextSentence(), SentenceOrder()])
def test_loss_against_numpy(objective):
    (label,) = objective.needs
    logits = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32) * 4
    labels = np.array([0, 1, -1, 1, 0, -1], np.int32)
    found = objective.loss(api.Outputs(None, None, {"pair": logits}, {}), {label: labels})
    rows = labels >= 0
    exact = logits[rows].astype(np.float64)
    entropy = np.log(np.exp(exact).sum(1)) - exact[np.arange(4), labels[rows]]
    np.testing.assert_allclose(found["loss"].sum, entropy.sum(), rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"].sum, (exact.argmax(1) == labels[rows]).sum())
    assert found["loss"].weight == found["accuracy"].weight == 4
    np.testing.assert_allclose(found["loss"].value, entropy.mean(), rtol=1e-6)


@pytest.mark.parametrize("objective", [NextSentence(), SentenceOrder()])
def test_without_a_label_there_is_no_gradient(objective):
    labels = {objective.needs[0]: np.array([-1, -1], np.int32)}

    def loss(logits):
        return objective.loss(api.Outputs(None, None, {"pair": logits}, {}), labels)["loss"].value

    value, gradient = jax.value_and_grad(loss)(np.ones((2, 2), np.float32))
    assert value == 0 and not gradient.any()


def test_refused_tasks():
    both = (MaskedLM(), NextSentence())
    with pytest.raises(BertJaxError, match=r"task.examples=.*pairs='sop'.*does not give; use PairSpec\(pairs='nsp'\)"):
        Pretraining(ENCODER, both, PairSpec(length=16, pairs="sop"))
    with pytest.raises(BertJaxError, match="next_sentence_label"):
        Pretraining(ENCODER, both, PairSpec(length=16, pairs="none"))
    with pytest.raises(BertJaxError, match="'pooler' in task.encoder.with_heads"):
        Pretraining(dataclasses.replace(ENCODER, with_heads=("mlm",)), both, PairSpec(length=16))
    with pytest.raises(BertJaxError, match="at least one"):
        Pretraining(ENCODER, (), PairSpec(length=16))
    with pytest.raises(BertJaxError, match="each kind once"):
        Pretraining(ENCODER, (MaskedLM(), MaskedLM(rate=0.2)), PairSpec(length=16))
    with pytest.raises(BertJaxError, match="length 17 exceeds the position table, task.encoder.max_length 16"):
        Pretraining(ENCODER, (MaskedLM(),), PairSpec(length=17))


@pytest.fixture(scope="module")
def task(tiny_store):
    return PretrainingTask(
        Pretraining(ENCODER, (MaskedLM(), NextSentence()), PairSpec(length=16)), TokenStore(tiny_store)
    )


def test_metrics_carry_the_names_of_their_objectives(task):
    batch = next(task.train_batches(4, 0))
    losses = jax.jit(lambda b, key: task.loss(task.init(key), task.corrupt(b, key, None), None))(batch, jax.random.key(0))
    assert set(losses.terms) == {"mlm_loss", "nsp_loss"}
    assert set(losses.metrics) == {"mlm_accuracy", "mlm_loss", "nsp_accuracy", "nsp_loss", "tokens"}
    assert losses.metrics["tokens"].sum == batch["attention_mask"].sum()
    assert abs(losses.terms["mlm_loss"].value - np.log(96)) < 0.2  # small weights: nearly uniform over the vocabulary


def test_model_without_room_for_the_vocabulary_is_refused(tiny_store):
    small = dataclasses.replace(ENCODER, vocab_size=50)
    with pytest.raises(BertJaxError, match=r"vocabulary of 50: set task.encoder.vocab_size=\d\d"):
        PretrainingTask(Pretraining(small, (MaskedLM(),), PairSpec(length=16)), TokenStore(tiny_store))


@pytest.mark.parametrize(("init", "advice"), [
    (None, "task.encoder.vocab_size={} leaves them out"),
    ("runs/e1", "runs/e1 has them too; from scratch, task.encoder.vocab_size={} leaves them out"),
])
def test_rows_that_no_piece_uses_are_warned_of(tiny_store, monkeypatch, caplog, init, advice):
    """Once, before the first step; rows that only round the vocabulary up are none."""
    monkeypatch.setattr(pretraining, "load", lambda checkpoint: None)
    monkeypatch.setattr(pretraining, "_run_with_objectives", lambda *_: None)
    monkeypatch.setattr(pretraining, "warm_start", lambda *_: None)
    pieces = TokenStore(tiny_store).tokenizer.vocab_size
    for size in (pieces, 96, 8192):
        task = Pretraining(dataclasses.replace(ENCODER, vocab_size=size), (MaskedLM(),), PairSpec(length=16), init=init)
        task = PretrainingTask(task, TokenStore(tiny_store))
        assert not caplog.messages
        task.start(jax.random.key(0))
    assert caplog.messages == [
        f"the model has a vocabulary of 8192, the tokenizer of the data {pieces} pieces: {8192 - pieces} rows are trained for "
        f"nothing; {advice.format(pieces)}"
    ]


def test_majority_baselines_count_labels_that_weigh(tiny_store):
    """Of every objective, those of another turn apart."""
    objectives = (MaskedLM(), NextSentence())
    task = Pretraining(ENCODER, objectives, PairSpec(length=16), (Turn("other", objectives, PairSpec(length=16)),))
    task = PretrainingTask(task, TokenStore(tiny_store))
    batches = [
        {"mlm_labels": np.array([[7, 7, 9]]), "mlm_weights": np.array([[1.0, 0.0, 1.0]]),
         "next_sentence_label": np.array([[1, -1, -1, 0]])},
        {"mlm_labels": np.array([[9, 9, 8]]), "mlm_weights": np.array([[1.0, 0.0, 0.0]]),
         "next_sentence_label": np.array([[1, 1, -1, -1]])},
        {"mlm_labels": np.array([[5]]), "mlm_weights": np.array([[1.0]]), "next_sentence_label": np.array([-1]),
         "turn_other": np.zeros((1, 0), bool)},
    ]
    assert task.majority_baselines(batches) == {
        "mlm_majority_baseline": 2 / 3,  # labels 7, 9, 9
        "nsp_majority_baseline": 3 / 4,
        "other_mlm_majority_baseline": 1.0,
        "other_nsp_majority_baseline": 0.0,  # no label at all
    }
    assert task.majority_baselines([]) == {}
