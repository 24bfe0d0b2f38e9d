"""Masking against its exact laws: how many, which, by what; whole words and n-grams; what reaches the vocabulary."""

import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bert_jax import functional, tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.mlm import CONTINUES, MaskedLM

PIECES = Pieces(vocab_size=60, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4))
ORDINARY = np.arange(5, 60)
KEY = jax.random.key(3)
SURE = 1 - 1e-6  # how much of the binomial law an interval covers


def inside(count: int, trials: int, probability: float) -> bool:
    low, high = stats.binom.interval(SURE, trials, probability)
    return low <= count <= high


def make_batch(lengths, length: int, seed: int = 0, word_rate: float = 0.6) -> dict[str, np.ndarray]:
    """[CLS] A [SEP] B [SEP] and padding; rows shorter than 5 tokens have one segment."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)[:, None]
    place = np.arange(length)
    mask = place < lengths
    ids = rng.choice(ORDINARY, mask.shape)
    special = (place == 0) | (place == lengths - 1) | ((place == lengths // 2) & (lengths >= 5))
    ids = np.where(place == 0, 2, np.where(special, 3, ids))
    starts = (rng.random(mask.shape) < word_rate) & mask & ~special
    starts[:, 1:] |= (special[:, :-1] & mask[:, 1:] & ~special[:, 1:])  # a segment begins with a word
    batch = {"input_ids": np.where(mask, ids, 0).astype(np.int32), "attention_mask": mask, "word_starts": starts}
    # Phrases and entities take words of their own kinds together; a segment may begin inside one.
    return batch | {key: starts & (rng.random(mask.shape) < 0.4) for key in CONTINUES.values()}


@functools.partial(jax.jit, static_argnums=0)
def corrupt(objective, batch, key, step=None):
    return objective.corrupt(batch, seeds(key, len(batch["input_ids"])), PIECES, step)


def seeds(key, rows: int):
    """Two words for every row, as the task makes them."""
    return functional.fold(jax.random.bits(key, (2,), jnp.uint32), jnp.arange(rows))


def run(objective: MaskedLM, batch, key=KEY, step=None):
    """The corrupted batch in NumPy, with ``chosen``, the predicted positions as bool [B, L]."""
    out = {name: np.asarray(value) for name, value in corrupt(objective, batch, key, step).items()}
    chosen = np.zeros(batch["input_ids"].shape, int)
    rows = np.arange(len(chosen))[:, None]
    np.add.at(chosen, (rows, out["masked_positions"]), out["mlm_weights"].astype(int))
    assert chosen.max(initial=0) <= 1, "a position was predicted twice"
    return out | {"chosen": chosen.astype(bool)}


def budget(real_tokens: int, slots: int) -> int:
    return min(max(1, (15 * real_tokens + 50) // 100), slots)  # 15%, halves up, in integers


EVERY_UNIT = [MaskedLM(), MaskedLM(unit="word"), MaskedLM(unit="word", max_ngram=3), MaskedLM(unit="phrase"),
              MaskedLM(unit="entity", replace="unit"), MaskedLM(unit="span", replace="unit")]


@pytest.mark.parametrize("objective", EVERY_UNIT, ids=lambda o: f"{o.unit}{o.max_ngram}")
def test_what_holds_of_every_unit(objective):
    batch = make_batch([*range(0, 65), *([64] * 447)], 64)
    before = {name: value.copy() for name, value in batch.items()}
    out = run(objective, batch)
    ids, chosen, weights = batch["input_ids"], out["chosen"], out["mlm_weights"]
    slots = objective.predictions(64)
    assert out["masked_positions"].shape == out["mlm_labels"].shape == weights.shape == (512, slots)
    assert out["masked_positions"].dtype == out["mlm_labels"].dtype == np.int32 and weights.dtype == np.float32
    assert np.isin(weights, (0, 1)).all()
    assert not (chosen & np.isin(ids, PIECES.special_ids)).any(), "a special token was chosen"
    assert (out["input_ids"][~chosen] == ids[~chosen]).all(), "a token changed that is not predicted"
    assert np.isin(out["input_ids"][chosen], [PIECES.mask_id, *ORDINARY]).all(), "a special token was drawn"
    labels = np.take_along_axis(ids, out["masked_positions"], axis=1)
    assert (out["mlm_labels"] == labels)[weights > 0].all()
    for row in range(len(ids)):  # the slots in use come first, their positions ascending
        used = int(weights[row].sum())
        assert (weights[row, :used] == 1).all() and (np.diff(out["masked_positions"][row, :used]) > 0).all()
        if objective.unit == "span":  # SpanBERT rounds up and counts no special tokens
            ordinary = (batch["attention_mask"][row] & ~np.isin(ids[row], PIECES.special_ids)).sum()
            assert used == min(max(1, -(-15 * ordinary // 100)), ordinary)
        else:
            assert used <= budget(batch["attention_mask"][row].sum(), slots)
    assert weights[:3].sum() == 0, "rows without text have nothing to predict"
    assert all((batch[name] == before[name]).all() for name in batch), "the input was written to"
    assert (out["attention_mask"] == batch["attention_mask"]).all()


def test_number_of_predictions_for_every_length():
    objective = MaskedLM()
    lengths = np.arange(0, 513)
    weights = run(objective, make_batch(lengths, 512))["mlm_weights"].sum(axis=1)
    ordinary = np.maximum(lengths - np.where(lengths >= 5, 3, 2), 0)
    expected = [min(budget(n, 77), room) for n, room in zip(lengths, ordinary, strict=True)]
    assert weights.tolist() == expected
    assert [objective.predictions(n) for n in (3, 8, 64, 128, 512)] == [1, 1, 10, 19, 77]
    assert MaskedLM(rate=0.85).predictions(128, 42) == 128, "no more slots than tokens, however many examples are rounded"
    assert weights.max() == 77


def test_shares_of_replacements():
    batch = make_batch([64] * 2048, 64)
    out = run(MaskedLM(), batch)
    chosen = out["chosen"]
    old, new = batch["input_ids"][chosen], out["input_ids"][chosen]
    count = len(new)
    assert count == 2048 * 10
    drawn_alike = 1 / len(ORDINARY)  # a random piece may be the original one
    assert inside((new == PIECES.mask_id).sum(), count, 0.8)
    assert inside((new == old).sum(), count, 0.1 + 0.1 * drawn_alike)
    random = new[(new != old) & (new != PIECES.mask_id)]
    assert inside(len(random), count, 0.1 * (1 - drawn_alike))
    for piece in ORDINARY:  # every ordinary piece is drawn, and none more often than another
        assert inside((random == piece).sum(), len(random), drawn_alike)


@pytest.mark.parametrize(("mask", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_other_shares(mask, random):
    batch = make_batch([64] * 512, 64)
    out = run(MaskedLM(mask=mask, random=random), batch)
    old, new = batch["input_ids"][out["chosen"]], out["input_ids"][out["chosen"]]
    alike = 1 / len(ORDINARY)
    assert inside((new == PIECES.mask_id).sum(), len(new), mask)
    assert inside((new == old).sum(), len(new), 1 - mask - random + random * alike)


@pytest.mark.parametrize("replace", ["piece", "unit"])
@pytest.mark.parametrize("unit", ["word", "span"])
def test_shares_with_unknown_for_pieces_and_for_units(unit, replace):
    """30% [MASK], 20% random, 25% [UNK], 25% kept: of pieces, or of units, whose pieces then share their fate."""
    batch = make_batch([64] * 2048, 64, word_rate=0.4)
    objective = MaskedLM(unit=unit, mask=0.3, random=0.2, unknown=0.25, replace=replace)
    out = run(objective, batch)
    chosen, alike = out["chosen"], 1 / len(ORDINARY)
    begins = chosen & ~np.pad(chosen, ((0, 0), (1, 0)))[:, :-1]  # runs of chosen places: spans, or words that may touch
    if unit == "word":
        begins = chosen & batch["word_starts"]
    counted = begins if replace == "unit" else chosen
    new, old = out["input_ids"][counted], batch["input_ids"][counted]
    assert inside((new == PIECES.mask_id).sum(), len(new), 0.3) and inside((new == PIECES.unk_id).sum(), len(new), 0.25)
    assert inside((new == old).sum(), len(new), 0.25 + 0.2 * alike)
    # Of two neighbours in a unit: both [MASK] or neither, or as often as two independent draws say.
    pairs = chosen[:, :-1] & chosen[:, 1:] & ~begins[:, 1:]
    masked = out["input_ids"] == PIECES.mask_id
    first, second = masked[:, :-1][pairs], masked[:, 1:][pairs]
    assert len(first) > 2000
    if replace == "unit":
        assert (first == second).all()
        apart = (out["input_ids"] != batch["input_ids"]) & ~np.isin(out["input_ids"], (PIECES.mask_id, PIECES.unk_id))
        both = apart[:, :-1] & apart[:, 1:] & pairs
        same = out["input_ids"][:, :-1][both] == out["input_ids"][:, 1:][both]
        assert inside(same.sum(), len(same), alike), "random pieces of a unit are drawn one by one"
    else:
        assert inside((first & second).sum(), len(first), 0.09)


def test_rate_follows_its_schedule():
    """From 30% to 15% over 1,000 updates, evaluated at 10%; one static number of slots, that of the largest."""
    objective = MaskedLM(rate=0.3, final_rate=0.15, rate_steps=1000, eval_rate=0.1)
    batch = make_batch([400] * 3, 400)
    assert objective.predictions(400) == 120
    for step, expected in [(0, 120), (1, 120), (250, 105), (500, 90), (999, 60), (1000, 60), (10**6, 60), (None, 40)]:
        out = run(objective, batch, step=None if step is None else jnp.int32(step))
        assert out["mlm_weights"].shape == (3, 120) and (out["chosen"].sum(axis=1) == expected).all(), step
    rising = MaskedLM(rate=0.15, final_rate=0.4, rate_steps=10)
    assert rising.predictions(400) == 160 and (run(rising, batch)["chosen"].sum(axis=1) == 160).all()
    constant = MaskedLM(rate=0.3, eval_rate=0.15)  # MosaicBERT
    counts = [run(constant, batch, step=step)["chosen"].sum(axis=1).tolist() for step in (jnp.int32(7), None)]
    assert counts == [[120] * 3, [60] * 3]


def test_needs_follow_the_unit():
    base = ("input_ids", "attention_mask")
    assert MaskedLM().needs == base
    assert MaskedLM(unit="word").needs == MaskedLM(unit="span").needs == (*base, "word_starts")
    assert MaskedLM(unit="phrase").needs == (*base, "word_starts", "phrase_continues")
    assert MaskedLM(unit="entity").needs == (*base, "word_starts", "entity_continues")


@pytest.mark.parametrize("unit", ["phrase", "entity"])
def test_phrases_and_entities_are_whole(unit):
    """A phrase's words are hidden together or not at all, and every other word is a unit as well."""
    batch = make_batch([64] * 1024, 64)
    objective, continues = MaskedLM(unit=unit), batch[CONTINUES[unit]]
    starts = batch["word_starts"] & ~continues
    maskable = batch["attention_mask"] & ~np.isin(batch["input_ids"], PIECES.special_ids)
    starts |= maskable & ~np.pad(maskable, ((0, 0), (1, 0)))[:, :-1]  # where a segment begins inside a phrase
    assert (starts != batch["word_starts"]).any()
    out = run(objective, batch)
    assert check_whole_words(batch | {"word_starts": starts}, out, objective.predictions(64)).mean() < 0.02
    assert check_whole_words(batch, out, objective.predictions(64)).size, "whole phrases are whole words"
    with pytest.raises(AssertionError, match="part of a word"):  # the check can fail: words alone break phrases
        check_whole_words(batch | {"word_starts": starts}, run(MaskedLM(unit="word"), batch), objective.predictions(64))
    ends = np.pad(starts | ~maskable, ((0, 0), (0, 1)), constant_values=True)[:, 1:]
    short = out["chosen"][starts & ends].mean()
    assert short > out["chosen"][starts & ~ends].mean() > 0.1, "all units; long ones are skipped when room is short"


