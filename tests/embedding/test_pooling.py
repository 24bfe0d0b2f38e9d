"""Pooling against the formulas written out row by row, and against sentence-transformers' own module."""

import numpy as np
import pytest

from bert_jax.embedding.sentence import pool
from bert_jax.embedding.settings import POOLINGS

LENGTHS = (1, 9, 4, 6)


def states() -> tuple[np.ndarray, np.ndarray]:
    """Hidden states [4, 9, 5], large and off-centre where they are padding, and the mask."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((len(LENGTHS), 9, 5)).astype(np.float32)
    mask = np.arange(9) < np.array(LENGTHS)[:, None]
    hidden[~mask] += 100
    return hidden, mask


def by_hand(row: np.ndarray, marked: np.ndarray, mode: str) -> np.ndarray:
    """One row [L, D], the positions that count, in float64."""
    chosen, positions = row[marked].astype(np.float64), np.flatnonzero(marked) + 1
    return {
        "cls": lambda: chosen[0],
        "max": lambda: chosen.max(axis=0),
        "mean": lambda: chosen.sum(axis=0) / len(chosen),
        "mean_sqrt_len_tokens": lambda: chosen.sum(axis=0) / len(chosen) ** 0.5,
        "weightedmean": lambda: (positions @ chosen) / positions.sum(),
        "lasttoken": lambda: chosen[-1],
    }[mode]()


@pytest.mark.parametrize("first", (0, 1, 3))
@pytest.mark.parametrize("mode", POOLINGS)
def test_formula(mode, first):
    hidden, mask = states()
    mask = mask & (np.arange(9) >= first)
    pooled = np.asarray(pool(hidden, mask, (mode,)))
    for row, marked, found in zip(hidden, mask, pooled, strict=True):
        if marked.any():
            np.testing.assert_allclose(found, by_hand(row, marked, mode), rtol=1e-6, atol=1e-6)
        else:  # the prompt was longer than the text
            np.testing.assert_array_equal(found, row[0] if mode == "cls" else 0)


def test_several_are_concatenated_in_order():
    hidden, mask = states()
    pooled = np.asarray(pool(hidden, mask, ("max", "cls", "weightedmean")))
    parts = [np.asarray(pool(hidden, mask, (mode,))) for mode in ("max", "cls", "weightedmean")]
    np.testing.assert_array_equal(pooled, np.concatenate(parts, axis=1))


def test_half_precision_is_summed_in_float32():
    import jax.numpy as jnp

    hidden = jnp.full((1, 1000, 2), 1.01, jnp.bfloat16)
    pooled = pool(hidden, jnp.ones((1, 1000), bool), ("mean",))
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, np.float32(jnp.bfloat16(1.01)), rtol=1e-6)


@pytest.mark.parametrize("prompt_length", (0, 3))
@pytest.mark.parametrize("modes", [(mode,) for mode in POOLINGS] + [("lasttoken", "mean", "cls")], ids="+".join)
def test_same_as_sentence_transformers(modes, prompt_length):
    torch = pytest.importorskip("torch")
    pytest.importorskip("sentence_transformers", minversion="6", reason="compares with sentence-transformers 6")
    from sentence_transformers.sentence_transformer.modules import Pooling

    hidden, mask = (a[1:] for a in states())  # where the prompt fills a row, its maximum is -inf and ours 0
    features = {"token_embeddings": torch.tensor(hidden), "attention_mask": torch.tensor(mask).long()}
    module = Pooling(5, pooling_mode=modes, include_prompt=not prompt_length)
    theirs = module(features | {"prompt_length": prompt_length})["sentence_embedding"].numpy()
    ours = pool(hidden, mask & (np.arange(9) >= prompt_length), modes)
    np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6)
