"""The arithmetic of a step by formula against the products in the traced program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from bert_jax.data.pairs import PairSpec
from bert_jax.models import api, fused_attention, layers
from bert_jax.models.config import EncoderConfig, preset
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.planning.flops import products, state_traffic, task_work, work

BERT = EncoderConfig(
    vocab_size=1000, embedding_width=64, hidden_width=64, layers=3, heads=4, ffn_width=256, max_length=32, vocab_multiple=128
)
ALBERT = dataclasses.replace(BERT, embedding_width=32, share="all", layers=4)
RELATIVE = dataclasses.replace(BERT, positions="relative", mlm_transform=False, with_heads=("mlm",))
LENGTH, PREDICTIONS, ROWS = 32, 5, 2


def traced(config: EncoderConfig, backward: bool) -> float:
    params = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32) for name in ("input_ids", "segment_ids")}
    batch["masked_positions"] = jax.ShapeDtypeStruct((ROWS, PREDICTIONS), jnp.int32)

    def loss(params, batch):
        outputs = api.apply(params, config, batch, key=jax.random.key(0))
        return sum(logits.sum() for logits in outputs.logits.values())

    return products(jax.value_and_grad(loss) if backward else loss, params, batch) / ROWS


@pytest.mark.parametrize(
    "config", [BERT, ALBERT, dataclasses.replace(BERT, with_heads=("mlm",)), RELATIVE],
    ids=["bert", "albert", "without a pooler", "relative"],
)
def test_forward(config):
    assert work(config, LENGTH, PREDICTIONS).forward == pytest.approx(traced(config, False), rel=1e-9)


@pytest.mark.parametrize("remat", ["masks", "elementwise", "attention", "feed_forward", "full"])
@pytest.mark.parametrize("config", [BERT, ALBERT, RELATIVE], ids=["bert", "albert", "relative"])
def test_with_what_is_computed_again(config, remat):
    """The embeddings' inputs are ids, so that a few products have one gradient less: a hundredth at these sizes."""
    config = dataclasses.replace(config, remat=remat)
    found = work(config, LENGTH, PREDICTIONS)
    waves = 2 * LENGTH * LENGTH * config.hidden_width * config.heads * config.depth * (config.positions == "relative")
    # The waves of positions are no parameters: their product has one gradient.
    assert found.useful + found.repeated - waves == pytest.approx(traced(config, True), rel=0.01)


@pytest.mark.parametrize("remat", ["elementwise", "full"])
def test_a_task_costs_what_its_encoder_costs(remat):
    """Where the objectives are BERT's, counting and formula agree."""
    config = dataclasses.replace(BERT, remat=remat)
    task = PretrainingTask(Pretraining(config, (MaskedLM(), NextSentence()), PairSpec(LENGTH)), None)
    found, formula = task_work(task), work(config, LENGTH, PREDICTIONS)
    assert found.forward == pytest.approx(formula.forward, rel=1e-9)
    assert found.repeated == pytest.approx(formula.repeated, rel=0.05, abs=0.01 * formula.forward)
    assert (found.traffic, found.stored) == (formula.traffic, formula.stored)


@pytest.mark.parametrize(
    ("remat", "scores_again", "maps_again"), [("masks", 0, 0), ("elementwise", 0, 0), ("attention", 1, 0), ("full", 2, 12)]
)
def test_large_against_a_count_by_hand(remat, scores_again, maps_again):
    """BERT-large, 512 tokens: so many scores that attention is traced in pieces and its probabilities beside them, for nobody.
    A layer has four maps of D x D, two of D x 4 D, and two products with L x L."""
    encoder = preset("bert-large", remat=remat)
    found = task_work(PretrainingTask(Pretraining(encoder, (MaskedLM(), NextSentence()), PairSpec(512)), None))
    length, width, masked = 512, 1024, MaskedLM().predictions(512)
    assert 8 * 16 * length**2 > layers.MANY_SCORES
    scores, maps = 2 * length**2 * width, 2 * length * width**2
    heads = 2 * masked * width * (width + 30522) + 2 * width * (width + 2)
    assert found.forward == 24 * (2 * scores + 12 * maps) + heads == 339_984_228_352
    assert found.repeated == 24 * (scores_again * scores + maps_again * maps)


