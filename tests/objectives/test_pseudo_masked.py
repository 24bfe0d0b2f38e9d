"""UniLMv2's pseudo-masked language modelling: the figure of the paper, laws of the corruption, and every way to leak."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import pseudo_masked
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.objectives.pseudo_masked import PseudoMasked
from tests.objectives.test_mlm import KEY, ORDINARY, PIECES, inside, make_batch, seeds

LENGTH = 32
HIDDEN = PseudoMasked(mask=1.0, random=0.0)  # every hidden token replaced: what is kept would tell itself, as in BERT
SLOTS = HIDDEN.predictions(LENGTH)
ENCODER = EncoderConfig(
    vocab_size=60, embedding_width=16, hidden_width=16, layers=3, heads=2, ffn_width=32, max_length=LENGTH, with_heads=("mlm",)
)


def rows_of_text(rows: int, length: int = LENGTH):
    batch = make_batch([length] * rows, length)
    return batch | {"segment_ids": (np.arange(length) > length // 2).astype(np.int32) + np.zeros((rows, 1), np.int32)}


@functools.partial(jax.jit, static_argnums=1)
def corrupted(batch, objective=HIDDEN):
    return objective.corrupt(batch, seeds(KEY, len(batch["input_ids"])), PIECES, None)


@pytest.fixture(scope="module")
def params():
    leaves, tree = jax.tree.flatten(jax.jit(api.init, static_argnums=0)(ENCODER, KEY))
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [leaf + 0.3 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])


def test_figure_five():
    """x1 .. x6 with x4, x5 before x2 (figure 5). Slots: x1 M2 x3 M4 M5 x6, then x2 x4 x5, then P2 P4 P5."""
    seen = pseudo_masked.visibility(jnp.ones((1, 12), bool), jnp.array([[2, 1, 1]]), 6)[0].astype(int).tolist()
    context = [1] * 6
    assert seen == [context + [0, 0, 0] + [0, 0, 0]] * 6 + [
        context + [1, 1, 1] + [0, 0, 0],  # x2, in the second step, and
        context + [0, 1, 1] + [0, 0, 0],  # x4 and x5, in the first
        context + [0, 1, 1] + [0, 0, 0],
        context + [0, 1, 1] + [1, 0, 0],  # P2 sees x4 and x5, not x2
        context + [0, 0, 0] + [0, 1, 1],  # P4 and P5 see each other alone
        context + [0, 0, 0] + [0, 1, 1],
    ]


def create_attention_mask(source_mask, target_mask, target_span_ids):
    """microsoft/unilm, s2s-ft/s2s_ft/modeling.py, in NumPy: targets have positive weights, their pseudo masks negative ones."""
    weight = np.concatenate([np.zeros_like(source_mask, int), target_span_ids, -target_span_ids], axis=1)
    query, key = weight[:, :, None], weight[:, None]
    true = (key >= 0) & np.concatenate([source_mask, target_mask, target_mask], axis=1)[:, None]
    pseudo = (query < 0) & (true & (-key > query) | (key == query))
    return ((query >= 0) & true & (key <= query)) | pseudo


def test_visibility_is_that_of_the_authors_code():
    rng = np.random.default_rng(0)
    for _ in range(20):
        turns = rng.integers(1, 5, (8, 7))
        mask, found = rng.random((8, 10)) < 0.8, np.ones((8, 7), bool)
        real = np.concatenate([mask, found, found], axis=1)
        found_here = pseudo_masked.visibility(jnp.asarray(real), jnp.asarray(turns), 10)
        assert np.array_equal(found_here, create_attention_mask(mask, found, turns))


def test_shapes_and_what_stands_where():
    batch = rows_of_text(256)
    short = make_batch([10] * 16, LENGTH)
    batch = {name: np.concatenate([batch[name], (short | {"segment_ids": np.zeros_like(short["input_ids"])})[name]])
             for name in batch}
    objective = PseudoMasked()
    out = {name: np.asarray(value) for name, value in corrupted(batch, objective).items()}
    whole, used = LENGTH + 2 * SLOTS, out["pmlm_ae_weights"] > 0
    assert SLOTS == 10 and [PseudoMasked().predictions(n) for n in (128, 512)] == [25, 82]
    assert out["input_ids"].shape == out["position_ids"].shape == out["attention_mask"].shape == (272, whole)
    assert out["visibility"].shape == (272, whole, whole) and out["masked_positions"].shape == (272, 2 * SLOTS)
    positions = out["masked_positions"][:, :SLOTS]
    rows = np.arange(272)[:, None]
    original, pseudo = out["input_ids"][:, LENGTH : LENGTH + SLOTS], out["input_ids"][:, LENGTH + SLOTS :]
    assert (out["pmlm_ae_labels"] == batch["input_ids"][rows, positions]).all()
    assert (out["pmlm_par_labels"] == out["pmlm_ae_labels"]).all() and (out["pmlm_par_weights"] == used).all()
    assert (original == out["pmlm_ae_labels"]).all() and (pseudo == out["input_ids"][rows, positions])[used].all()
    assert (out["masked_positions"][:, SLOTS:] == LENGTH + SLOTS + np.arange(SLOTS)).all()
    places = np.broadcast_to(np.arange(LENGTH), (272, LENGTH))
    for name, before in (("position_ids", places), ("segment_ids", batch["segment_ids"])):
        expected = before[rows, positions]
        assert (out[name][:, :LENGTH] == before).all()
        assert (out[name][:, LENGTH : LENGTH + SLOTS] == expected).all() and (out[name][:, LENGTH + SLOTS :] == expected).all()
    # Of 32 tokens 15% are 4.8, so 5 to 10; of 10 they are 2 to 7; empty slots are seen by nobody.
    assert used.sum(axis=1)[:256].min() == 5 and used.sum(axis=1).max() <= 10 and used.sum(axis=1)[256:].min() == 2
    empty = np.concatenate([np.zeros((272, LENGTH), bool), ~used, ~used], axis=1)
    assert not out["visibility"].transpose(0, 2, 1)[empty].any() and empty.any()
    assert not out["visibility"].transpose(0, 2, 1)[:, :LENGTH][~batch["attention_mask"]].any()
    assert (out["attention_mask"][:, :LENGTH] == batch["attention_mask"]).all() and not out["attention_mask"][:, LENGTH:].any()
    hidden = np.zeros((272, LENGTH), bool)
    np.put_along_axis(hidden, positions, used, axis=1)
    assert (out["input_ids"][:, :LENGTH] == batch["input_ids"])[~hidden].all()
    assert not (hidden & np.isin(batch["input_ids"], PIECES.special_ids)).any()


def test_shares_of_replacements():
    batch = rows_of_text(2048)
    out = {name: np.asarray(value) for name, value in corrupted(batch, PseudoMasked()).items()}
    used = out["pmlm_par_weights"] > 0
    old, new = out["pmlm_ae_labels"][used], out["input_ids"][:, LENGTH + SLOTS :][used]
    assert inside((new == PIECES.mask_id).sum(), len(new), 0.8)
    assert inside((new == old).sum(), len(new), 0.1 + 0.1 / len(ORDINARY))


def turns_of(out):
    """The block of every slot, read back from who sees whose pseudo mask: same-block slots share rows; earlier ones come first
    because their hidden tokens are seen by more."""
    seen = np.asarray(out["visibility"])[:, LENGTH : LENGTH + SLOTS, LENGTH : LENGTH + SLOTS]
    return seen.sum(axis=2) * (np.asarray(out["pmlm_ae_weights"]) > 0)  # tokens of the blocks up to one's own


@functools.partial(jax.jit, static_argnums=2)
def logits(params, batch, encoder=ENCODER):
    """[B, 2, M, V]: of ae and of par."""
    found = api.apply(params, encoder, batch).logits["mlm"]
    return found.reshape(len(found), 2, SLOTS, -1)


def moves(params, out, change):
    """Which predictions [B, 2, M] move when ``change`` is done to the input ids."""
    other = change(np.asarray(out["input_ids"]).copy())
    return np.asarray(jnp.abs(logits(params, out | {"input_ids": other}) - logits(params, out)).max(axis=-1)) > 0


def another(ids):
    return np.where(ids >= 5, (ids - 5 + 7) % len(ORDINARY) + 5, ids)


def who_may_move(turns, slot):
    """Predictions of a row that may know the hidden token of ``slot``: par of later blocks, nothing else."""
    return np.stack([np.zeros_like(turns, bool), turns > turns[slot]])


CONTEXT, TOKENS, PSEUDO = slice(LENGTH), slice(LENGTH, LENGTH + SLOTS), slice(LENGTH + SLOTS, None)
WRONG = {
    "context sees hidden tokens": lambda seen, turns: seen.at[:, CONTEXT, TOKENS].set(True),
    "context sees pseudo masks": lambda seen, turns: seen.at[:, CONTEXT, PSEUDO].set(True),
    "a pseudo mask sees its own block": lambda seen, turns: seen.at[:, PSEUDO, TOKENS].max(
        turns[:, :, None] == turns[:, None]),
    "a pseudo mask sees later blocks": lambda seen, turns: seen.at[:, PSEUDO, TOKENS].max(
        turns[:, :, None] < turns[:, None]),
    "a pseudo mask sees those of later blocks": lambda seen, turns: seen.at[:, PSEUDO, PSEUDO].max(
        turns[:, :, None] < turns[:, None]),
    "a hidden token sees later blocks": lambda seen, turns: seen.at[:, TOKENS, TOKENS].set(True),
}


def leaks_by_substitution(params, out) -> bool:
    """Changes the hidden token of one slot after another, in all rows at once."""
    turns, used = turns_of(out), np.asarray(out["pmlm_ae_weights"]) > 0
    for slot in range(SLOTS):
        def change(ids, slot=slot):
            ids[:, LENGTH + slot] = another(ids[:, LENGTH + slot])
            return ids

        moved = moves(params, out, change)
        for row in np.flatnonzero(used[:, slot]):
            allowed = who_may_move(turns[row], slot)
            if (moved[row] & ~allowed & used[row]).any():
                return True
    return False


def leaks_by_gradients(params, out) -> bool:
    """The same from the gradient of every prediction with respect to its row's token embeddings, all of them at once."""
    turns, used = turns_of(out), np.asarray(out["pmlm_ae_weights"]) > 0

    def total(extra, way, slot):
        """``extra`` [B, K, E] is added to the embedding of each slot by giving each a row of a table of its own."""
        ids = jnp.arange(extra.size // extra.shape[-1]).reshape(extra.shape[:2])
        table = params["embeddings"]["token"]
        rows = jnp.take(table, out["input_ids"], axis=0) + extra
        own = {"embeddings": params["embeddings"] | {"token": rows.reshape(-1, extra.shape[-1])}}
        encoder = dataclasses.replace(ENCODER, vocab_size=ids.size, with_heads=())
        hidden = api.apply({**params, **own}, encoder, {**{k: out[k] for k in ("segment_ids", "position_ids", "visibility")},
                                                       "input_ids": ids}).hidden
        place = out["masked_positions"].reshape(len(ids), 2, SLOTS)[:, way, slot]
        return jnp.square(jnp.take_along_axis(hidden, place[:, None, None], axis=1)[..., :3]).sum()

    without_head = {name: part for name, part in params.items() if name != "mlm"}
    params = without_head
    gradient = jax.jit(jax.grad(total))
    zero = jnp.zeros((*out["input_ids"].shape, ENCODER.embedding_width))
    for way, slot in itertools.product(range(2), range(SLOTS)):
        reached = np.abs(gradient(zero, way, slot)).max(axis=-1)[:, LENGTH : LENGTH + SLOTS] > 0  # [B, M] hidden tokens
        allowed = (turns[:, slot, None] > turns) & (way == 1)
        if (reached & ~allowed & used & used[:, slot, None]).any():
            return True
    return False


@pytest.mark.parametrize("leaks", [leaks_by_substitution, leaks_by_gradients])
@pytest.mark.parametrize("wrong", [None, *WRONG])
def test_leaks(params, leaks, wrong):
    """Random factorisations; no wrong visibility passes."""
    out = dict(corrupted(rows_of_text(16)))
    if wrong:
        turns = jnp.asarray(turns_of(out))
        seen = WRONG[wrong](out["visibility"], turns)
        used = out["pmlm_ae_weights"] > 0
        out["visibility"] = seen & jnp.concatenate([out["attention_mask"][:, :LENGTH], used, used], axis=1)[:, None]
        assert (np.asarray(out["visibility"]) != np.asarray(corrupted(rows_of_text(16))["visibility"])).any()
        # turns_of reads the visibility: it must tell the right order although that is spoilt
        right = np.asarray(turns)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.turns_of", lambda out: right)
            assert leaks(params, out), wrong
    else:
        assert not leaks(params, out)


def test_earlier_blocks_do_reach_later_ones(params):
    """The other side of the leak tests: what may be seen is seen."""
    out = dict(corrupted(rows_of_text(16)))
    turns, used = turns_of(out), np.asarray(out["pmlm_ae_weights"]) > 0

    def change(ids):
        ids[:, LENGTH] = another(ids[:, LENGTH])
        return ids

    moved = moves(params, out, change)
    for row in range(16):
        assert moved[row, 1][who_may_move(turns[row], 0)[1] & used[row]].all()

    def change_context(ids):
        ids[:, 1] = another(ids[:, 1])
        return ids

    visible = ~(np.asarray(out["masked_positions"])[:, :SLOTS] == 1).any(axis=1)
    assert moves(params, out, change_context)[visible].transpose(0, 2, 1)[used[visible]].all()


def test_a_whole_example_with_another_target(params):
    """From the clean row on: a target exchanged in the data moves nothing but later blocks of par."""
    clean = rows_of_text(16)
    first = corrupted(clean)
    turns, used = turns_of(first), np.asarray(first["pmlm_ae_weights"]) > 0
    for slot in range(5):
        ids, rows = clean["input_ids"].copy(), np.arange(16)
        places = np.asarray(first["masked_positions"])[:, slot]
        ids[rows, places] = another(ids[rows, places])
        second = corrupted(clean | {"input_ids": ids})
        assert np.array_equal(first["masked_positions"], second["masked_positions"])
        moved = np.asarray(jnp.abs(logits(params, second) - logits(params, first)).max(axis=-1)) > 0
        for row in range(16):
            assert not (moved[row] & ~who_may_move(turns[row], slot) & used[row]).any()


def test_order_is_random():
    """Which of two blocks comes first does not depend on their places."""
    out = corrupted(rows_of_text(2048))
    turns, used = turns_of(out), np.asarray(out["pmlm_ae_weights"]) > 0
    last = used.sum(axis=1) - 1
    first_turn, last_turn = turns[:, 0], turns[np.arange(2048), last]
    differ = first_turn != last_turn
    assert inside((first_turn < last_turn)[differ].sum(), differ.sum(), 0.5)


def test_two_terms_in_a_task(tiny_store):
    encoder = dataclasses.replace(ENCODER, vocab_size=96)
    spec = PairSpec(length=LENGTH, pairs="none")
    task = PretrainingTask(Pretraining(encoder, (PseudoMasked(weight=2.0),), spec), TokenStore(tiny_store))
    batch, key = next(task.train_batches(4, 0)), jax.random.key(0)
    losses = jax.jit(lambda b: task.loss(task.init(key), task.corrupt(b, key, np.int32(0)), key))(batch)
    assert set(losses.terms) == {"pmlm_ae_loss", "pmlm_par_loss"}
    assert set(losses.metrics) == {"tokens", *(f"pmlm_{way}_{what}" for way in ("ae", "par") for what in ("loss", "accuracy"))}
    assert losses.terms["pmlm_ae_loss"].weight == losses.terms["pmlm_par_loss"].weight > 0
    assert abs(losses.terms["pmlm_par_loss"].value - 2 * np.log(96)) < 0.6
    assert losses.metrics["tokens"].sum == batch["attention_mask"].sum(), "slots are no tokens"


def test_refused_settings():
    for wrong in ({"rate": 0.0}, {"rate": 1.0}, {"mask": 0.95}, {"random": -0.1}):
        with pytest.raises(BertJaxError, match="PseudoMasked"):
            PseudoMasked(**wrong)
    with pytest.raises(BertJaxError, match="take turns with it"):
        corrupted(corrupted(rows_of_text(2)))
