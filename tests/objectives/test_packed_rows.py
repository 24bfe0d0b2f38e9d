"""Rows of several examples: losses, gradients and masks are those that the same examples have in rows of their own."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bert_jax import functional
from bert_jax.data.packing import PackedRows
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import (
    Capitalisation,
    Denoising,
    Distance,
    MaskedLM,
    NextSentence,
    PermutationLM,
    PseudoMasked,
    Reordering,
    ReplacedTokens,
    SentenceOrder,
    SpanBoundary,
    Structural,
    TokenDocument,
    WordOrder,
)
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask

LENGTH, ROWS = 128, 6
ENCODER = EncoderConfig(
    vocab_size=96, embedding_width=32, hidden_width=32, layers=2, heads=2, ffn_width=64, max_length=LENGTH, init_std=0.2,
)
RELATIVE = dataclasses.replace(ENCODER, positions="relative", mlm_transform=False)
PIECES = Pieces(vocab_size=60, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4))
KEY = jax.random.key(3)
SHORT = {"length": LENGTH, "short_fraction": 0.7, "packing": 6}  # so that rows have several examples


def make(tiny_store, encoder, objectives, examples):
    """The task, its parameters and a corrupted batch of packed rows, as NumPy."""
    task = PretrainingTask(Pretraining(encoder, objectives, examples), TokenStore(tiny_store))
    batch = next(task.train_batches(ROWS, 0))
    assert batch["example_ids"].max() >= 2
    params = jax.jit(task.init)(jax.random.key(1))
    return task, params, jax.device_get(jax.jit(lambda batch: task.corrupt(batch, KEY, None))(batch))


def alone(batch: dict[str, np.ndarray], pad_id: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same examples with the same masks, a row for each, and the row and number of each example [E, 2]."""
    places = [(row, number) for row, real in enumerate(batch["attention_mask"])
              for number in range(batch["example_ids"][row][real].max() + 1)]
    out = {name: np.zeros((len(places), LENGTH), batch[name].dtype) for name in ("segment_ids", "attention_mask")}
    out["input_ids"] = np.full((len(places), LENGTH), pad_id, np.int32)
    slots = batch["mlm_labels"].shape[1]
    predictions = ("masked_positions", "mlm_labels", "mlm_weights")
    out |= {name: np.zeros((len(places), slots), batch[name].dtype) for name in predictions}
    for name in batch:
        if name.endswith("_label"):
            out[name] = np.array([batch[name][place] for place in places])
    for here, (row, number) in enumerate(places):
        inside = batch["attention_mask"][row] & (batch["example_ids"][row] == number)
        start, size = int(np.flatnonzero(inside)[0]), int(inside.sum())
        for name in ("segment_ids", "attention_mask", "input_ids"):
            out[name][here, :size] = batch[name][row][inside]
        positions, used = batch["masked_positions"][row], batch["mlm_weights"][row] > 0
        mine = used & (positions >= start) & (positions < start + size)
        out["masked_positions"][here, : mine.sum()] = positions[mine] - start
        out["mlm_labels"][here, : mine.sum()] = batch["mlm_labels"][row][mine]
        out["mlm_weights"][here, : mine.sum()] = 1.0
    out["mlm_offset"] = np.zeros((len(places), 0), bool)
    out["seeds"], out["real_tokens"] = np.zeros((len(places), 2), np.uint32), np.zeros(len(places), np.float32)
    return out, np.array(places)


def losses_and_gradients(task, params, batch, places):
    """Of each example, by its row and number: the sum of its masked-language-model losses, and the loss of its label. Then the
    losses of the task and their gradients."""
    encoder, pair = task.config.encoder, task.config.objectives[1]
    name = next(name for name in batch if name.endswith("_label"))

    @jax.jit
    def everything(params, batch):
        def total(params):
            losses = task.loss(params, batch, None)
            return sum(term.value for term in losses.terms.values()), losses

        gradients, losses = jax.grad(total, has_aux=True)(params)
        logits = api.apply(params, encoder, batch, heads=pair.own_heads(encoder)).logits
        of_pair = logits["pair" if "pair" in encoder.with_heads else pair.name]
        masked = functional.score_labels(logits["mlm"], batch["mlm_labels"])[0] * batch["mlm_weights"]
        return masked, functional.score_labels(of_pair, batch[name])[0], losses, gradients

    entropy, label, *rest = jax.device_get(everything(params, batch))
    if label.ndim == 1:
        return entropy.sum(axis=1), label, *rest
    owner = np.take_along_axis(batch["example_ids"], batch["masked_positions"], axis=1)
    masked = np.array([entropy[row][owner[row] == number].sum() for row, number in places])
    return masked, np.array([label[row, number] for row, number in places]), *rest


