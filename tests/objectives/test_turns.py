"""Objectives that take turns: shares kept exactly, one program a turn, one head an objective, the same after a restart."""

import collections
import dataclasses
import fractions
import math

import jax
import numpy as np
import pytest

from bert_jax.data import turns
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations
from bert_jax.errors import BertJaxError
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import (
    Capitalisation,
    Distance,
    MaskedLM,
    NextSentence,
    Reordering,
    ReplacedTokens,
    SentenceOrder,
    Structural,
    TokenDocument,
    WordOrder,
)
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask, Turn
from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
from bert_jax.training.evaluation import evaluate
from bert_jax.training.optimizer import AdamW, make_optimizer
from bert_jax.training.step import abstract_state, init_state, make_eval_step, make_train_step

ENCODER = EncoderConfig(vocab_size=96, embedding_width=16, hidden_width=16, layers=1, heads=2, ffn_width=16, max_length=16)
TAKEN = Pretraining(
    ENCODER, (MaskedLM(), NextSentence(weight=0.5)), PairSpec(16),
    (Turn("order", (SentenceOrder(weight=3.0), MaskedLM(rate=0.3)), PairSpec(16, "sop"), share=0.5),
     Turn("words", (MaskedLM(), WordOrder()), PairSpec(16, "none"))),
)


class Numbers:
    """Batches of ``size`` that count; stands for TrainBatches."""

    epoch = 100

    def __init__(self, size=4):
        self.size, self.given = size, 0

    def __next__(self):
        self.given += self.size
        return {"input_ids": np.arange(self.given - self.size, self.given)[:, None]}

    def get_state(self):
        return {"examples": self.given}

    def set_state(self, state):
        self.given = state["examples"]


def whose(batch) -> str:
    names = [name.removeprefix("turn_") for name in batch if name.startswith("turn_")]
    assert len(names) <= 1
    return names[0] if names else ""


def taking(shares, size=4):
    names = ["", *(f"t{number}" for number in range(1, len(shares)))]
    return turns.TakingTurns([Numbers(size) for _ in shares], shares, names), names


@pytest.mark.parametrize("shares", [(1, 1), (1, 2), (1, 0.5), (2, 1, 1), (1, 0.1), (0.3, 0.7, 0.2), (1,) * 7])
def test_shares_are_kept_at_every_moment(shares):
    """After D batches a source with the share s of the whole has given at most D s + 1 and at least D s - n + 1; and exactly
    its share whenever all shares come out whole."""
    source, names = taking(shares)
    whole = [fractions.Fraction(str(share)) for share in shares]
    exact = [share / sum(whole) for share in whole]
    period = math.lcm(*(share.denominator for share in exact))
    counts = collections.Counter()
    for drawn in range(1, 10 * period + 1):
        counts[whose(next(source))] += 1
        for name, share in zip(names, exact, strict=True):
            assert 1 - len(shares) <= counts[name] - drawn * share <= 1, (drawn, counts)
        if drawn % period == 0:
            assert [counts[name] for name in names] == [drawn * share for share in exact]


def test_the_rule_by_hand():
    """The one furthest behind its share, the first of equals: shares 1, 2 and 1 are 0 1 2 1 0 1 2 1 ..."""
    source, names = taking((1, 2, 1))
    assert [names.index(whose(next(source))) for _ in range(12)] == [0, 1, 2, 1] * 3
    source, names = taking((1, 0.5))
    assert [names.index(whose(next(source))) for _ in range(9)] == [0, 1, 0] * 3


def test_batches_of_a_source_come_in_its_own_order_and_say_whose_they_are():
    source, _ = taking((1, 2))
    seen = collections.defaultdict(list)
    for _ in range(30):
        batch = next(source)
        seen[whose(batch)] += batch["input_ids"][:, 0].tolist()
        for name in batch.keys() - {"input_ids"}:
            assert batch[name].shape == (4, 0), "a marker holds nothing"
    assert all(values == list(range(len(values))) for values in seen.values())
    assert source.epoch == pytest.approx(300), "the first source gives its 100 while the other gives 200"
    assert taking((1, 2))[0].epoch == pytest.approx(300), "nothing is given yet"


