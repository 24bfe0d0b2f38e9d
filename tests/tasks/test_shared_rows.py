"""Short examples that share rows in training: each once, hardly any padding, one shape, the losses of rows of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.best_fit import best_fit
from bert_jax.tasks import shared_rows
from bert_jax.tasks.batches import TrainBatches
from bert_jax.tasks.freelb import FreeLB
from bert_jax.tasks.shared_rows import Shape, SharedRows, batches_for_training, choose_shapes, deal
from bert_jax.tasks.smart import Smart
from tests.tasks.test_batches import examples, questions
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
    (shape,), positions = choose_shapes(sizes, 59, multiple)
    assert positions == shape.rows * shape.length
    assert shape.rows % multiple == 0 and shape.length % 8 == 0 and shape.length >= 64
    for batch in sizes:
        rows = best_fit(batch, shape.length, shape.most)
        assert rows.max() < shape.rows
    for length in range(64, 257, 8):  # no other row length would do with fewer positions
        rows = max(best_fit(batch, length, 16).max() + 1 for batch in sizes)
        assert -(-rows // multiple) * multiple * length >= shape.rows * shape.length
    assert choose_shapes(sizes, 500)[0][-1].length == 504  # an example longer than rows otherwise are


def test_a_few_batches_that_need_more_room_do_not_decide_for_all():
    usual, heavy = np.full((60, 32), 12), np.full((3, 32), 17)
    (most, rest), positions = choose_shapes(np.concatenate([usual, heavy]), 128)
    single = min((best_fit(heavy[0], length, 32).max() + 1) * length for length in range(128, 257, 8))
    for batch, shape, fits in ((usual[0], most, True), (heavy[0], most, False), (heavy[0], rest, True)):
        assert bool(best_fit(batch, *shape[1:]).max() < shape.rows) is fits
    average = (60 * most.rows * most.length + 3 * rest.rows * rest.length) / 63
    assert rest.length >= 128 and positions == pytest.approx(average) and positions < 0.95 * single


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(1, 80), min_size=4, max_size=4), min_size=1, max_size=8), st.sampled_from([1, 2]))
def test_no_other_two_shapes_take_fewer_positions(sizes, multiple):
    sizes = np.array(sizes)
    shapes, positions = choose_shapes(sizes, 80, multiple)
    rows = {}
    for length in range(64, 257, 8):
        needed = np.array([best_fit(batch, length, 4).max() + 1 if batch.max() <= length else 99 for batch in sizes])
        rows[length] = -(-needed // multiple) * multiple
    whole = [(count, length) for length, needed in rows.items() if length >= 80 for count in [needed.max()]]
    pairs = [np.where(needed <= count, count * length, other[0] * other[1]).mean()
             for length, needed in rows.items() for count in needed[needed < 99] for other in whole
             if count <= other[0] and length <= other[1]]
    single = min(count * length for count, length in whole)
    fewest = min([single, *pairs])
    assert positions == pytest.approx(fewest if fewest < 0.95 * single else single) and len(shapes) == 1 + (positions < single)
    taken = []
    for batch in sizes:
        shape = next(s for s in shapes if batch.max() <= s.length and best_fit(batch, s.length, s.most).max() < s.rows)
        taken.append(shape.rows * shape.length)
    assert np.mean(taken) == pytest.approx(positions)


def shared(seed=1, rows=None, multiple=1, batch_size=16):
    return SharedRows(examples(403, SIZES), batch_size, rows, 9, seed, multiple)


def test_every_epoch_has_every_example_once_with_its_tokens():
    data = examples(1600, np.resize(SIZES, 1600))
    batches = SharedRows(data, 20, None, 9, 1)
    made = [next(batches) for _ in range(160)]
    labels = np.concatenate([batch["label"][batch["label"] >= 0] for batch in made])
    assert (np.bincount(labels) == 2).all() and not np.array_equal(labels[:1600], labels[1600:])
    assert {batch["input_ids"].shape for batch in made} == {shape[:2] for shape in batches.shapes}
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
    for batch in made[6:]:
        other, quarter = next(part), len(batch["input_ids"]) // 4
        assert quarter * 4 == len(batch["input_ids"])
        assert all((batch[name][quarter : 3 * quarter] == other[name]).all() for name in batch)
    assert part.get_state() == whole.get_state() == {"examples": 144}


def test_several_seeds_side_by_side_are_each_alone():
    both, alone = shared(seed=(4, 7)), [shared(seed=4), shared(seed=7)]
    for one in (both, *alone):
        one.shapes = Shape(8, 64, 16), Shape(8, 80, 16)
    larger = np.zeros(3, int)
    for _ in range(40):
        together, apart = next(both), [next(one) for one in alone]
        shapes = [batch["input_ids"].shape for batch in (together, *apart)]
        assert shapes[0] == (2, *max(shapes[1:])), "that of the one that needs more"
        larger += [shape[-1] == 80 for shape in shapes]
        for number, batch in enumerate(apart):
            for name, values in batch.items():  # where they would be alone, and nothing beside
                corner = tuple(map(slice, values.shape))
                assert (together[name][number][corner] == values).all()
            assert together["attention_mask"][number].sum() == batch["attention_mask"].sum()
    assert max(larger[1:]) < larger[0] < 40
    assert not np.array_equal(apart[0]["label"], apart[1]["label"])


def test_a_batch_that_needs_more_rows_has_them():
    batches = shared(multiple=2)
    batches.shapes = Shape(2, 64, 16), Shape(2, 128, 16)
    batch = next(batches)
    assert batch["input_ids"].shape[1] == 128 and len(batch["input_ids"]) > 2 and len(batch["input_ids"]) % 2 == 0
    assert (batch["example"] >= 0).sum() == 16


@pytest.mark.parametrize("kind", ["Classification", "Regression", "Tagging", "Choice"])
@pytest.mark.parametrize("changes", [{}, {"positions": "relative"}], ids=["absolute", "relative"])
def test_losses_and_gradients_are_those_of_rows_of_their_own(kind, changes):
    assert_same_in_shared_rows(kind, (), 1e-5, **changes)


@pytest.mark.parametrize("kind", ["Classification", "Regression", "Tagging", "Choice"])
@pytest.mark.parametrize("trick", [FreeLB(3, 0.5, 0.0, 0.6), Smart(3.0, 0.7, radius=0.05, noise=0.02, step_size=0.03, steps=2)],
                         ids=["FreeLB", "SMART"])
def test_each_example_is_perturbed_as_in_a_row_of_its_own(kind, trick, monkeypatch):
    """By its own norm, or its own largest value. SMART's noise, which depends on the place, is the same everywhere here."""
    monkeypatch.setattr(Smart, "begin", lambda self, key, shape: self.noise * jnp.broadcast_to(jnp.cos(jnp.arange(16)), shape))
    assert_same_in_shared_rows(kind, (trick,), 3e-4)  # what is divided by a norm multiplies what rounding does


