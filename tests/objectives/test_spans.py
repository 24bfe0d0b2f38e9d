"""SpanBERT's spans as masked language modelling hides them, and what it tells the span boundary objective of them."""

import jax
import numpy as np
import pytest

from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from tests.objectives.test_mlm import PIECES, make_batch, run

SPANS = MaskedLM(unit="span", replace="unit")


def test_boundaries_are_the_neighbours_outside():
    batch = make_batch([64] * 256 + [30] * 64, 64)
    out = run(SPANS, batch)
    chosen, special = out["chosen"], np.isin(batch["input_ids"], PIECES.special_ids)
    beside_special = 0
    for row in range(len(chosen)):
        for slot in np.flatnonzero(out["mlm_weights"][row]):
            position = out["masked_positions"][row, slot]
            left, right, place = (out[f"span_{name}"][row, slot] for name in ("left", "right", "place"))
            assert left < position < right and position - left == place + 1
            assert chosen[row, left + 1 : right].all() and not chosen[row, left] and not chosen[row, right]
            beside_special += special[row, left] or special[row, right]
    assert beside_special


def test_spans_begin_at_words_and_end_with_them_but_for_the_last():
    batch = make_batch([64] * 512, 64, word_rate=0.4)
    out = run(SPANS, batch)
    maskable = batch["attention_mask"] & ~np.isin(batch["input_ids"], PIECES.special_ids)
    chosen, starts = out["chosen"], batch["word_starts"]
    begins = chosen & ~np.pad(chosen, ((0, 0), (1, 0)))[:, :-1]
    assert starts[begins].all()
    after = np.pad(chosen, ((0, 0), (1, 0)))[:, :-1] & ~chosen
    cut = after & maskable & ~starts
    assert (cut.sum(axis=1) <= 1).all() and cut.any(), "the budget cuts one span a row, as in the original"
    assert (chosen.sum(axis=1) == 10).all()  # 15% of 61, rounded up


def test_masks_of_static_examples_repeat_and_those_of_copies_differ(tiny_store):
    """``example_seeds`` decide, not the step: the same example has the same mask in every epoch, its copy another one."""
    encoder = EncoderConfig(vocab_size=96, embedding_width=16, hidden_width=16, layers=1, heads=2, ffn_width=16, max_length=64)
    for objective in (MaskedLM(), SPANS):
        task = PretrainingTask(Pretraining(encoder, (objective,), PairSpec(length=64, pairs="none")), TokenStore(tiny_store))
        batch = next(task.train_batches(8, 0))
        batch = {name: np.concatenate([rows, rows]) for name, rows in batch.items()}  # each example and a copy
        corrupt = jax.jit(task.corrupt)
        batch["example_seeds"] = np.arange(32, dtype=np.uint32).reshape(16, 2)
        first, later = (corrupt(batch, jax.random.key(n), np.int32(n)) for n in (1, 2))
        assert all(np.array_equal(first[name], later[name]) for name in ("input_ids", "masked_positions", "mlm_labels"))
        assert (first["masked_positions"][:8] != first["masked_positions"][8:]).any(axis=1).all()
        del batch["example_seeds"]
        first, later = (corrupt(batch, jax.random.key(n), np.int32(n)) for n in (1, 2))
        assert (first["masked_positions"] != later["masked_positions"]).any(axis=1).all()


@pytest.mark.parametrize("length", [8, 33])
def test_short_rows(length):
    out = run(SPANS, make_batch(np.arange(length + 1), length))
    assert (out["mlm_weights"].sum(axis=1)[3:] >= 1).all()