def test_positions_are_uniform():
    batch = make_batch([40] * 4096, 48)
    chosen = run(MaskedLM(), batch)["chosen"]
    ordinary = ~np.isin(batch["input_ids"][0], PIECES.special_ids)
    assert ordinary.sum() == 37 and (chosen.sum(axis=1) == 6).all()
    for count in chosen[:, ordinary].sum(axis=0):
        assert inside(count, 4096, 6 / 37)


def test_a_function_of_the_key():
    batch = make_batch([64] * 512, 64)
    for objective in (MaskedLM(), MaskedLM(unit="word", max_ngram=3)):
        first, again, other = run(objective, batch), run(objective, batch), run(objective, batch, jax.random.key(4))
        assert all((first[name] == again[name]).all() for name in first)
        assert (first["chosen"] != other["chosen"]).any(axis=1).all(), "another step must mask other positions"
        assert len({row.tobytes() for row in first["chosen"]}) > 500, "rows must not share their masks"


def words_of(starts, maskable):
    """Half-open token ranges of the words of one row."""
    words = []
    for place in np.flatnonzero(maskable):
        if starts[place]:
            words.append([place, place + 1])
        else:
            words[-1][1] += 1
    return words


def check_whole_words(batch, out, slots):
    shortfalls = []
    for row, chosen in enumerate(out["chosen"]):
        maskable = batch["attention_mask"][row] & ~np.isin(batch["input_ids"][row], PIECES.special_ids)
        words = words_of(batch["word_starts"][row], maskable)
        covered = [chosen[begin:end] for begin, end in words]
        assert all(part.all() or not part.any() for part in covered), "part of a word was chosen"
        left = budget(batch["attention_mask"][row].sum(), slots) - chosen.sum()
        assert left >= 0
        shortest = min((end - begin for (begin, end), part in zip(words, covered, strict=True) if not part.any()), default=99)
        shortfalls.append(left >= shortest)
    return np.array(shortfalls)