def assert_same_in_shared_rows(kind, tricks, tolerance, **changes):
    still = {"dropout": 0.0, "attention_dropout": 0.0, **changes}
    packed, alone = (make_task(kind, tricks, fields={"packing": packing}, **still) for packing in (True, False))
    params = scattered(packed.start(jax.random.key(0)))
    together, apart = packed.train_batches(8, 0), alone.train_batches(24, 0)  # the whole data is the same set
    assert isinstance(together, SharedRows) and type(apart) is TrainBatches
    batch, whole = next(together), next(apart)
    chosen = np.isin(whole["example"], batch["example"][batch["example"] >= 0])
    assert chosen.sum() == 8 and batch["example_starts"].shape[1] > 1
    rows = {name: values[chosen] for name, values in whole.items()}
    (mine, losses), (theirs, expected) = gradient_of(packed, params, batch), gradient_of(alone, params, rows)
    assert len(expected.terms) == 1 + 2 * any(isinstance(trick, Smart) for trick in tricks)
    for name, term in expected.terms.items():
        np.testing.assert_allclose(losses.terms[name].value, term.value, rtol=0.2 * tolerance)
    assert losses.metrics["tokens"].weight == 8 and losses.metrics["tokens"].sum == rows["attention_mask"].sum()
    least = 1e-2 if kind == "Choice" else 1e-3  # of a gradient that counts: what choices have in common falls out
    for ours, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, other, atol=tolerance * max(least, float(np.abs(other).max())))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tricks"), [("Classification", ()), ("Choice", ()), ("Choice", (FreeLB(2, 0.3, 0.0, 0.2),))],
                         ids=["Classification", "Choice", "FreeLB"])
def test_on_any_mesh_and_in_micro_batches(kind, tricks):
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    task = make_task(kind, tricks, fields={"packing": True}, **still)
    (alone, _), (split, _) = updated(task), updated(task, sizes=(4, 1, 2), accumulate=2)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