NO_PAIR = ("pooler", "mlm")
CASES = [
    (ENCODER, (MaskedLM(), NextSentence()), PairSpec(pairs="nsp", **SHORT)),
    (dataclasses.replace(ENCODER, share="all"), (MaskedLM(unit="word", max_ngram=3), SentenceOrder(weight=0.5)),
     PairSpec(pairs="sop", **SHORT)),
    (dataclasses.replace(RELATIVE, with_heads=NO_PAIR), (MaskedLM(), Structural()), PairSpec(pairs="structural", **SHORT)),
]


@pytest.mark.parametrize(("encoder", "objectives", "examples"), CASES, ids=["nsp", "sop", "structural"])
def test_losses_and_gradients_are_those_of_rows_of_their_own(tiny_store, encoder, objectives, examples):
    task, params, packed = make(tiny_store, encoder, objectives, examples)
    padded, places = alone(packed, task._pieces.pad_id)
    assert len(places) > 2 * ROWS and padded["mlm_weights"].sum() == packed["mlm_weights"].sum() > 40
    with jax.default_matmul_precision("highest"):
        *ours, losses, gradients = losses_and_gradients(task, params, packed, places)
        *theirs, expected, others = losses_and_gradients(task, params, padded, places)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        assert np.ptp(one) > 0.1
    for name, term in losses.terms.items():  # means over masked tokens, and over examples
        assert float(term.weight) == float(expected.terms[name].weight) > 0
        assert float(term.sum) == pytest.approx(float(expected.terms[name].sum), rel=1e-5)
    assert float(losses.terms[f"{objectives[1].name}_loss"].weight) == (padded[objectives[1].needs[0]] >= 0).sum()
    for (path, one), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 0.01


def with_other_neighbour(batch: dict, number: int = 0) -> dict:
    """Another text in one example of every row."""
    other = batch["attention_mask"] & (batch["example_ids"] == number) & (batch["position_ids"] > 0)
    return batch | {"input_ids": np.where(other, 5 + (batch["input_ids"] + 7) % 50, batch["input_ids"]).astype(np.int32)}


@pytest.mark.parametrize("encoder", [ENCODER, dataclasses.replace(ENCODER, attention="fused"), RELATIVE],
                         ids=["xla", "fused", "relative"])
def test_logits_do_not_move_when_the_neighbour_changes(tiny_store, encoder):
    """They do without ``example_ids``, which is what the test would catch."""
    _, params, batch = make(tiny_store, encoder, (MaskedLM(), NextSentence()), PairSpec(**SHORT))
    batch = {name: values for name, values in batch.items() if name != "masked_positions"}
    batch["attention_mask"] = np.asarray(batch["attention_mask"])

    @jax.jit
    def logits(batch):
        outputs = api.apply(params, encoder, batch)
        return outputs.logits["mlm"], outputs.logits["pair"]

    others = batch["attention_mask"] & (batch["example_ids"] > 0)
    present = batch["next_sentence_label"][:, 1:] >= 0

    def moves(before, after) -> tuple[float, float]:
        tokens, pairs = (np.abs(one - other) for one, other in zip(logits(before), logits(after), strict=True))
        assert tokens[~others & batch["attention_mask"]].max() > 0.1
        return tokens[others].max(), pairs[:, 1:][present].max()

    changed = with_other_neighbour(batch)
    assert max(moves(batch, changed)) < 1e-6
    assert min(moves(blind(batch), blind(changed))) > 1e-3


def blind(batch: dict) -> dict:
    """A batch that does not say where one example ends."""
    return {name: values for name, values in batch.items() if name != "example_ids"}


def test_the_generator_does_not_see_the_neighbour_either(tiny_store):
    encoder = dataclasses.replace(ENCODER, hidden_width=64, embedding_width=64, heads=4, with_heads=("discriminator",))
    objective = ReplacedTokens()
    task, params, batch = make(tiny_store, encoder, (objective,), PairSpec(pairs="none", **SHORT))
    seeds = functional.fold(batch["seeds"], 0)
    owner = np.take_along_axis(batch["example_ids"], batch["rtd_positions"], axis=1)
    mine = (owner > 0) & (batch["rtd_weights"] > 0)

    completed = jax.jit(lambda batch: objective.complete(params, encoder, batch, seeds, None))

    def entropy(batch):
        return np.asarray(completed(batch)["rtd_entropy"])[mine]

    changed = batch | {"rtd_input_ids": with_other_neighbour(batch | {"input_ids": batch["rtd_input_ids"]})["input_ids"]}
    np.testing.assert_allclose(entropy(batch), entropy(changed), atol=1e-6)
    assert np.abs(entropy(blind(batch)) - entropy(blind(changed))).max() > 1e-3