@pytest.mark.parametrize("after", [0, 1, 7, 20])
def test_goes_on_where_it_was(after):
    source, _ = taking((1, 0.3, 2))
    for _ in range(after):
        next(source)
    state = source.get_state()
    assert state["examples"] == 4 * after
    other, _ = taking((1, 0.3, 2))
    other.set_state(state)
    for _ in range(40):
        here, there = next(source), next(other)
        assert here.keys() == there.keys() and (here["input_ids"] == there["input_ids"]).all()


@pytest.fixture(scope="module")
def task(tiny_store):
    return PretrainingTask(TAKEN, TokenStore(tiny_store))


def test_examples_of_each_turn(task):
    batches = task.train_batches(8, 0)
    labels = {"": "next_sentence_label", "order": "sentence_order_label", "words": None}
    seen = collections.Counter()
    for _ in range(50):
        batch = next(batches)
        seen[whose(batch)] += 1
        assert [k for k in batch if k.endswith("_label")] == [labels[whose(batch)]] * (labels[whose(batch)] is not None)
    assert seen == {"": 20, "order": 10, "words": 20}
    again = task.train_batches(8, 0)
    again.set_state(batches.get_state())
    for _ in range(10):
        here, there = next(batches), next(again)
        assert here.keys() == there.keys() and all((here[key] == there[key]).all() for key in here)


def test_one_head_for_each_objective(task):
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert params.keys() == {"embeddings", "attention", "feed_forward", "pooler", "mlm", "pair"}
    config = Pretraining(
        dataclasses.replace(ENCODER, with_heads=("mlm", "pooler")), (MaskedLM(),), PairSpec(16),
        tuple(Turn(name, (Structural(),), PairSpec(16, "structural")) for name in ("one", "two")),
    )
    params = jax.eval_shape(PretrainingTask(config, None).init, jax.random.key(0))
    assert sorted(params) == ["attention", "embeddings", "feed_forward", "mlm", "pooler", "structural"]
    assert PretrainingTask(config, None).logical_axes().keys() == params.keys()


def first_of_each(task, size=16):
    batches, found = task.train_batches(size, 0), {}
    while len(found) < len(task.config.all_turns):
        batch = next(batches)
        found.setdefault(whose(batch), batch)
    return found


def test_weights_multiply_terms_and_metrics_are_prefixed(task):
    batches = first_of_each(task)
    params = task.init(jax.random.key(0))
    corrupt = jax.jit(lambda batch: task.loss(params, task.corrupt(batch, jax.random.key(1), None), None))
    for name, factors in {"": {"mlm": 1.0, "nsp": 0.5}, "order": {"sop": 3.0, "mlm": 1.0},
                          "words": {"mlm": 1.0, "word_order": 1.0}}.items():
        losses, prefix = corrupt(batches[name]), f"{name}_" if name else ""
        assert losses.terms.keys() == {f"{prefix}{objective}_loss" for objective in factors}
        assert losses.metrics.keys() == {"tokens"} | {f"{prefix}{o}_{m}" for o in factors for m in ("loss", "accuracy")}
        for objective, factor in factors.items():
            term, metric = (part[f"{prefix}{objective}_loss"] for part in (losses.terms, losses.metrics))
            assert metric.value > 0.5
            np.testing.assert_allclose(term.value, factor * metric.value, rtol=1e-6)
        assert losses.metrics["tokens"].sum == batches[name]["attention_mask"].sum()


@pytest.fixture(scope="module")
def machinery(task):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(AdamW(learning_rate=1e-3, warmup_steps=1), 20, task.logical_axes())
    return mesh, optimizer, abstract_state(task, optimizer, mesh)


@pytest.mark.slow
def test_each_turn_compiles_once(task, machinery):
    mesh, optimizer, abstract = machinery
    with jax.set_mesh(mesh):
        step = make_train_step(task, optimizer, mesh, abstract, accumulate=1)
        state = init_state(task, optimizer, abstract, jax.random.key(0))
        batches, recorded = task.train_batches(16, 0), collections.defaultdict(set)
        for _ in range(10):
            batch = next(batches)
            state, metrics = step(state, to_devices(batch, mesh))
            recorded[whose(batch)].add(frozenset(metrics))
    assert step._cache_size() == 3
    assert all(len(names) == 1 for names in recorded.values())
    assert {"loss", "grad_norm", "words_word_order_loss"} <= next(iter(recorded["words"]))
    assert not any(name.startswith("words") for name in next(iter(recorded[""])))