@pytest.mark.parametrize("max_ngram", [1, 3])
def test_whole_words_or_none(max_ngram):
    objective = MaskedLM(unit="word", max_ngram=max_ngram)
    batch = make_batch([64] * 384 + [20] * 128, 64, word_rate=0.4)
    out = run(objective, batch)
    missed = check_whole_words(batch, out, objective.predictions(64))
    # Twice as many candidates as slots are tried; a room that a word would fit is left only where those were too long.
    assert missed.mean() < 0.02
    assert out["chosen"].sum() > 0.85 * (384 * 10 + 128 * 3)


def test_whole_words_of_one_piece_use_the_budget():
    batch = make_batch([64] * 512, 64, word_rate=1.0)
    assert (run(MaskedLM(unit="word"), batch)["chosen"].sum(axis=1) == 10).all()
    assert (run(MaskedLM(unit="word", max_ngram=3), batch)["chosen"].sum(axis=1) == 10).all()


def test_words_are_drawn_uniformly():
    """Words of two pieces throughout, so that none is skipped for its length."""
    batch = make_batch([40] * 4096, 40)
    starts = np.zeros((4096, 40), bool)
    starts[:, 1:20:2] = starts[:, 21:39:2] = True  # 9 words of two pieces and one of one before [SEP] at 20; then 9 of two
    batch["word_starts"] = starts & ~np.isin(batch["input_ids"], PIECES.special_ids)
    out = run(MaskedLM(unit="word"), batch)
    full = [place for place in np.flatnonzero(starts[0]) if place != 19]
    counts = out["chosen"][:, full].sum(axis=0)
    share = counts.mean() / 4096
    assert 0.12 < share < 0.18
    assert all(inside(count, 4096, share) for count in counts)