def rows_of(sizes: list[list[int]], length: int, seed: int = 0, word_rate: float = 0.6) -> dict[str, np.ndarray]:
    """Packed rows of examples of these sizes, [CLS] text [SEP]; words of a few pieces."""
    rng, most = np.random.default_rng(seed), max(map(len, sizes))
    batch = {name: np.zeros((len(sizes), length), np.int32) for name in ("input_ids", "example_ids", "position_ids")}
    batch |= {name: np.zeros((len(sizes), length), bool) for name in ("attention_mask", "word_starts")}
    batch["example_starts"] = np.zeros((len(sizes), most), np.int32)
    for row, examples in enumerate(sizes):
        at = 0
        for number, size in enumerate(examples):
            here = slice(at, at + size)
            batch["input_ids"][row, here] = [2, *rng.integers(5, 60, size - 2), 3]
            batch["word_starts"][row, here] = [False, True, *(rng.random(size - 3) < word_rate), False]
            batch["attention_mask"][row, here] = True
            batch["example_ids"][row, here], batch["position_ids"][row, here] = number, np.arange(size)
            batch["example_starts"][row, number] = at
            at += size
    return batch


SEEDS = functional.fold(jnp.asarray([1, 2], jnp.uint32), jnp.arange(512))


def mask(objective: MaskedLM, batch: dict) -> np.ndarray:
    """The places chosen, bool [B, L]."""
    out = jax.jit(lambda batch, seeds: objective.corrupt(batch, seeds, PIECES, None))(batch, SEEDS[: len(batch["input_ids"])])
    chosen = np.zeros(batch["input_ids"].shape, int)
    np.add.at(chosen, (np.arange(len(chosen))[:, None], out["masked_positions"]), np.asarray(out["mlm_weights"]).astype(int))
    assert chosen.max() == 1
    assert (np.asarray(out["input_ids"]) == batch["input_ids"])[chosen == 0].all()
    return chosen > 0


