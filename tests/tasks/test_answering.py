"""Answers in rows that texts share: those of rows of their own, in the order of the texts, with hardly any padding."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax import predicting
from bert_jax.data import best_fit
from bert_jax.embedding import sentence
from bert_jax.embedding.sentence import embed
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.tasks import answering
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classifies
from bert_jax.tasks.regression import Values
from bert_jax.tasks.tagging import Tags
from tests.tasks.plain_answers import predict

WORDS = "cat dog bird mat road tree red".split()
KINDS = {
    Classifies: (("red", "blue"), ("pooler", "classifier"), 1), Values: (("value",), ("pooler", "classifier"), 2),
    Tags: (("N", "V", "X"), ("tagger",), None),
}


@pytest.fixture(scope="module")
def longer(tiny_checkpoint):
    """``longer(kind, **changes)``: the tiny encoder with D 256, a position table of 200 and a head that has learnt nothing."""
    def made(kind, **changes):
        start, (labels, heads, _) = load(tiny_checkpoint), KINDS[kind]
        config = finetuned_encoder(start.config, labels, heads, init_std=0.15, max_length=200, hidden_width=256, **changes)
        params = jax.tree.map(np.asarray, api.init(config, jax.random.key(1)))
        return predicting.of_model(Model(params, config, start.tokenizer))

    return made


def rows_of(kind, count, longest, seed=0):
    rng, texts = np.random.default_rng(seed), KINDS[kind][2]

    def words():
        return rng.choice(WORDS, rng.integers(1, longest))

    return [tuple(words()) if texts is None else tuple(" ".join(words()) for _ in range(texts)) for _ in range(count)]


def shapes_of(ready, monkeypatch):
    """The shapes of ids that are computed from here on, in order."""
    seen, run = [], ready.predictor.run

    def looked_at(params, batch):
        seen.append(batch["input_ids"].shape)
        return run(params, batch)

    monkeypatch.setattr(ready.predictor, "run", looked_at)
    return seen


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_answers_are_those_of_rows_of_their_own(kind, longer, monkeypatch):
    """Some texts are longer than any shared row, and one chunk of the stream has two texts. Lengths are so few that it pays."""
    monkeypatch.setattr(answering, "LENGTHS", (16, 64))
    ready = longer(kind)
    rows = rows_of(kind, 254, 12) + rows_of(kind, 2, 150) + rows_of(kind, 2, 12)
    wanted, _ = predict(ready.predictor, ready.params, rows, (16, 64, 200))
    seen = shapes_of(ready, monkeypatch)
    found = list(answering.Answering(ready.predictor, 8).stream(ready.params, iter(rows)))
    assert [text for text, _ in found] == rows
    for (_, one), other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == (pytest.approx(other[name], abs=1e-4) if isinstance(value, float) else other[name])
    answers = [str(answer) for answer in wanted]
    assert len(set(answers)) > 50, "texts have answers of their own"
    (shared,) = {shape for shape in seen if shape[0] == 2}  # a quarter of the batch size
    assert shared[1] in best_fit.ROWS and seen.count(shared) > 10


def test_a_chunk_of_long_texts_alone_comes_after_short_ones(longer, monkeypatch):
    ready = longer(Classifies)
    rows = rows_of(Classifies, 256, 12) + [("cat " * 195,), ("dog " * 195,)]
    seen = shapes_of(ready, monkeypatch)
    found = list(answering.Answering(ready.predictor, 8).stream(ready.params, iter(rows)))
    assert len(found) == 258 and seen[-1] == (8, 200) and found[-1][1] != found[-2][1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_labelled_examples_as_an_evaluation_has_them(kind, longer):
    ready, rows = longer(kind), rows_of(kind, 200, 12)
    encoded = ready.predictor.encode(rows)
    wanted = answering.Answering(ready.predictor, 8)
    wanted = wanted.outputs(ready.params, encoded, wanted.shapes(encoded)._replace(shared=None))
    labels = {Classifies: {"label": np.zeros(200, np.int32)}, Values: {"value": np.zeros(200, np.float32)}, Tags: {}}[kind]
    tags = {"labels": [np.zeros(len(ids), np.int32) for ids in encoded.tokens["input_ids"]]} if kind is Tags else {}
    labelled = encoded._replace(rows=labels, tokens=encoded.tokens | tags)
    several = answering.Answering(ready.predictor, 8)
    shapes = several.shapes(labelled)
    found = several.outputs(ready.params, labelled, shapes)
    assert shapes.shared and found.keys() == wanted.keys()
    for name, values in found.items():
        for one, other, ids in zip(values, wanted[name], encoded.tokens["input_ids"], strict=True):
            np.testing.assert_allclose(one, other[: len(ids)] if kind is Tags else other, atol=1e-4)


@pytest.mark.slow
def test_a_stream_changes_its_row_where_that_saves_much(longer, monkeypatch):
    """Sorted by length: the first chunks have rows that would cost later ones a tenth more."""
    ready = longer(Classifies)
    rows = [(f"{'cat ' * words}",) for words in np.sort(np.random.default_rng(0).integers(1, 60, 4 * 32 * 32))]
    seen = shapes_of(ready, monkeypatch)
    found = list(answering.Answering(ready.predictor, 32).stream(ready.params, iter(rows)))
    assert len(found) == len(rows) and 2 <= len({shape for shape in seen if shape[0] == 8}) <= 4


def test_vectors_of_passages(longer):
    """Passages of some fifty tokens share rows that hold two or three; vectors are those of calls with one text."""
    ready = longer(Classifies)
    texts = [" ".join(row[0].split() * 4) for row in rows_of(Classifies, 1200, 20)]
    settings = SentenceSettings(("mean", "cls"))

    def run(texts, batch_size):
        return embed(ready.params, ready.predictor.config, ready.predictor.tokenizer, settings, texts, batch_size=batch_size)

    before = sentence._sentence_vectors._cache_size()
    vectors = run(texts, 32)
    assert 1 <= sentence._sentence_vectors._cache_size() - before <= 4  # and three lengths at most of what is left over
    for k in (0, 1, 600, 1199):
        np.testing.assert_allclose(vectors[k], run(texts[k : k + 1], 1)[0], atol=1e-4)


def test_there_is_hardly_any_padding(longer, monkeypatch):
    ready = longer(Classifies)
    rows = rows_of(Classifies, 512, 12)
    encoded = ready.predictor.encode(rows)
    seen = shapes_of(ready, monkeypatch)
    list(answering.Answering(ready.predictor, 16).stream(ready.params, iter(rows)))
    assert len(set(seen)) == 1
    tokens, positions = sum(map(len, encoded.tokens["input_ids"])), sum(np.prod(shape) for shape in seen)
    assert tokens / positions > 0.95


@pytest.mark.parametrize("count, longest", [(7, 12), (64, 150)])
def test_few_texts_and_long_ones_have_rows_of_their_own(longer, monkeypatch, count, longest):
    ready = longer(Values)
    rows = rows_of(Values, count, 12) if longest == 12 else [("cat " * 90, "dog " * 90)] * count
    seen = shapes_of(ready, monkeypatch)
    assert len(list(answering.Answering(ready.predictor, 8).stream(ready.params, iter(rows)))) == count
    assert {shape[0] for shape in seen} == {8}


def test_shapes_are_compiled_once_in_a_stream(longer):
    ready = longer(Tags)
    ready.predictor.__dict__.pop("run", None)
    sizes = []
    for _ in answering.Answering(ready.predictor, 4).stream(ready.params, iter(rows_of(Tags, 600, 12))):
        sizes.append(ready.predictor.run._cache_size())
    assert set(sizes) == {1}


def test_several_devices_have_equal_parts(longer, monkeypatch):
    from bert_jax.replicas import over

    ready = longer(Tags)
    rows = rows_of(Tags, 70, 12)
    wanted = list(answering.Answering(ready.predictor, 8).stream(ready.params, iter(rows)))
    monkeypatch.setattr(answering, "replicas", lambda: over(jax.devices()[:4]))
    found = list(answering.Answering(ready.predictor, 8).stream(ready.params, iter(rows)))
    assert found == wanted


@pytest.mark.parametrize("changes", [{"read_layers": (1, 2), "combine": "concatenate"}, {"positions": "relative"}], ids=str)
def test_other_encoders(longer, changes):
    ready = longer(Classifies, **changes)
    rows = rows_of(Classifies, 40, 12)
    wanted, _ = predict(ready.predictor, ready.params, rows, (16, 64))
    found = [answer for _, answer in answering.Answering(ready.predictor, 8).stream(ready.params, iter(rows))]
    assert [a["probability"] for a in found] == pytest.approx([b["probability"] for b in wanted], abs=1e-4)
    assert dataclasses.replace(ready.predictor.config, **changes) == ready.predictor.config