def test_whole_words_of_real_text(data_dir):
    tokenizer = tokenizers.load(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
    with gzip.open(data_dir / "text" / "help-de.txt.gz", "rt") as file:  # German in an English vocabulary: long words
        lines = [line for _, line in zip(range(4000), file, strict=False) if len(line) > 40]
    ids = np.concatenate(tokenizer.encode_batch(lines))[: 128 * 125].reshape(128, 125)
    ends = np.ones((128, 1), np.int32)
    rows = np.concatenate([ends * tokenizer.cls_id, ids[:, :60], ends * tokenizer.sep_id, ids[:, 60:],
                           ends * tokenizer.sep_id], axis=1).astype(np.int32)
    special = np.isin(rows, tokenizer.special_ids)
    starts = np.asarray(tokenizer.word_starts())[rows] & ~special
    starts[:, 1:] |= special[:, :-1] & ~special[:, 1:]
    batch = {"input_ids": rows, "attention_mask": np.ones(rows.shape, bool), "word_starts": starts}
    pieces = Pieces(
        tokenizer.vocab_size, tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id,
        tokenizer.special_ids,
    )
    lengths = np.diff(np.flatnonzero(starts.ravel()))
    assert lengths.max() >= 6, "the text has no long words"
    for max_ngram in (1, 3):
        objective = MaskedLM(unit="word", max_ngram=max_ngram)
        out = jax.jit(lambda b, objective=objective: objective.corrupt(b, seeds(KEY, 128), pieces, None))(batch)
        chosen = np.zeros(rows.shape, bool)
        for row in range(128):
            places = np.asarray(out["masked_positions"])[row][np.asarray(out["mlm_weights"])[row] > 0]
            chosen[row, places] = True
            for begin, end in words_of(starts[row], ~special[row]):
                assert chosen[row, begin:end].all() or not chosen[row, begin:end].any()
        assert (chosen.sum(axis=1) <= 19).all() and chosen.sum() > 0.95 * 19 * 128


def test_refused_settings():
    for wrong in ({"rate": 0.0}, {"rate": 1.0}, {"mask": 0.95}, {"mask": -0.1}, {"max_ngram": 3},
                  {"unit": "word", "max_ngram": 0}, {"unit": "span", "max_ngram": 2}, {"unknown": 0.2}, {"final_rate": 0.3},
                  {"rate_steps": 9}, {"final_rate": 1.5, "rate_steps": 9}, {"eval_rate": 0.0}, {"rate_steps": -1}):
        with pytest.raises(BertJaxError, match="MaskedLM"):
            MaskedLM(**wrong)


def test_loss_is_the_mean_over_predictions():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 4, 9)).astype(np.float32) * 3
    labels, weights = rng.integers(0, 9, (3, 4)), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    outputs = api.Outputs(None, None, {"mlm": logits}, {})
    found = MaskedLM().loss(outputs, {"mlm_labels": labels, "mlm_weights": weights, "mlm_offset": np.zeros((3, 0))})
    exact = logits.astype(np.float64)
    entropy = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(found["loss"].sum, (entropy * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(found["accuracy"].sum, ((exact.argmax(-1) == labels) * weights).sum())
    assert found["loss"].weight == found["accuracy"].weight == 6


def shapes_in(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of everything computed in a program, those of the programs inside it included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {tuple(v.aval.shape) for v in equation.outvars if hasattr(v.aval, "shape")}
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found |= shapes_in(inner) if hasattr(inner, "eqns") else set()
    return found


def test_only_masked_positions_reach_the_vocabulary():
    rows, length, vocabulary = 3, 29, 61
    config = EncoderConfig(
        vocab_size=vocabulary, embedding_width=8, hidden_width=8, layers=1, heads=2, ffn_width=16, max_length=length,
        with_heads=("mlm",),
    )
    objective = MaskedLM()
    batch = jax.tree.map(jnp.asarray, make_batch([29] * rows, length))

    def loss(params, every_position):
        corrupted = objective.corrupt(batch, seeds(KEY, rows), PIECES, None)
        outputs = api.apply(params, config, corrupted | ({"masked_positions": None} if every_position else {}))
        if every_position:
            return outputs.logits["mlm"].sum()
        return objective.loss(outputs, corrupted)["loss"].sum

    params = jax.eval_shape(lambda: api.init(config, KEY))
    for every_position in (False, True):
        shapes = shapes_in(jax.make_jaxpr(jax.grad(lambda p, e=every_position: loss(p, e)))(params).jaxpr)
        with_vocabulary = {s for s in shapes if vocabulary in s}
        whole = {s for s in with_vocabulary if length in s or rows * length in s}
        assert bool(whole) == every_position, whole
    assert objective.predictions(length) == 4
    assert (rows, 4, vocabulary) in shapes_in(jax.make_jaxpr(lambda p: loss(p, False))(params).jaxpr)