def budget(size: int) -> int:
    return max(1, (15 * size + 50) // 100)  # 15%, halves up, in integers


def random_sizes(rows: int, length: int, most: int) -> list[list[int]]:
    rng, found = np.random.default_rng(5), []
    for _ in range(rows):
        row = []
        while len(row) < most and length - sum(row) >= 3:
            row.append(int(min(rng.integers(3, 60), length - sum(row))))
        found.append(row)
    return found


def test_every_example_has_fifteen_in_a_hundred_of_its_own():
    sizes = [*random_sizes(120, 128, 9), [3] * 9, [10] * 9, [128], [125, 3]]  # tens are rounded up, threes have one
    chosen = mask(MaskedLM(), batch := rows_of(sizes, 128))
    for row, examples in enumerate(sizes):
        for number, size in enumerate(examples):
            mine = batch["attention_mask"][row] & (batch["example_ids"][row] == number)
            assert chosen[row][mine].sum() == min(budget(size), size - 2), (examples, number)
    assert not chosen[~batch["attention_mask"]].any() and not chosen[np.isin(batch["input_ids"], (2, 3))].any()


def test_slots_suffice_for_every_row():
    """What rows may hold, by trying all the ways of filling one, and for each rate of a schedule."""
    for objective in (MaskedLM(), MaskedLM(rate=0.3, final_rate=0.02, rate_steps=5), MaskedLM(rate=0.4)):
        for length, examples in ((24, 2), (24, 5), (41, 8), (41, 13)):
            for rate in {objective.rate, objective.final_rate or objective.rate}:
                each = [0] * 3 + [max(1, math.floor(rate * n + 0.5)) for n in range(3, length + 1)]
                best = [0] * (length + 1)
                for _ in range(examples):
                    best = [max(best[n - m] + each[m] for m in (0, *range(3, n + 1))) for n in range(length + 1)]
                assert max(best) <= objective.predictions(length, examples)
    assert MaskedLM().predictions(512, 8) == 81 and MaskedLM().predictions(512) == 77


@pytest.mark.parametrize("word_rate", [0.6, 0.9])
def test_words_are_chosen_as_in_rows_of_their_own(word_rate):
    """One after the other in the order of the noise, each example by its own budget: settled at once, it is the same."""
    sizes = random_sizes(200, 128, 6)
    chosen = mask(MaskedLM(unit="word"), batch := rows_of(sizes, 128, word_rate=word_rate))
    noise = np.asarray(functional.uniform(functional.fold(functional.fold(SEEDS[:200], 0), 0), (200, 128)))
    wrong = 0
    for row, examples in enumerate(sizes):
        for number, size in enumerate(examples):
            begin, left = batch["example_starts"][row, number], budget(size)
            starts = [p for p in range(begin + 1, begin + size - 1) if batch["word_starts"][row, p]]
            ends = dict(zip(starts, [*starts[1:], begin + size - 1], strict=True))
            expected = set()
            for start in sorted(starts, key=lambda p: -noise[row, p]):
                if ends[start] - start <= left:
                    left -= ends[start] - start
                    expected |= set(range(start, ends[start]))
            found = set((begin + np.flatnonzero(chosen[row, begin : begin + size])).tolist())
            wrong += found != expected
            assert len(found) <= budget(size)
    assert wrong <= 1, "of a thousand examples one may have run out of candidates"


def test_ngrams_stay_in_their_example():
    sizes = [[20, 30, 14]] * 256
    batch = rows_of(sizes, 64)
    batch["word_starts"] &= False
    batch["word_starts"][:, [1, 21, 51]] = True  # an example is one word: too long for any budget
    batch["word_starts"][:, 5:8] = True
    chosen = mask(MaskedLM(unit="word", max_ngram=3), batch)
    assert chosen[:, 5:7].any() and not chosen[:, 14:].any()


def test_places_are_alike():
    chosen = mask(MaskedLM(), rows_of([[23, 41]] * 512, 64))
    for begin, size in ((0, 23), (23, 41)):
        counts = chosen[:, begin + 1 : begin + size - 1].sum(axis=0)
        assert counts.sum() == 512 * budget(size)
        spread = stats.chisquare(counts).statistic / (1 - budget(size) / (size - 2))
        assert spread < stats.chi2.ppf(1 - 1e-6, size - 3)


PACKS = [
    (MaskedLM(unit="word"), NextSentence(), PairSpec(packing=6)),
    (MaskedLM(), SentenceOrder(), PairSpec(pairs="sop", packing=6)),
    (WordOrder(), Structural(), PairSpec(pairs="structural", packing=6)),
    (MaskedLM(), Distance(), PairSpec(pairs="distance", packing=6)),
    (MaskedLM(), Reordering(), Reordered(packing=6)),
    (MaskedLM(), Capitalisation(), Streams(length=128, packing=2)),
]


@pytest.mark.parametrize("case", PACKS, ids=lambda case: type(case[1]).__name__)
def test_what_works_on_packed_rows(case):
    task = PretrainingTask(Pretraining(ENCODER, case[:2], case[2]), None)
    params = jax.eval_shape(task.init, KEY)
    losses = jax.eval_shape(
        lambda params, batch, key: task.loss(params, task.corrupt(batch, key, None), key), params, task.batch_shapes(4), KEY
    )
    assert set(losses.terms) == {f"{objective.name}_loss" for objective in case[:2]}
    assert all(term.sum.shape == term.weight.shape == () for term in losses.terms.values())


@pytest.mark.parametrize(
    ("objective", "examples"),
    [
        (MaskedLM(unit="span"), PairSpec(packing=6)), (PseudoMasked(), PairSpec(packing=6)),
        (SpanBoundary(), PairSpec(packing=6)), (PermutationLM(), PairSpec(packing=6)), (Denoising(), PairSpec(packing=6)),
        (TokenDocument(), PairSpec(pairs="none", packing=6)),
    ],
    ids=lambda case: type(case).__name__,
)
def test_what_does_not_is_refused_at_start_up(objective, examples):
    with pytest.raises(BertJaxError, match=r"does not work on rows of several examples: leave out task\.examples\.packing"):
        Pretraining(ENCODER, (objective,), examples)
    Pretraining(ENCODER, (objective,), dataclasses.replace(examples, packing=None))


def test_real_rows_have_their_masks(tiny_store):
    """The same through store, loader and task: shares of every example, and no slot for what is not there."""
    spec = PairSpec(**SHORT)
    rows = PackedRows(spec.open(TokenStore(tiny_store).split("train"), seed=0))
    task, _, batch = make(tiny_store, ENCODER, (MaskedLM(), NextSentence()), spec)
    raw = rows.at(np.arange(ROWS))
    np.testing.assert_array_equal(raw["example_ids"], batch["example_ids"])
    owner = np.take_along_axis(batch["example_ids"], batch["masked_positions"], axis=1)
    for row in range(ROWS):
        for number in range(batch["example_ids"][row].max() + 1):
            size = int((batch["attention_mask"][row] & (batch["example_ids"][row] == number)).sum())
            assert ((owner[row] == number) & (batch["mlm_weights"][row] > 0)).sum() == min(budget(size), size - 3)
