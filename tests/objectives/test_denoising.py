"""BART's denoising as an objective: what the encoder and the decoder are given, what is refused, and that it is learnt."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bert_jax
from bert_jax import functional
from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.data.translations import Translations
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import Denoising, MaskedLM
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.parallel.mesh import make_mesh
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from bert_jax.training.pretrain import pretrain
from bert_jax.training.record import read

PIECES = Pieces(vocab_size=5000, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4))
NOTHING = Denoising(permute=False, infill=0.0)
KEY = jax.random.key(3)
ENCODER = EncoderConfig(
    vocab_size=96, embedding_width=32, hidden_width=32, layers=2, heads=4, ffn_width=64, max_length=32, segments=0,
    position_offset=2, dropout=0.0, attention_dropout=0.0, init_std=0.1, with_heads=(),
)


def inside(count: int, trials: int, probability: float) -> bool:
    low, high = stats.binom.interval(1 - 1e-6, trials, probability)
    return low <= count <= high


def make_batch(lengths, length: int, word_rate: float = 0.6, sentence_rate: float = 0.15) -> dict[str, np.ndarray]:
    """[CLS] A [SEP], every third row with a B and another [SEP], and padding; within a row no ordinary piece comes twice."""
    rng = np.random.default_rng(0)
    lengths = np.asarray(lengths)[:, None]
    place = np.arange(length)
    mask = place < lengths
    middle = (place == lengths // 2) & (lengths >= 6) & (np.arange(len(lengths))[:, None] % 3 == 0)
    separators = (mask & (place == lengths - 1)) | middle
    ids = (rng.integers(0, 4995, (len(lengths), 1)) + 7 * place) % 4995 + 5
    ids = np.where(place == 0, 2, np.where(separators, 3, ids))
    text = mask & (place > 0) & ~separators
    first = text & ~np.pad(text[:, :-1], ((0, 0), (1, 0)))
    words = first | (text & (rng.random(mask.shape) < word_rate))
    return {
        "input_ids": np.where(mask, ids, 0).astype(np.int32), "attention_mask": mask, "word_starts": words,
        "sentence_starts": first | (words & (rng.random(mask.shape) < sentence_rate)),
        "segment_ids": (mask & (place > lengths // 2) & middle.any(axis=1, keepdims=True)).astype(np.int32),
    }


@functools.partial(jax.jit, static_argnums=0)
def _corrupt(objective, batch, key):
    rows = len(batch["input_ids"])
    return objective.corrupt(batch, functional.fold(jax.random.bits(key, (2,), jnp.uint32), jnp.arange(rows)), PIECES, None)


def corrupt(objective, batch, key=KEY):
    return {name: np.asarray(values) for name, values in _corrupt(objective, batch, key).items()}


ROWS = make_batch([*range(0, 65), *([64] * 200), *([40] * 200)], 64)
EVERY = [
    NOTHING, Denoising(), dataclasses.replace(NOTHING, mask=0.15), dataclasses.replace(NOTHING, delete=0.15),
    dataclasses.replace(NOTHING, infill=0.3), dataclasses.replace(NOTHING, permute=True),
    dataclasses.replace(NOTHING, rotate=1.0),
    Denoising(mask=0.1, delete=0.1, rotate=0.5, random=0.1),
]


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_what_holds_of_every_noise(objective):
    before = {name: values.copy() for name, values in ROWS.items()}
    out = corrupt(objective, ROWS)
    assert all((ROWS[name] == before[name]).all() for name in ROWS), "the input was written to"
    assert {name: (out[name].shape, out[name].dtype) for name in ROWS} == {n: (v.shape, v.dtype) for n, v in ROWS.items()}
    assert (out["denoising_labels"] == ROWS["input_ids"]).all() and (out["denoising_weights"] == ROWS["attention_mask"]).all()
    assert (out["decoder_input_ids"][:, 0] == 3).all(), "the decoder begins with [SEP]"
    assert (out["decoder_input_ids"][:, 1:] == ROWS["input_ids"][:, :-1]).all(), "then follows the original"

    ids, mask = out["input_ids"], out["attention_mask"]
    assert (mask[:, :-1] >= mask[:, 1:]).all(), "padding stands at the end"
    assert (mask.any(axis=1) == ROWS["attention_mask"].any(axis=1)).all()
    for name in ("input_ids", "segment_ids", "word_starts", "sentence_starts"):
        assert not out[name][~mask].any(), f"{name}: something is left beyond the end"
    whole = ROWS["attention_mask"].sum(axis=1) >= 2
    last = mask.sum(axis=1) - 1
    assert (ids[whole, 0] == 2).all() and (ids[whole, last[whole]] == 3).all(), "[CLS] and the last [SEP] stay"
    assert ((ids == 3).sum(axis=1) == (ROWS["input_ids"] == 3).sum(axis=1)).all(), "as many [SEP] as before"
    for row in range(len(ids)):
        original = {piece: place for place, piece in enumerate(ROWS["input_ids"][row]) if piece > 4}
        kept = [piece for piece in ids[row] if piece in original]
        if not objective.random:  # random pieces may be any
            assert len(kept) == len(set(kept)), "a token was doubled"
            assert (ids[row] > 4).sum() == len(kept), "a token that was not there before"
        if not (objective.permute or objective.rotate or objective.random):
            assert np.all(np.diff([original[piece] for piece in kept]) > 0), "the order has changed"
        for piece, segment, word in zip(ids[row], out["segment_ids"][row], out["word_starts"][row], strict=True):
            if piece in original and not objective.random:
                place = original[piece]
                assert segment == ROWS["segment_ids"][row, place], "a token has left its segment"
                assert word == ROWS["word_starts"][row, place], "a word begins elsewhere"


def test_without_noise_the_input_is_the_target():
    out = corrupt(NOTHING, ROWS)
    assert all((out[name] == ROWS[name]).all() for name in ROWS)


@pytest.mark.parametrize("objective", [dataclasses.replace(NOTHING, permute=True), dataclasses.replace(NOTHING, rotate=1.0)])
def test_moving_keeps_the_tokens(objective):
    out = corrupt(objective, ROWS)
    assert (np.sort(out["input_ids"], axis=1) == np.sort(ROWS["input_ids"], axis=1)).all()
    assert (out["attention_mask"] == ROWS["attention_mask"]).all()
    assert (out["input_ids"] != ROWS["input_ids"])[100:].any(axis=1).mean() > 0.8


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5])
def test_numbers_of_masked_and_deleted_tokens(rate):
    text = (ROWS["input_ids"] > 4).sum(axis=1)
    exact = [-(-round(rate * 100) * n // 100) for n in text.tolist()]
    masked = corrupt(dataclasses.replace(NOTHING, mask=rate), ROWS)
    assert ((masked["input_ids"] == 4).sum(axis=1) == exact).all()
    assert (masked["input_ids"] == ROWS["input_ids"])[masked["input_ids"] != 4].all(), "what is not masked stays where it is"
    deleted = corrupt(dataclasses.replace(NOTHING, delete=rate), ROWS)
    assert (ROWS["attention_mask"].sum(axis=1) - deleted["attention_mask"].sum(axis=1) == exact).all()
    assert not (deleted["input_ids"] == 4).any(), "a deletion leaves no trace"


def test_every_token_is_as_likely():
    batch = make_batch([22] * 6000, 24)
    batch = {name: np.tile(values[1], (6000, 1)) for name, values in batch.items()}
    for objective in (dataclasses.replace(NOTHING, mask=0.15), dataclasses.replace(NOTHING, delete=0.15)):
        left = corrupt(objective, batch)["input_ids"]
        for piece in batch["input_ids"][0, 1:21]:
            assert inside(6000 - (left == piece).any(axis=1).sum(), 6000, 3 / 20)


def test_share_of_random_pieces():
    out = corrupt(dataclasses.replace(NOTHING, mask=0.5, random=0.25), ROWS)
    changed = (out["input_ids"] != ROWS["input_ids"]) | (out["input_ids"] == 4)
    drawn = changed & (out["input_ids"] != 4)
    hidden = sum(-(-n // 2) for n in (ROWS["input_ids"] > 4).sum(axis=1).tolist())
    assert inside(drawn.sum(), hidden, 0.25 * (1 - 1 / 4995)) and (out["input_ids"][drawn] > 4).all()


def test_infilling_of_full_rows_loses_no_text_but_the_spans():
    """Words of one token and a budget of one: the row grows by every span of no word, where there is room."""
    for tokens, room in ((3, 0), (3, 1), (3, 4)):
        length = tokens + 2 + room
        batch = make_batch([length - room] * 4000, length, word_rate=1.0, sentence_rate=0.0)
        batch = {name: values[1::3] for name, values in batch.items()}
        out = corrupt(dataclasses.replace(NOTHING, infill=0.3), batch)
        assert ((out["input_ids"] > 4).sum(axis=1) == tokens - 1).all()
        masks = (out["input_ids"] == 4).sum(axis=1)
        zero = stats.poisson.pmf(0, 3)
        assert masks.min() == 1 and masks.max() <= 1 + room
        assert inside((masks > 1).sum(), len(masks), zero if room else 0.0)


def test_a_function_of_the_key():
    first, again, other = (corrupt(Denoising(), ROWS, key)["input_ids"][100:] for key in (KEY, KEY, jax.random.key(4)))
    assert (first == again).all() and (first != other).any(axis=1).all()
    batch = {name: np.tile(values[100], (300, 1)) for name, values in ROWS.items()}
    assert len({row.tobytes() for row in corrupt(Denoising(), batch)["input_ids"]}) > 295, "rows must not share their noise"


def test_masked_lm_reads_the_noisy_row():
    """Objectives that choose tokens come after, and find words where they have gone."""
    assert Denoising.rank < MaskedLM.rank
    out = corrupt(dataclasses.replace(NOTHING, delete=0.2), ROWS)
    seeds = functional.fold(jnp.zeros(2, jnp.uint32), jnp.arange(len(ROWS["input_ids"])))
    masked = jax.jit(lambda batch: MaskedLM(unit="word").corrupt(batch, seeds, PIECES, None))(out)
    labels = np.take_along_axis(out["input_ids"], np.asarray(masked["masked_positions"]), axis=1)
    assert (labels == masked["mlm_labels"])[np.asarray(masked["mlm_weights"]) > 0].all()


def test_needs_follow_the_settings():
    always = ("input_ids", "attention_mask")
    assert NOTHING.needs == always and Denoising().needs == (*always, "word_starts", "sentence_starts")
    assert Denoising(permute=False).needs == (*always, "word_starts")


def test_refused():
    for field, wrong in (("mask", 1.5), ("delete", -0.1), ("infill", 2), ("random", -1), ("rotate", 1.1), ("span_mean", 0),
                         ("span_mean", 16), ("decoder_layers", 0)):
        with pytest.raises(BertJaxError, match=f"Denoising.{field} is {wrong}"):
            Denoising(**{field: wrong})
    with pytest.raises(BertJaxError, match="embedding_width 16 to equal hidden_width 32"):
        Pretraining(dataclasses.replace(ENCODER, embedding_width=16), (Denoising(),), PairSpec(32, "none"))
    with pytest.raises(BertJaxError, match="whose positions .* fixes: use other examples"):
        Denoising(permute=False).check_examples(Translations(32))
    with pytest.raises(BertJaxError, match="the batch's masked_positions would not follow: give it a turn of its own"):
        corrupt(Denoising(), ROWS | {"masked_positions": np.zeros((len(ROWS["input_ids"]), 3), np.int32)})


def test_loss_counts_real_tokens_alone():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 5, 7)).astype(np.float32) * 3
    labels, weights = rng.integers(0, 7, (2, 5)), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.float32)
    batch = {"denoising_labels": labels.astype(np.int32), "denoising_weights": weights}
    found = Denoising().loss(api.Outputs(None, None, {"denoising": logits}, {}), batch)
    exact = logits.astype(np.float64)
    entropy = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(found["loss"].value, entropy[weights > 0].mean(), rtol=1e-6)
    assert found["accuracy"].sum == (exact.argmax(-1) == labels)[weights > 0].sum() and found["loss"].weight == 8


@pytest.mark.slow
def test_learnt_and_loaded(monkeypatch, tiny_store, tmp_path):
    """A small run through the whole loop; what is loaded from it is the encoder, the decoder stays behind."""
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    encoder = dataclasses.replace(ENCODER, embedding_width=64, hidden_width=64, layers=1, max_length=12)
    task = Pretraining(encoder, (Denoising(permute=False, infill=0.2, decoder_layers=1),), PairSpec(12, "none", 0.0))
    experiment = Experiment(
        task=task, optimizer=AdamW(learning_rate=2e-3, warmup_steps=20),
        train=TrainConfig(steps=150, batch_size=64, eval_every=150, save_every=150, log_every=10, eval_batches=2),
    )
    result = pretrain(experiment, tiny_store, tmp_path / "run")
    rows = [row for row in read(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert rows[0]["denoising_loss"] > 2.5
    # Ten of the twelve tokens are random words of twelve, a stop now and then: without reading the encoder 2.0 at best.
    assert result.evaluation["denoising_loss"] < 1.3 and result.evaluation["denoising_accuracy"] > 0.6
    model = bert_jax.load(tmp_path / "run")
    assert set(model.params) == {"embeddings", "attention", "feed_forward"}


def test_parameters_of_its_own(tiny_store):
    config = Pretraining(ENCODER, (Denoising(decoder_layers=2),), PairSpec(32, "none", 0.0))
    task = PretrainingTask(config, TokenStore(tiny_store))
    params, axes = jax.eval_shape(task.init, jax.random.key(0)), task.logical_axes()
    assert set(params["denoising"]) == {"position", "norm", "layer_0", "layer_1"}
    assert jax.tree.structure(params) == jax.tree.structure(axes, is_leaf=lambda node: isinstance(node, tuple))
    assert params["denoising"]["position"].shape == (34, 32)
