"""Embedding texts: batches, order, truncation, prompts, special pieces and every refusal, on a tiny random encoder."""

import copy
import dataclasses
import functools
import json
import logging
import threading

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.embedding import sentence
from bert_jax.embedding.sentence import embed
from bert_jax.embedding.settings import Prompt, SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api

PROMPTS = (Prompt("query", "query : "), Prompt("none", ""))
EVERY = SentenceSettings(pooling=("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"))


@pytest.fixture(autouse=True)
def row(request, monkeypatch):
    """Texts share rows of 64 tokens, though by themselves they would not in so narrow an encoder, or of what a test says."""
    monkeypatch.setattr(sentence, "cheapest_row", lambda *_: getattr(request, "param", 64))


@pytest.fixture
def run(encoder):
    return functools.partial(embed, *encoder)


_apply = jax.jit(api.apply, static_argnums=1)


def one_by_one(encoder, texts, mode, special=True):
    """Each text alone, without padding or bucket: the plain way to the same numbers, for cls and mean."""
    rows = []
    for text in texts:
        ids = encoder.tokenizer.build(encoder.tokenizer.encode(text, special=special).ids)[0]
        hidden = np.asarray(_apply(encoder.params, encoder.config, {"input_ids": ids[None]}).hidden)[0]
        rows.append({"cls": hidden[0], "mean": hidden.mean(axis=0)}[mode])
    return np.array(rows)


@pytest.mark.parametrize("mode", ("cls", "mean"))
def test_batches_change_nothing(encoder, run, sentences, mode):
    texts = sentences[1:9]
    vectors = run(SentenceSettings((mode,)), texts, batch_size=3)
    assert vectors.shape == (8, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, one_by_one(encoder, texts, mode), atol=1e-5)


def test_order_does_not_depend_on_batches(run, sentences):
    whole = run(EVERY, sentences)
    assert len(np.unique(whole.round(4), axis=0)) >= len(sentences) - 2  # one repeats, two are empty
    for batch_size in (1, 4, 7):
        np.testing.assert_allclose(run(EVERY, sentences, batch_size=batch_size), whole, atol=1e-5)
    np.testing.assert_allclose(run(EVERY, sentences[::-1]), whole[::-1], atol=1e-5)


def test_tokenised_in_portions(run, sentences, monkeypatch):
    whole = run(EVERY, sentences)
    monkeypatch.setattr(sentence, "_TOKENISED_AT_ONCE", 5)
    np.testing.assert_allclose(run(EVERY, sentences), whole, atol=1e-5)


def test_tokenised_in_a_thread(encoder, sentences):
    """So that the device computes meanwhile."""
    threads = []

    class Watched(type(encoder.tokenizer)):
        def encode_batch(self, texts, *, special=False):
            threads.append(threading.current_thread())
            return super().encode_batch(texts, special=special)

    watched = copy.copy(encoder.tokenizer)
    watched.__class__ = Watched
    embed(encoder.params, encoder.config, watched, EVERY, sentences)
    assert threads and threading.main_thread() not in threads


@pytest.mark.parametrize("changes", ({}, {"positions": "relative", "segments": 0}), ids=("absolute", "relative"))
def test_texts_in_one_row_see_themselves_alone(encoder, sentences, changes):
    config = dataclasses.replace(encoder.config, **changes)
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.3 * noise.standard_normal(leaf.shape, np.float32), api.init(config, jax.random.key(0))
    )
    together = embed(params, config, encoder.tokenizer, EVERY, sentences, batch_size=len(sentences))
    alone = [embed(params, config, encoder.tokenizer, EVERY, [text], batch_size=2)[0] for text in sentences]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "width"),
    [({"lora_rank": 2}, 16), ({"read_layers": (0, 2)}, 16), ({"read_layers": (1, 2), "combine": "concatenate"}, 32)],
    ids=("lora", "mix", "concatenated"),
)
def test_every_parameter_that_states_depend_on(encoder, sentences, changes, width):
    """LoRA that has learnt something, a learnt mix of layers, layers side by side: the states that heads read."""
    config = dataclasses.replace(encoder.config, **changes)
    noise = np.random.default_rng(2)
    further = {part: jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape, np.float32), tree)
               for part, tree in api.init(config, jax.random.key(0)).items() if part not in encoder.params}
    changed = encoder._replace(params=encoder.params | further, config=config)
    vectors = embed(*changed, SentenceSettings(("mean",)), sentences, batch_size=len(sentences))
    assert vectors.shape == (len(sentences), width)
    np.testing.assert_allclose(vectors, one_by_one(changed, sentences, "mean"), atol=1e-5)
    if width == 16:
        assert np.abs(vectors - embed(*encoder, SentenceSettings(("mean",)), sentences)).max() > 0.1