@pytest.mark.slow
def test_micro_batches_add_up(task, machinery, monkeypatch):
    """Every turn's gradients from two micro-batches are those of the batch at once (dropout off)."""
    mesh, optimizer, _ = machinery
    still = PretrainingTask(
        dataclasses.replace(TAKEN, encoder=dataclasses.replace(ENCODER, dropout=0.0, attention_dropout=0.0)), task._store
    )
    abstract = abstract_state(still, optimizer, mesh)
    batches = first_of_each(still)
    assert len(batches) == 3
    with jax.set_mesh(mesh):
        steps = [make_train_step(still, optimizer, mesh, abstract, accumulate=n) for n in (1, 2)]
        for batch in batches.values():
            once, twice = (
                step(init_state(still, optimizer, abstract, jax.random.key(0)), to_devices(batch, mesh))[1] for step in steps
            )
            assert once.keys() == twice.keys()
            for name in once:
                np.testing.assert_allclose(once[name].value, twice[name].value, rtol=1e-4, err_msg=name)
                np.testing.assert_allclose(once[name].weight, twice[name].weight)


def test_evaluation_covers_every_turn(task, machinery):
    mesh, _, _ = machinery
    batches = task.eval_batches(16, None)
    alone = [
        PretrainingTask(Pretraining(ENCODER, turn.objectives, turn.examples), task._store).eval_batches(16, None)
        for turn in TAKEN.all_turns
    ]
    assert len(batches) == sum(map(len, alone)) == len(list(batches))
    assert collections.Counter(map(whose, batches)) == dict(zip(("", "order", "words"), map(len, alone), strict=True))
    params = task.init(jax.random.key(0))
    with jax.set_mesh(mesh):
        values = evaluate(task, make_eval_step(task, mesh), params, mesh, batches)
    objectives = ("mlm", "nsp", "order_sop", "order_mlm", "words_mlm", "words_word_order")
    assert values.keys() == {"loss"} | {f"{name}_{metric}" for name in objectives for metric in ("loss", "accuracy")}
    parts = [values[f"{name}_loss"] * {"nsp": 0.5, "order_sop": 3.0}.get(name, 1.0) for name in objectives]
    np.testing.assert_allclose(values["loss"], sum(parts), rtol=1e-5)


def test_another_head_for_the_same_objective_is_refused():
    encoder = dataclasses.replace(ENCODER, with_heads=("mlm", "pooler"))
    both = [Turn(f"up_to_{most}", (Reordering(most=most),), Reordered(16, most=most)) for most in (2, 3)]
    for turn in both:
        Pretraining(encoder, (MaskedLM(),), PairSpec(16), (turn,))
    with pytest.raises(BertJaxError, match=r"Reordering\(most=2.*Reordering\(most=3.* take turns, but have another head each"):
        Pretraining(encoder, (MaskedLM(),), PairSpec(16), tuple(both))


def test_another_generator_for_the_same_objective_is_refused():
    """Rates and weights may differ from turn to turn, the parameters are the same."""
    encoder = dataclasses.replace(ENCODER, with_heads=("discriminator",))
    own, examples = ReplacedTokens(generator_width=0.5), PairSpec(16, "none")

    def both(other):
        return Pretraining(encoder, (own,), examples, (Turn("other", (other,), examples),))

    assert set(PretrainingTask(both(dataclasses.replace(own, rate=0.3, weight=2.0)), None).logical_axes()) >= {"rtd"}
    with pytest.raises(BertJaxError, match=r"width=0.5.*ReplacedTokens\(.*width=0.25.* take turns, but .* another generator"):
        both(dataclasses.replace(own, generator_width=0.25))


