"""Batches of labelled examples: every one once, little padding, few shapes; what is cut of texts that are too long."""

import dataclasses
import itertools
import logging

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data import randomness
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.tasks import batches as module
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.batches import Encoded, EvalBatches, TrainBatches, choose_lengths, encode, optimal_lengths
from bert_jax.tasks.classification import Classification, ClassificationTask
from bert_jax.tasks.shared_rows import SharedRows
from bert_jax.tasks.tables import Table
from tests.tiny_bert import get_config


def examples(count: int = 103, sizes=None) -> Encoded:
    sizes = np.random.default_rng(0).integers(1, 33, count) if sizes is None else sizes
    ids = [np.full(size, number, np.int32) for number, size in enumerate(sizes)]
    numbers = np.arange(len(ids), dtype=np.int32)
    return Encoded({"input_ids": ids, "segment_ids": [np.zeros_like(one) for one in ids]}, {"label": numbers}, numbers)


def questions(count: int, shortest: int, longest: int) -> Encoded:
    """Of two to four choices, whose tokens are their number; each question begins with a token of its own."""
    rng = np.random.default_rng(0)
    tokens = {"input_ids": [], "attention_mask": []}
    numbers = np.arange(count, dtype=np.int32)
    choices = rng.integers(2, 5, count).astype(np.int32)
    for number in numbers:
        sizes = np.where(np.arange(4) < choices[number], rng.integers(shortest, longest, 4), 0)
        mask = np.arange(sizes.max()) < sizes[:, None]
        ids = np.where(mask, np.arange(4)[:, None] + 1, 9).astype(np.int32)
        ids[mask[:, 0], 0] = 100 + number
        tokens["input_ids"].append(ids)
        tokens["attention_mask"].append(mask)
    return Encoded(tokens, {"choices": choices, "label": numbers}, numbers)


def test_every_epoch_has_every_example_once_and_little_padding():
    batches = TrainBatches(examples(96), (8, 16, 32), 4, None, 0, seed=1)
    made = [next(batches) for _ in range(96)]  # four epochs of four stretches
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


@pytest.mark.parametrize("kind", [TrainBatches, SharedRows])
def test_a_stretch_is_cut_once_and_at_once_where_a_run_goes_on(kind, monkeypatch):
    cuts = []
    monkeypatch.setattr(kind, "_cut", lambda self, chosen, cut=kind._cut: cuts.append(1) or cut(self, chosen))
    words = ((32,), 8, None, 0, (1, 2)) if kind is TrainBatches else (8, None, 0, (1, 2))
    batches, later = kind(examples(2048), *words), kind(examples(2048), *words)
    cuts.clear()
    made = [next(batches) for _ in range(2 * module.STRETCH + 3)]
    assert len(cuts) == 3 * 2, "three stretches, two seeds"
    later.set_state({"examples": 8 * (2 * module.STRETCH + 2)})
    assert all((values == made[-1][name]).all() for name, values in next(later).items()) and len(cuts) == 4 * 2