def test_normalised(run, sentences):
    plain, unit = run(EVERY, sentences), run(dataclasses.replace(EVERY, normalize=True), sentences)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)


def test_nothing_and_empty_texts(run):
    assert run(EVERY, []).shape == (0, 16 * 6)
    empty = run(SentenceSettings(), ["", "the cat", " \t"])
    assert np.isfinite(empty).all()
    np.testing.assert_array_equal(empty[0], empty[2])
    assert np.abs(empty[0] - empty[1]).max() > 0.1


# All in shared rows; 4, 8 ... 32, 48 and 64 tokens.
@pytest.mark.parametrize(("row", "shapes"), ((64, 1), (None, 10)), indirect=["row"])
def test_few_shapes_are_compiled(run, row, shapes):
    texts = ["the " * n for n in range(1, 60)]
    settings = SentenceSettings(("cls", "lasttoken"))  # of no other test: nothing is compiled yet
    before = sentence._sentence_vectors._cache_size()
    run(settings, texts, batch_size=2)
    assert 1 <= sentence._sentence_vectors._cache_size() - before <= shapes
    compiled = sentence._sentence_vectors._cache_size()
    run(settings, texts[::-1], batch_size=2)
    assert sentence._sentence_vectors._cache_size() == compiled


@pytest.mark.parametrize("limit", (3, 6, 64))
def test_truncation(run, caplog, limit):
    settings = dataclasses.replace(EVERY, max_length=limit)
    kept = min(limit, 64) - 2
    texts = ["cat " * kept, "the cat sat", "cat " * (kept + 1), "cat " * 500]
    with caplog.at_level(logging.WARNING, "bert_jax"):
        vectors = run(settings, texts)
    cut = 3 if limit == 3 else 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{cut} of 4 texts have more than {limit} tokens: the rest of them was cut"
    ]
    np.testing.assert_allclose(vectors[2:], vectors[:1].repeat(2, axis=0), atol=1e-5)


def test_position_table_limits_too(run, caplog):
    run(dataclasses.replace(EVERY, max_length=512), ["cat " * 100])
    assert "1 of 1 texts have more than 64 tokens" in caplog.text


def test_no_warning_without_truncation(run, sentences, caplog):
    run(EVERY, sentences)
    assert not caplog.records


def test_special_pieces_in_a_text(encoder, run):
    texts = ["the [MASK] sat", "[SEP][CLS] cat [UNK]"]
    vectors = run(SentenceSettings(), texts)
    np.testing.assert_allclose(vectors, one_by_one(encoder, texts, "mean"), atol=1e-5)
    assert np.abs(vectors - one_by_one(encoder, texts, "mean", special=False)).max() > 0.01


def test_lowercase_leaves_special_pieces_alone(run):
    lower = SentenceSettings(lowercase=True)
    np.testing.assert_array_equal(run(lower, ["A [MASK] B the MAT"]), run(lower, ["a [MASK] b the mat"]))
    plain = run(SentenceSettings(), ["A [MASK] B the MAT", "a [MASK] b the mat"])
    np.testing.assert_array_equal(run(lower, ["A [MASK] B the MAT"]), plain[1:])
    assert np.abs(plain[0] - plain[1]).max() > 0.01


def test_prompts(run):
    settings = SentenceSettings(prompts=PROMPTS)
    asked = run(settings, ["cat", "mat"], prompt="query")
    np.testing.assert_array_equal(asked, run(settings, ["query : cat", "query : mat"]))
    default = dataclasses.replace(settings, default_prompt="query")
    np.testing.assert_array_equal(asked, run(default, ["cat", "mat"]))
    np.testing.assert_array_equal(run(default, ["cat"], prompt="none"), run(settings, ["cat"]))


