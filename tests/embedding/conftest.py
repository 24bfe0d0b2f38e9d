"""A tiny random BERT over letters and a few words."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("query", "passage", "cat", "sat", "mat", "the", "on")


class Encoder(NamedTuple):
    params: dict[str, Any]
    config: EncoderConfig
    tokenizer: Tokenizer


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """Parameters far from their initial values, so that sequences differ; capitals are kept (two of them are pieces)."""
    pieces = [*SPECIALS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS, ":", ".", "A", "B", "[", "]"]
    config = EncoderConfig(
        vocab_size=len(pieces), embedding_width=16, hidden_width=16, layers=2, heads=4, ffn_width=24, max_length=64,
        with_heads=(),
    )  # fmt: skip
    noise = np.random.default_rng(0)

    def value(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return np.float32(centre + 0.3 * noise.standard_normal(leaf.shape))

    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(value, shapes)
    return Encoder(params, config, WordPieceTokenizer(pieces, lowercase=False))


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Texts of 0 to 50 tokens in no order of length; some repeat, some hold special pieces, capitals and accents."""
    rng = np.random.default_rng(1)
    made = [" ".join(rng.choice([*WORDS, *LETTERS], size)) for size in (7, 0, 1, 23, 12, 3, 50, 8, 8, 31, 2, 16)]
    return [*made, made[3], "the [MASK] sat [SEP] on", "  A mat . B ", "[mask] caf\u00e9", "\n"]