def test_all_choices_of_a_question_are_in_one_row():
    data = questions(320, 3, 30)
    batches = batches_for_training(data, 16, None, 9, 1, 32, 16)
    assert isinstance(batches, SharedRows)
    made = [next(batches) for _ in range(40)]
    assert (np.bincount(np.concatenate([batch["label"][batch["label"] >= 0] for batch in made])) == 2).all()
    real, places = (sum(f(batch["attention_mask"]) for batch in made) for f in (np.sum, np.size))
    assert 1 - real / places < 0.1 and real / 40 == pytest.approx(16 * batches.tokens.mean())
    for batch in made:
        assert batch["example_starts"].shape == (len(batch["example"]), 4 * batch["example"].shape[1])
        for row, place in zip(*np.nonzero(batch["example"] >= 0), strict=True):
            example = batch["example"][row, place]
            assert batch["choices"][row, place] == data.rows["choices"][example] and batch["label"][row, place] == example
            for choice in range(data.rows["choices"][example]):
                ids, mask = (data.tokens[name][example][choice] for name in ("input_ids", "attention_mask"))
                mine = (batch["example_ids"][row] == 4 * place + choice) & batch["attention_mask"][row]
                assert (batch["input_ids"][row, mine] == ids[mask]).all() and ids[0] == 100 + example
                assert batch["example_starts"][row, 4 * place + choice] == np.flatnonzero(mine)[0]
                assert (batch["position_ids"][row, mine] == np.arange(mask.sum())).all()


def test_long_questions_have_rows_of_their_own():
    """An article before every choice: all choices in one row would be one of some hundred tokens."""
    batches = batches_for_training(questions(160, 90, 110), 16, None, 9, 1, 200, 16)
    assert type(batches) is TrainBatches and next(batches)["input_ids"].shape[:2] == (16, 4)
    few = questions(160, 3, 30)
    for tokens, share in ((900, True), (1100, False)):  # one alone among short ones
        few.tokens["input_ids"][7] = np.full((4, tokens // 4), 1, np.int32)
        few.tokens["attention_mask"][7] = np.ones((4, tokens // 4), bool)
        assert isinstance(batches_for_training(few, 16, None, 9, 1, 400, 16), SharedRows) is share


def test_padding_that_is_too_much_is_left_to_no_shape(monkeypatch):
    data = examples(1600, np.resize(SIZES, 1600))
    by_length = TrainBatches(data, (60,), 16, None, 9, 1, 16)
    chosen = (Shape(1, 8, 1),), 0.0

    def worth(padding):
        positions = 16 * by_length.tokens.mean() / (1 - padding)
        monkeypatch.setattr(shared_rows, "choose_shapes", lambda *words: (chosen[0], positions))
        return isinstance(batches_for_training(data, 16, None, 9, 1, 60, 16), SharedRows)

    assert by_length.padding < 0.1 and 1.1 * (1 - 0.11) < 1 - by_length.padding + 0.1
    assert worth(0.099) and not worth(0.101), "though it has fewer positions than WORTH allows"
    assert 1 / (1 - 0.101) < shared_rows.WORTH / (1 - by_length.padding)
    monkeypatch.setattr(TrainBatches, "padding", property(lambda self: 0.12))
    assert worth(0.101), "neither is below"


def test_where_examples_do_not_share_rows():
    on = {"packing": True}
    for task in (
        make_task("QuestionAnswering", fields=on),
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


@pytest.mark.parametrize("batch_size", [8, 16, 32, 64])
@pytest.mark.parametrize("sizes", [(114, 246), (100, 200), (20, 110)])
def test_batches_at_random_have_the_rows_that_batches_by_length_have(sizes, batch_size):
    """At random rows of their own have more padding: that is no reason to share rows, which are dealt by tokens."""
    data = examples(800, np.random.default_rng(0).integers(*sizes, 800))
    grouped, random = (batches_for_training(data, batch_size, None, 9, 1, 300, 16, group_by_length=by) for by in (True, False))
    assert type(random) is type(grouped)
    if type(random) is TrainBatches:
        assert random.padding > grouped.padding
        lengths = [next(random)["attention_mask"].sum(axis=1) for _ in range(20)]
        assert np.mean([np.ptp(one) for one in lengths]) > 0.5 * (sizes[1] - sizes[0]), "batches are not by length"
