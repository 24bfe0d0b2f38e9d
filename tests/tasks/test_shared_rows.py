"""Short examples that share rows in training: each once, hardly any padding, one shape, the losses of rows of their own."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.best_fit import best_fit
from bert_jax.tasks import shared_rows
from bert_jax.tasks.batches import TrainBatches
from bert_jax.tasks.freelb import FreeLB
from bert_jax.tasks.shared_rows import Shape, SharedRows, batches_for_training, choose_shape, deal
from tests.tasks.test_batches import examples
from tests.tasks.tiny_tasks import gradient_of, make_task, scattered, updated

SIZES = np.random.default_rng(3).integers(1, 60, 403)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=12, max_size=96), st.integers(1, 6))
def test_batches_of_a_stretch_have_about_as_many_tokens(sizes, batches):
    sizes = np.sort(sizes)[len(sizes) % batches :]
    dealt = deal(sizes, batches)
    assert sorted(dealt.reshape(-1)) == list(range(len(sizes)))
    tokens = sizes[dealt].sum(axis=1)
    assert np.ptp(tokens) <= sizes.max()


@pytest.mark.parametrize("multiple", [1, 4])
def test_the_shape_holds_every_batch_in_the_fewest_positions(multiple, monkeypatch):
    monkeypatch.setattr(shared_rows, "SECOND", 1.0)  # never saved
    sizes = SIZES[:384].reshape(24, 16)
    shape, positions = choose_shape(sizes, 59, multiple)
    assert positions == shape.rows * shape.length
    assert shape.rows % multiple == 0 and shape.length % 8 == 0 and shape.length >= 64
    for batch in sizes:
        rows = best_fit(batch, shape.length, shape.most)
        assert rows.max() < shape.rows
    for length in range(64, 257, 8):  # no other row length would do with fewer positions
        rows = max(best_fit(batch, length, 16).max() + 1 for batch in sizes)
        assert -(-rows // multiple) * multiple * length >= shape.rows * shape.length
    assert choose_shape(sizes, 500)[0].length == 504  # an example longer than rows otherwise are


def test_a_few_batches_that_need_more_rows_do_not_decide_for_all():
    """All others have the rows that most need, and these one more."""
    usual, heavy = np.full((60, 32), 12), np.full((3, 32), 17)
    shape, positions = choose_shape(np.concatenate([usual, heavy]), 128)
    single = min((best_fit(heavy[0], length, 32).max() + 1) * length for length in range(128, 257, 8))
    rows = [int(best_fit(batch, *shape[1:]).max()) + 1 for batch in (usual[0], heavy[0])]
    assert rows == [shape.rows, shape.rows + 1]
    assert positions == pytest.approx(shape.length * (60 * rows[0] + 3 * rows[1]) / 63) and positions < 0.95 * single


def shared(seed=1, rows=None, multiple=1, batch_size=16):
    return SharedRows(examples(403, SIZES), batch_size, rows, 9, seed, multiple)


def test_every_epoch_has_every_example_once_with_its_tokens():
    data = examples(1600, np.resize(SIZES, 1600))
    batches = SharedRows(data, 20, None, 9, 1)
    made = [next(batches) for _ in range(160)]
    labels = np.concatenate([batch["label"][batch["label"] >= 0] for batch in made])
    assert (np.bincount(labels) == 2).all() and not np.array_equal(labels[:1600], labels[1600:])
    assert {batch["input_ids"].shape for batch in made} == {batches.shape[:2]}
    real, places = (sum(f(batch["attention_mask"]) for batch in made) for f in (np.sum, np.size))
    assert 1 - real / places < 0.09
    for batch in made:
        assert (batch["example"] == batch["label"]).all() and (batch["input_ids"][~batch["attention_mask"]] == 9).all()
        for row, place in zip(*np.nonzero(batch["example"] >= 0), strict=True):
            ids = data.tokens["input_ids"][batch["example"][row, place]]
            start = batch["example_starts"][row, place]
            span = slice(start, start + len(ids))
            assert (batch["input_ids"][row, span] == ids).all()
            assert (batch["position_ids"][row, span] == np.arange(len(ids))).all()
            mine = np.flatnonzero((batch["example_ids"][row] == place) & batch["attention_mask"][row])
            assert (mine == np.arange(span.start, span.stop)).all()


def test_training_goes_on_where_it_was_and_parts_are_those_of_the_whole():
    whole, part = shared(multiple=4), shared(rows=np.arange(4, 12), multiple=4)
    made = [next(whole) for _ in range(9)]
    part.set_state({"examples": 16 * 6})
    assert whole.shape.rows % 4 == 0
    quarter = whole.shape.rows // 4
    for batch in made[6:]:
        other = next(part)
        assert all((batch[name][quarter : 3 * quarter] == other[name]).all() for name in batch)
    assert part.get_state() == whole.get_state() == {"examples": 144}


def test_several_seeds_side_by_side_are_each_alone():
    both, alone = shared(seed=(4, 7)), [shared(seed=4), shared(seed=7)]
    for _ in range(30):
        together, apart = next(both), [next(one) for one in alone]
        assert together["input_ids"].shape == (2, *both.shape[:2])
        for number, batch in enumerate(apart):
            assert all((together[name][number] == batch[name]).all() for name in batch)
    assert not np.array_equal(apart[0]["label"], apart[1]["label"])


def test_a_batch_that_needs_more_rows_has_them():
    batches = shared(multiple=2)
    batches.shape = Shape(2, 64, batches.shape.most)
    batch = next(batches)
    assert len(batch["input_ids"]) > 2 and len(batch["input_ids"]) % 2 == 0 and (batch["example"] >= 0).sum() == 16


@pytest.mark.parametrize("kind", ["Classification", "Regression", "Tagging"])
@pytest.mark.parametrize("changes", [{}, {"positions": "relative"}], ids=["absolute", "relative"])
def test_losses_and_gradients_are_those_of_rows_of_their_own(kind, changes):
    still = {"dropout": 0.0, "attention_dropout": 0.0, **changes}
    packed, alone = (make_task(kind, fields={"packing": packing}, **still) for packing in (True, False))
    params = scattered(packed.start(jax.random.key(0)))
    together, apart = packed.train_batches(8, 0), alone.train_batches(24, 0)  # the whole data is the same set
    assert isinstance(together, SharedRows) and type(apart) is TrainBatches
    batch, whole = next(together), next(apart)
    chosen = np.isin(whole["example"], batch["example"][batch["example"] >= 0])
    assert chosen.sum() == 8 and batch["example_starts"].shape[1] > 1
    rows = {name: values[chosen] for name, values in whole.items()}
    (mine, losses), (theirs, expected) = gradient_of(packed, params, batch), gradient_of(alone, params, rows)
    for name, term in expected.terms.items():
        np.testing.assert_allclose(losses.terms[name].value, term.value, rtol=2e-6)
    assert losses.metrics["tokens"].weight == 8 and losses.metrics["tokens"].sum == rows["attention_mask"].sum()
    for ours, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5 * max(1e-3, float(np.abs(other).max())))


def test_on_any_mesh_and_in_micro_batches():
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    task = make_task(fields={"packing": True}, **still)
    (alone, _), (split, _) = updated(task), updated(task, sizes=(4, 1, 2), accumulate=2)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


def test_where_examples_do_not_share_rows():
    on = {"packing": True}
    for task in (
        make_task("QuestionAnswering", fields=on), make_task(tricks=(FreeLB(),), fields=on),
        make_task(fields={"packing": False}),
        make_task(fields=on | {"lengths": (8, 16)}),
    ):
        assert type(task.train_batches(8, 0)) is TrainBatches


@pytest.mark.parametrize(("sizes", "share"), [((114, 246), False), ((20, 110), True), ((4, 60), True)])
def test_rows_are_shared_unless_most_examples_are_too_long_for_it(sizes, share):
    data = examples(800, np.random.default_rng(0).integers(*sizes, 800))
    batches = batches_for_training(data, 16, None, 9, 1, 300, 16)
    assert isinstance(batches, SharedRows) is share
    made = [next(batches)["attention_mask"] for _ in range(50)]
    positions = np.mean([mask.size for mask in made])
    assert positions == pytest.approx(batches.positions, rel=0.03)
    assert 1 - sum(mask.sum() for mask in made) / (50 * positions) < 0.1  # what the run is promised
    for seed in ((1, 2), 2):  # the seed has no say in it: seeds share what is compiled
        assert type(batches_for_training(data, 16, None, 9, seed, 300, 16)) is type(batches)