def test_refused_turns():
    turn = Turn("order", (SentenceOrder(),), PairSpec(16, "sop"))
    for wrong, message in (
        ([turn, turn], r"named \['order', 'order'\]"),
        ([dataclasses.replace(turn, name="two words")], "must differ and be words"),
        ([dataclasses.replace(turn, name="")], "must differ and be words"),
        ([dataclasses.replace(turn, share=0.0)], r"turns.0.share is 0.0: it must be above 0"),
        ([dataclasses.replace(turn, share=float("nan"))], "share is nan"),
        ([dataclasses.replace(turn, objectives=())], r"task.turns.0.objectives \[\]: at least one"),
        ([turn, dataclasses.replace(turn, name="b", examples=PairSpec(16))], "which task.turns.1.examples=.* does not give"),
        ([dataclasses.replace(turn, examples=PairSpec(32, "sop"))], "task.turns.0.examples.length 32 exceeds"),
    ):
        with pytest.raises(BertJaxError, match=message):
            Pretraining(ENCODER, (MaskedLM(),), PairSpec(16), tuple(wrong))


# Every objective with a kind of examples that it fits, and one that it does not, with what is said to that.
PAIR, SENTENCES = PairSpec(16, "nsp"), PairSpec(16, "none")
FITS = [
    (NextSentence(), PAIR, SENTENCES, "needs next_sentence_label.*use PairSpec"),
    (SentenceOrder(), PairSpec(16, "sop"), PAIR, r"needs sentence_order_label.*use PairSpec\(pairs='sop'\)"),
    (Structural(), PairSpec(16, "structural"), PairSpec(16, "sop"), r"use PairSpec\(pairs='structural'\)"),
    (Distance(), PairSpec(16, "distance"), PairSpec(16, "structural"), r"use PairSpec\(pairs='distance'\)"),
    (Reordering(), Reordered(16), SENTENCES, "needs reorder_label.*use Reordered"),
    (Reordering(most=4), Reordered(16, most=4), Reordered(16), "most is 4, but the examples have up to 3"),
    (TokenDocument(), SENTENCES, PAIR, "a row may have text of two documents"),
    (TokenDocument(), PairSpec(16, "sop"), Streams(16), "needs context_ids.*use PairSpec or Reordered"),
    (TokenDocument(), Reordered(16), Translations(16), "needs context_ids"),
    (WordOrder(), SENTENCES, None, None),
    (WordOrder(span=16), SENTENCES, PairSpec(15), "span 16 exceeds the rows of 15"),
    (Capitalisation(), SENTENCES, None, None),
    (MaskedLM(), SENTENCES, None, None),
    (MaskedLM(unit="entity"), SENTENCES, None, None),
]


@pytest.mark.parametrize(("objective", "right", "wrong", "message"), FITS, ids=repr)
def test_objectives_and_examples(objective, right, wrong, message):
    Pretraining(ENCODER, (objective,), right)
    if wrong is not None:
        with pytest.raises(BertJaxError, match=message):
            Pretraining(ENCODER, (objective,), wrong)
        with pytest.raises(BertJaxError, match=message):
            Pretraining(ENCODER, (MaskedLM(),), PAIR, (Turn("other", (objective,), wrong),))
    bare = dataclasses.replace(ENCODER, with_heads=())
    if objective.heads:
        with pytest.raises(BertJaxError, match=f"needs '{objective.heads[0]}' in task.encoder.with_heads"):
            Pretraining(bare, (objective,), right)
    else:
        Pretraining(bare, (objective,), right)


def test_what_the_store_lacks_is_refused_before_the_first_step(tiny_store):
    task = PretrainingTask(Pretraining(ENCODER, (MaskedLM(),), PAIR, (Turn("a", (Capitalisation(),), SENTENCES),)),
                           TokenStore(tiny_store))
    with pytest.raises(BertJaxError, match="'case'.*capitalised.* --case"):
        task.train_batches(8, 0)


def test_every_objective_of_these_is_in_the_table():
    assert {type(row[0]) for row in FITS} >= {Capitalisation, Distance, MaskedLM, NextSentence, Reordering, SentenceOrder,
                                              Structural, TokenDocument, WordOrder}
