"""Dropout masks, made visible: with the right weights the sign of a hidden state says whether a unit was kept."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from bert_jax.models import api
from bert_jax.models.config import EncoderConfig

LOUD = 1e3
PRIVATE = EncoderConfig(
    vocab_size=11, embedding_width=16, hidden_width=16, layers=4, heads=1, ffn_width=8, max_length=7, with_heads=(),
    dropout=0.5, attention_dropout=0.0,
)
SHARED = dataclasses.replace(PRIVATE, share="all")
BATCH = {"input_ids": np.random.default_rng(0).integers(0, 11, (8, 7)).astype(np.int32)}


def silent_params(config: EncoderConfig) -> api.Params:
    """Every kernel and bias of the layers is zero, so a layer only normalises."""
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))

    def value(path, leaf):
        name, noise = path[-1].key, np.random.default_rng(1).standard_normal(leaf.shape)
        filled = noise if path[0].key == "embeddings" else np.zeros(leaf.shape)
        return np.float32(np.ones(leaf.shape) if name == "scale" else filled)

    return jax.tree_util.tree_map_with_path(value, shapes)


@functools.partial(jax.jit, static_argnames="config")
def hidden_states(params, config, key):
    return api.apply(params, config, BATCH, key=key, collect=("hidden_states",)).collected["hidden_states"]


def unit_masks(config: EncoderConfig, part: str, key) -> np.ndarray:
    """Which units the hidden dropout of a block kept, bool [depth, B, L, D]."""
    params = silent_params(config)
    # A constant output drowns the residual: after the norm, a kept unit is positive and a dropped one negative.
    params[part]["output"]["bias"] = np.full_like(params[part]["output"]["bias"], LOUD)
    return np.asarray(hidden_states(params, config, key)[1:] > 0)


def probability_masks(config: EncoderConfig, key) -> np.ndarray:
    """Whether dropout kept more than half of each query's attention probabilities, bool [depth, B, L].

    Attention is uniform and every value is 1, so a context is the sum of the kept probabilities; L is odd: no ties.
    """
    config = dataclasses.replace(config, dropout=0.0, attention_dropout=0.5)
    params = silent_params(config)
    pattern = LOUD * np.resize([1.0, -1.0], config.hidden_width).astype(np.float32)  # of sum 0: survives the norm
    attention = params["attention"]
    attention["value"]["bias"] += 1.0
    attention["output"]["kernel"] += pattern / config.head_width
    attention["output"]["bias"] -= pattern
    return np.asarray(hidden_states(params, config, key)[1:, :, :, 0] > 0)


def masks(config: EncoderConfig, kind: str, key) -> np.ndarray:
    if kind == "probabilities":
        return probability_masks(config, key).reshape(config.depth, -1)
    return unit_masks(config, kind, key).reshape(config.depth, -1)


def assert_independent(a: np.ndarray, b: np.ndarray) -> None:
    """Two fair coins agree half of the time: within five deviations."""
    assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(a.size)


@pytest.mark.parametrize("config", (PRIVATE, SHARED), ids=("private", "shared"))
@pytest.mark.parametrize("kind", ("attention", "feed_forward", "probabilities"))
def test_masks_differ_from_layer_to_layer_and_key_to_key(config, kind):
    first, again, other = (masks(config, kind, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    for mask in first:
        assert abs(mask.mean() - 0.5) < 5 * 0.5 / np.sqrt(mask.size)
    for a, b in itertools.combinations([*first, *other], 2):
        assert_independent(a, b)


def test_masks_differ_between_blocks_and_embeddings():
    key = jax.random.key(0)
    embeddings = np.asarray(hidden_states(silent_params(SHARED), SHARED, key)[0] != 0).reshape(1, -1)
    assert abs(embeddings.mean() - 0.5) < 5 * 0.5 / np.sqrt(embeddings.size)
    every = np.concatenate([embeddings, masks(SHARED, "attention", key), masks(SHARED, "feed_forward", key)])
    for a, b in itertools.combinations(every, 2):
        assert_independent(a, b)


def test_inner_layers_and_groups_have_their_own_masks():
    config = dataclasses.replace(SHARED, layers=2, groups=2, inner_layers=2)
    for a, b in itertools.combinations(masks(config, "attention", jax.random.key(0)), 2):
        assert_independent(a, b)


def test_no_key_means_no_dropout():
    params = silent_params(SHARED)
    without = dataclasses.replace(SHARED, dropout=0.0, attention_dropout=0.0)
    silent = hidden_states(params, SHARED, None)
    np.testing.assert_array_equal(silent, hidden_states(params, SHARED, None))
    np.testing.assert_allclose(silent, hidden_states(params, without, jax.random.key(0)), atol=1e-6)