def test_padding_within_questions_is_padding():
    even, uneven = questions(1600, 20, 21), questions(1600, 3, 30)
    for data in (even, uneven):
        batches = TrainBatches(data, (32,), 16, None, 9, 1, 16)
        masks = [batch["attention_mask"] for batch in itertools.islice(batches, 100)]
        positions, real = (np.mean([of(mask) for mask in masks]) for of in (np.size, np.sum))
        assert positions == pytest.approx(batches.positions, rel=0.02)
        assert 1 - real / positions == pytest.approx(batches.padding, abs=0.02)
        assert batches.padding > 0.2, "a question of four choices beside one of two"
    assert TrainBatches(even, (32,), 16, None, 9, 1, 16).padding == pytest.approx(1 - even.rows["choices"].mean() / 4)


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
    tokenizer = TokenStore(tiny_store).tokenizer
    with caplog.at_level(logging.WARNING):
        made = encode(tokenizer, [("the cat", "a dog sat on the mat in the tree"), ("a", "b")], 10)
    assert "1 of 2 examples have more than 10 tokens" in caplog.text
    ids, segments = (made.tokens[name][0] for name in ("input_ids", "segment_ids"))
    assert len(ids) == 10 and tokenizer.decode(ids) == "[CLS] the cat [SEP] a dog sat on the [SEP]"
    assert segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_truncation_takes_single_tokens_from_the_longer():
    for first in range(1, 12):
        for second in range(1, 12):
            for room in range(2, first + second):
                a, b = first, second
                while a + b > room:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                assert module._longest_first(first, second, room) == [a, b], (first, second, room)


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 6), seed=st.integers(0, 5))
def test_every_example_comes_once_an_epoch(count, batch_size, seed):
    batches = TrainBatches(examples(count), (40,), batch_size, None, 0, seed)
    stretch = batches._stretch * batch_size  # within a stretch the order is by length: count at its borders
    assert stretch <= max(batch_size, count / 4)
    steps = np.lcm(count, stretch) // batch_size
    seen = np.concatenate([next(batches)["example"] for _ in range(steps)])
    assert (np.bincount(seen, minlength=count) == len(seen) // count).all()


def brute_force(longest, most):
    values = sorted({*longest})
    chosen = (c for n in range(1, most + 1) for c in itertools.combinations(values, n) if c[-1] == values[-1])
    return min(sum(min(length for length in lengths if length >= one) for one in longest) for lengths in chosen)


@settings(deadline=None, max_examples=150)
@given(longest=st.lists(st.integers(1, 12), min_size=1, max_size=12), most=st.integers(1, 5))
def test_lengths_are_the_best_there_are(longest, most):
    found = optimal_lengths(np.array(longest), most)
    assert len(found) == min(most, len(set(longest)))
    for n, lengths in enumerate(found, start=1):
        assert len(lengths) == n and list(lengths) == sorted(set(lengths)) and lengths[-1] == max(longest)
        padded = np.array(lengths)[np.searchsorted(lengths, longest)]
        assert (padded >= longest).all() and padded.sum() == brute_force(longest, n)


def test_as_few_lengths_as_are_needed():
    even = np.array([16] * 50 + [64] * 50)
    assert choose_lengths(even, even.sum(), 128, 16) == (16, 64)
    assert choose_lengths(even, even.sum(), 128, 1) == (64,)  # as good as one can be
    assert choose_lengths(np.array([20, 60]), 80, 62, 16) == (24, 62)  # never above the limit
    short = np.arange(3, 20)
    assert any(length % 8 for length in choose_lengths(short, short.sum(), 128, 16))  # multiples of 8 would not do
    assert len(choose_lengths(short, short.sum() * 0.5, 128, 4)) == 4  # cannot be reached at all


@pytest.mark.parametrize("kind", [TrainBatches, EvalBatches])
def test_chosen_lengths(kind):
    rng = np.random.default_rng(1)
    data = examples(sizes=np.minimum(rng.gamma(3, 5, 3000).astype(int) + 4, 60))
    made = kind(data, (60,), 16, None, 0, 7 if kind is TrainBatches else None, 12)
    other = kind(data, (60,), 16, np.arange(4, 8), 0, 7 if kind is TrainBatches else None, 12)
    assert len(made.lengths) <= 12 and made.lengths[-1] <= 60
    assert made.lengths.tolist() == other.lengths.tolist()  # the same on every process
    produced = list(itertools.islice(made, 300)) if kind is TrainBatches else list(made)
    assert {batch["input_ids"].shape[1] for batch in produced} <= {*made.lengths.tolist()}
    real, places = (sum(f(batch["attention_mask"]) for batch in produced) for f in (np.sum, np.size))
    assert 1 - real / places < 0.1
    assert kind is TrainBatches or len(made.lengths) <= -(-len(made) // 4)
    assert kind(data, (60,), 16, None, 0, 7 if kind is TrainBatches else None).lengths.tolist() == [60]
    assert kind(data, (30, 60), 16, None, 0, 7 if kind is TrainBatches else None, 12).lengths.tolist() == [30, 60]


def test_the_order_of_batches_says_nothing_of_length():
    batches = TrainBatches(examples(2048), (32,), 8, None, 0, 0, 8)
    longest = np.array([next(batches)["input_ids"].shape[1] for _ in range(128)])
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.3
    assert randomness.permute(np.arange(64), 64, randomness.key(0, 1, 0)).tolist() != list(range(64))


def test_batches_at_random_hold_short_and_long_examples():
    """With no more lengths than pay: each batch is padded to its longest, which is nearly always one of the longest of all."""
    data = examples(2048)
    sizes = np.array([len(ids) for ids in data.tokens["input_ids"]])
    deviations, seen = {}, {}
    for grouped in (True, False):
        batches = TrainBatches(data, (32,), 16, None, 0, 0, 16, group_by_length=grouped)
        made = [next(batches) for _ in range(128)]
        seen[grouped] = np.sort(np.concatenate([batch["example"] for batch in made]))
        deviations[grouped] = np.mean([sizes[batch["example"]].std() for batch in made])
        if not grouped:
            needed = np.array([sizes[batch["example"]].max() for batch in made])
            padding = 1 - sizes.sum() / sum(batch["input_ids"].size for batch in made)
            least = 1 - sizes.sum() / (16 * needed.sum())
            assert least <= padding < least + 0.02 and len(batches.lengths) <= 4
            assert batches.padding == pytest.approx(padding, abs=0.02)
    assert all(np.array_equal(examples, np.arange(2048)) for examples in seen.values()), "an epoch has all, once"
    assert deviations[True] < 0.2 * sizes.std() and deviations[False] > 0.9 * sizes.std()


@pytest.mark.parametrize(("keep", "lost"), [("start", "ends"), ("end", "beginnings"), ("both", "middles")])
def test_what_remains_of_a_long_text(tiny_store, caplog, keep, lost):
    tokenizer = TokenStore(tiny_store).tokenizer
    words = "the cat sat on the mat in the red tree"
    whole = tokenizer.encode_batch([words])[0]
    room = 8
    made = encode(tokenizer, [(words,), ("a dog",)], room + 2, keep)
    ids = made.tokens["input_ids"][0][1:-1]
    head = {"start": 8, "end": 0, "both": 2}[keep]
    assert len(whole) > room and len(ids) == room
    assert ids.tolist() == [*whole[:head], *whole[len(whole) - (room - head) :]]
    assert f"1 of 2 examples have more than 10 tokens: the {lost} of their texts were cut" in caplog.text
    assert len(caplog.records) == 1


def test_head_and_tail_are_those_of_the_paper():
    kept = module._kept(np.arange(1000), 510, "both")
    assert kept.tolist() == [*range(128), *range(1000 - 382, 1000)]
    assert module._kept(np.arange(3), 5, "end").tolist() == module._kept(np.arange(3), 3, "both").tolist() == [0, 1, 2]
    assert module._kept(np.arange(9), 1, "both").tolist() == [0]


def test_a_task_with_chosen_lengths_and_its_padding(tiny_store, tmp_path):
    rng = np.random.default_rng(0)
    words = "the cat dog sat on mat".split()
    rows = [f"{' '.join(rng.choice(words, rng.integers(1, 14)))}\t{'red' if k % 2 else 'blue'}\n" for k in range(300)]
    (tmp_path / "a.tsv").write_text("".join(rows))
    train, heldout = (Table(str(tmp_path / "a.tsv"), ("0",), "1", share=share) for share in ((0.0, 0.9), (0.9, 1.0)))
    encoder = get_config().task.encoder
    start = Model(api.init(encoder, jax.random.key(0)), encoder, TokenStore(tiny_store).tokenizer)
    config = Classification(
        finetuned_encoder(encoder, ("red", "blue")), "x", train, heldout, lengths=(16,), truncate="end", packing=False
    )
    task = ClassificationTask(config, start)
    assert task.predictor.truncate == "end"
    batches, held = task.train_batches(16, 0), task.eval_batches(16, None)
    assert 1 < len(batches.lengths) <= 16 and len(task.heldout.texts) + len(task.training.item) == 300 and len(held) >= 1
    batch = next(batches)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(task.init, jax.random.key(0)))
    metrics = jax.jit(task.loss)(params, batch, jax.random.key(1)).metrics
    assert np.isclose(metrics["padding"].value, 1 - batch["attention_mask"].mean())
    assert "padding" not in jax.eval_shape(lambda p, b: task.loss(p, b, None), params, batch).metrics
    with pytest.raises(BertJaxError, match="a.tsv has no labels: training and evaluation need them"):
        ClassificationTask(dataclasses.replace(config, data=Table(train.path, ("0",))), start).train_batches(16, 0)
    with pytest.raises(BertJaxError, match="task.shapes is 0"):
        dataclasses.replace(config, shapes=0)