def test_prompt_left_out_of_pooling(encoder, run):
    texts = ["cat", "the mat"]
    settings = SentenceSettings(("mean",), prompts=PROMPTS, include_prompt=False)
    vectors = run(settings, texts, prompt="query")
    for text, vector in zip(texts, vectors, strict=True):
        ids = encoder.tokenizer.build(encoder.tokenizer.encode("query : " + text).ids)[0]
        hidden = np.asarray(api.apply(encoder.params, encoder.config, {"input_ids": ids[None]}).hidden)[0]
        np.testing.assert_allclose(vector, hidden[3:].mean(axis=0), atol=1e-5)  # [CLS] query :
    np.testing.assert_array_equal(run(settings, texts), run(SentenceSettings(("mean",)), texts))


@pytest.mark.parametrize(
    ("texts", "arguments", "complaint"),
    [
        ("the cat", {}, "texts is a single string"),
        (["cat", None], {}, "text 1 is a NoneType, not a string"),
        (["cat", b"cat"], {}, "text 1 is a bytes, not a string"),
        (["a\ud800"], {}, "text 0 holds a lone surrogate at character 1"),
        (["cat"], {"prompt": "document"}, "no prompt is called 'document': there are 'query', 'none'"),
        (["cat"], {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_refusals(run, texts, arguments, complaint):
    with pytest.raises(BertJaxError, match=complaint):
        run(SentenceSettings(prompts=PROMPTS), texts, **arguments)


def test_prompt_without_room_for_text(run):
    settings = SentenceSettings(max_length=4, prompts=PROMPTS, include_prompt=False)
    with pytest.raises(BertJaxError, match="'query : ' fills all 4 tokens"):
        run(settings, ["cat"], prompt="query")
    assert run(dataclasses.replace(settings, max_length=5), ["cat"], prompt="query").shape == (1, 16)


def test_encoder_without_room_for_text(encoder):
    short = dataclasses.replace(encoder.config, max_length=2)
    with pytest.raises(BertJaxError, match="takes 2 tokens at most"):
        embed(encoder.params, short, encoder.tokenizer, EVERY, ["the cat"])


def test_tokenizer_of_another_encoder(encoder):
    small = dataclasses.replace(encoder.config, vocab_size=20)
    with pytest.raises(BertJaxError, match="token id .* is beyond the vocabulary of 20"):
        embed(encoder.params, small, encoder.tokenizer, EVERY, ["the cat"])


def test_the_verb_takes_a_model_or_its_path(encoder, run, tmp_path, caplog):
    settings = SentenceSettings(pooling=("cls", "max"), normalize=True, max_length=8, prompts=PROMPTS)
    model = Model(*encoder, settings)
    bert_jax.save(model, tmp_path / "st", format="sentence-transformers")
    texts = ["the cat sat", "on the mat the cat sat on the mat"]
    expected = run(settings, texts, prompt="query")
    for one in (model, tmp_path / "st", str(tmp_path / "st")):
        found = bert_jax.embed(one, texts, prompt="query")
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32 and "never said" not in caplog.text


def test_the_verb_takes_the_mean_where_nothing_was_said(encoder, tmp_path, caplog):
    model = Model(*encoder)
    found = bert_jax.embed(model, ["the cat sat"])
    np.testing.assert_allclose(found, one_by_one(encoder, ["the cat sat"], "mean"), atol=1e-5)
    assert caplog.messages == ["how this model makes sentence embeddings was never said: they are means over the tokens"]
    with pytest.raises(BertJaxError, match="this model has no tokenizer beside its weights"):
        bert_jax.embed(model._replace(tokenizer=None), ["the"])
    with pytest.raises(BertJaxError, match="texts is a single string: give a list of texts"):
        bert_jax.embed("absent", "the")


def test_the_verb_does_as_sentence_transformers_where_nothing_was_said(encoder, tmp_path):
    theirs = pytest.importorskip("sentence_transformers")
    bert_jax.save(Model(*encoder), tmp_path / "bare")
    texts = ["the cat sat", "on the mat"]
    expected = theirs.SentenceTransformer(str(tmp_path / "bare"), device="cpu").encode(texts)
    np.testing.assert_allclose(bert_jax.embed(tmp_path / "bare", texts), expected, atol=1e-5)
    settings = json.loads((tmp_path / "bare" / "tokenizer_config.json").read_text())
    (tmp_path / "bare" / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 4}))
    cut = theirs.SentenceTransformer(str(tmp_path / "bare"), device="cpu").encode(texts)
    assert np.abs(cut - expected).max() > 1e-3
    np.testing.assert_allclose(bert_jax.embed(tmp_path / "bare", texts), cut, atol=1e-5)
