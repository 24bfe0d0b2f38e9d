"""Guesses against a softmax in NumPy, and the texts that are refused."""

import dataclasses

import jax
import numpy as np
import pytest

from bert_jax import fill_mask as module
from bert_jax.errors import BertJaxError
from bert_jax.fill_mask import fill_mask
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcdefghij", "the", "cat", "##s", "."])
CONFIG = EncoderConfig(
    vocab_size=TOKENIZER.vocab_size, embedding_width=16, hidden_width=16, layers=1, heads=2, ffn_width=16, max_length=12,
    vocab_multiple=8, with_heads=("mlm",),
)


@pytest.fixture(scope="module")
def params():
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(CONFIG, jax.random.key(0)))
    return jax.tree.map(lambda x: np.float32(0.5 * noise.standard_normal(x.shape)), shapes)


def test_ranking_is_the_softmax_over_ordinary_pieces(params):
    found = fill_mask(params, CONFIG, TOKENIZER, "The [MASK] cats [MASK].", top=6)
    text = ["[CLS]", "the", "[MASK]", "cat", "##s", "[MASK]", ".", "[SEP]"]
    ids = np.array([[TOKENIZER.piece_id(piece) for piece in text]], np.int32)
    logits = np.asarray(api.apply(params, CONFIG, {"input_ids": ids}).logits["mlm"], np.float64)[0, [2, 5]]
    ordinary = [i for i in range(TOKENIZER.vocab_size) if i not in TOKENIZER.special_ids]
    for guesses, row in zip(found, logits, strict=True):
        expected = np.exp(row[ordinary]) / np.exp(row[ordinary]).sum()
        best = np.argsort(-expected)[:6]
        assert [guess.piece for guess in guesses] == [TOKENIZER.pieces[ordinary[i]] for i in best]
        np.testing.assert_allclose([guess.probability for guess in guesses], expected[best], rtol=1e-4)
    assert found[0] != found[1]


def test_all_pieces_and_no_special_ones(params):
    (guesses,) = fill_mask(params, CONFIG, TOKENIZER, "the [MASK]", top=1000)
    offered = {guess.piece for guess in guesses if guess.probability > 0}
    assert offered == set(TOKENIZER.pieces) - set(SPECIALS)
    assert sum(guess.probability for guess in guesses) == pytest.approx(1)
    assert not set(SPECIALS) & {guess.piece for guess in guesses}, "pieces that cannot be guessed are not listed"


def test_relative_positions_have_no_table_to_be_beyond():
    config = dataclasses.replace(CONFIG, positions="relative", mlm_transform=False)
    params = api.init(config, jax.random.key(0))
    (guesses,) = fill_mask(params, config, TOKENIZER, "[MASK]" + " a" * 2 * config.max_length)
    assert len(guesses) == 5


def test_refused_texts(params):
    with pytest.raises(BertJaxError, match=r"the text has no \[MASK\]: put one"):
        fill_mask(params, CONFIG, TOKENIZER, "the cat")
    with pytest.raises(BertJaxError, match="^0 guesses for a mask: at least 1$"):
        fill_mask(params, CONFIG, TOKENIZER, "the [MASK]", top=0)
    with pytest.raises(BertJaxError, match="the text has 13 tokens, the position table 12"):
        fill_mask(params, CONFIG, TOKENIZER, "[MASK]" + " a" * 10)
    with pytest.raises(BertJaxError, match="no masked-language-model head$"):
        fill_mask({"embeddings": params["embeddings"]}, CONFIG, TOKENIZER, "[MASK]")
    with pytest.raises(BertJaxError, match="no masked-language-model head: of an ELECTRA the generator has one, which RUN#gen"):
        fill_mask({"embeddings": params["embeddings"], "discriminator": {}}, CONFIG, TOKENIZER, "[MASK]")


def test_texts_of_one_length_share_a_program(params):
    before = module._logits._cache_size()
    for text in ("the [MASK]", "a [MASK]", "[MASK] cat"):
        fill_mask(params, CONFIG, TOKENIZER, text)
    assert module._logits._cache_size() <= before + 1