def test_packed_rows_cost_what_is_traced():
    """A pooled state and a pair of logits for each of the examples a row may have, and slots for the masks of each."""
    task = PretrainingTask(Pretraining(BERT, (MaskedLM(), NextSentence()), PairSpec(LENGTH, packing=6)), None)
    slots = MaskedLM().predictions(LENGTH, 6)
    found, formula = task_work(task), work(BERT, LENGTH, slots, 6)
    assert found.forward == pytest.approx(formula.forward, rel=1e-9)
    assert found.forward - work(BERT, LENGTH, slots).forward == 5 * 2 * 64 * (64 + 2)
    assert (found.traffic, found.stored) == (formula.traffic, formula.stored)
    assert formula.stored - work(BERT, LENGTH, slots).stored == 4 * LENGTH**2


def test_fused_attention_stores_no_scores_and_makes_them_again():
    config = dataclasses.replace(BERT, attention="fused", remat="elementwise")
    task = PretrainingTask(Pretraining(config, (MaskedLM(), NextSentence()), PairSpec(LENGTH)), None)
    found, formula, plain = task_work(task), work(config, LENGTH, PREDICTIONS), work(BERT, LENGTH, PREDICTIONS)
    assert found.forward == pytest.approx(plain.forward, rel=1e-9)  # a kernel is a program for one row: it must not be counted
    assert (found.repeated, found.traffic, found.stored) == (formula.repeated, formula.traffic, formula.stored)
    assert found.repeated == work(dataclasses.replace(BERT, remat="attention"), LENGTH, PREDICTIONS).repeated
    assert plain.stored - formula.stored == 4 * BERT.layers * BERT.heads * LENGTH**2
    assert formula.traffic < plain.traffic


@pytest.mark.parametrize("changes", [{}, {"positions": "relative", "mlm_transform": False, "with_heads": ("mlm",)}], ids=str)
@pytest.mark.parametrize("remat", ["elementwise", "full"])
def test_auto_is_what_the_devices_make_of_it(monkeypatch, remat, changes):
    """On Hopper the kernels, but for relative positions, which have none."""
    here = dataclasses.replace(BERT, attention="auto", compute_dtype="bfloat16", remat=remat, **changes)
    there = dataclasses.replace(here, attention="xla" if changes else "fused")
    objectives = (MaskedLM(),) if changes else (MaskedLM(), NextSentence())

    def found(encoder):
        return task_work(PretrainingTask(Pretraining(encoder, objectives, PairSpec(LENGTH)), None))

    expected, unfused = found(there), found(dataclasses.replace(here, attention="xla"))
    assert found(here) == unfused
    monkeypatch.setattr(fused_attention, "available", lambda: True)
    assert found(here) == expected and expected.forward == unfused.forward
    assert (expected.repeated > unfused.repeated) == (not changes)


def test_policies_repeat_more_and_keep_less():
    found = [work(dataclasses.replace(BERT, remat=remat), LENGTH, PREDICTIONS)
             for remat in ("masks", "elementwise", "attention", "feed_forward", "full")]
    repeated, stored = [one.repeated for one in found], [one.stored for one in found]
    assert repeated == sorted(repeated) and repeated[0] == 0 and len(set(repeated)) == 4  # what is elementwise is no product
    assert stored == sorted(stored, reverse=True) and len(set(stored)) == 5


def test_published_figure():
    """BERT-large at 512 tokens: 6 operations a parameter and token, and the attention core on top (Narayanan et al. 2021)."""
    config = preset("bert-large", with_heads=("mlm",))
    per_token = work(config, 512, 77).useful / 512
    weights = 24 * 12 * 1024**2
    assert per_token == pytest.approx(6 * weights * (1 + 512 / (6 * 1024)), rel=0.03)


def test_state_traffic_grows_with_micro_batches():
    assert state_traffic(100, 0, 2, 2) - state_traffic(100, 0, 1, 2) == 100 * (2 * 2 + 8)


def test_frozen_parameters_are_only_read():
    assert state_traffic(0, 100, 3, 2) == 100 * 3 * 2 * 2
    assert state_traffic(7, 100, 3, 2) == state_traffic(7, 0, 3, 2) + state_traffic(0, 100, 3, 2)
