"""Corruption stays on the device: what XLA makes of every objective has no way to the host in it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import objectives as o
from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask

LENGTH = 32
ONE = PairSpec(length=LENGTH, pairs="none")
MLM = o.MaskedLM()
# Every objective, in company where it needs some, on examples that suit it.
MIXTURES = [
    ((MLM,), ONE),
    ((o.MaskedLM(rate=0.3, final_rate=0.15, rate_steps=9, unknown=0.1),), ONE),
    ((o.MaskedLM(unit="word", max_ngram=3),), ONE),
    ((o.MaskedLM(unit="phrase", replace="unit"),), ONE),
    ((o.MaskedLM(unit="entity"),), ONE),
    ((o.MaskedLM(unit="span", replace="unit"), o.SpanBoundary()), ONE),
    ((o.PseudoMasked(),), ONE),
    ((o.PermutationLM(),), ONE),
    ((o.PermutationLM(targets="spans"),), ONE),
    ((o.ReplacedTokens(),), ONE),
    ((o.ReplacedTokens(compat=True),), ONE),
    ((o.Denoising(decoder_layers=1),), ONE),
    ((o.Denoising(mask=0.1, delete=0.1, infill=0.1, rotate=0.5, decoder_layers=1),), ONE),
    ((MLM, o.WordOrder()), ONE),
    ((MLM, o.Capitalisation()), ONE),
    ((MLM, o.TokenDocument()), ONE),
    ((MLM, o.NextSentence()), PairSpec(length=LENGTH, pairs="nsp")),
    ((MLM, o.SentenceOrder()), PairSpec(length=LENGTH, pairs="sop")),
    ((MLM, o.Structural()), PairSpec(length=LENGTH, pairs="structural")),
    ((MLM, o.Distance()), PairSpec(length=LENGTH, pairs="distance")),
    ((MLM, o.Reordering()), Reordered(length=LENGTH)),
]
HEADS = ("pooler", "mlm", "pair", "discriminator")

# What reaches the host in XLA's text, but for the CPU's own library calls.
TO_HOST = re.compile(r"\b(outfeed|infeed|send|recv|copy-start)\(|callback|host_memory|S\(5\)")
LOOP = re.compile(r" = .* while\(")


def program(mixture, examples) -> str:
    """The compiled corruption, as text."""
    encoder = EncoderConfig(vocab_size=512, embedding_width=64, hidden_width=64, layers=1, heads=1, ffn_width=64,
                            max_length=64, with_heads=HEADS)
    task = PretrainingTask(Pretraining(encoder, mixture, examples), None)
    key, step = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    return jax.jit(task.corrupt).lower(task.batch_shapes(8), key, step).compile().as_text()


def ways_to_the_host(text: str) -> list[str]:
    """Lines that exchange something with the host, and loops whose turns XLA cannot count: a GPU asks the host after each."""
    lines = [line for line in text.splitlines() if TO_HOST.search(line.split("metadata=")[0])]
    return lines + [line for line in text.splitlines() if LOOP.search(line) and "known_trip_count" not in line]


def test_every_objective_is_here():
    assert {type(objective) for mixture, _ in MIXTURES for objective in mixture} == set(o.OBJECTIVES)


@pytest.mark.parametrize(("mixture", "examples"), MIXTURES, ids=lambda part: "+".join(type(x).__name__ for x in part)
                         if isinstance(part, tuple) else "")
def test_no_way_to_the_host(mixture, examples):
    assert ways_to_the_host(program(mixture, examples)) == []


class Asking(o.MaskedLM):
    """Asks the host for the rows' rotation."""

    def corrupt(self, batch, seeds, pieces, step):
        shape = jax.ShapeDtypeStruct(batch["input_ids"].shape, jnp.int32)
        ids = jax.pure_callback(lambda ids: np.roll(ids, 1, axis=1), shape, batch["input_ids"])
        return super().corrupt(batch | {"input_ids": ids}, seeds, pieces, step)


class Printing(o.MaskedLM):
    """Prints from the device."""

    def corrupt(self, batch, seeds, pieces, step):
        jax.debug.print("{}", batch["input_ids"][0, 0])
        return super().corrupt(batch, seeds, pieces, step)


class Looping(o.MaskedLM):
    """Goes on until something random is large enough."""

    def corrupt(self, batch, seeds, pieces, step):
        number = jax.lax.while_loop(lambda n: (n % 1000) > 3, lambda n: n * jnp.uint32(747796405) + 1, seeds[0, 0])
        return super().corrupt(batch, seeds + number, pieces, step)


@pytest.mark.parametrize("wrong", [Asking, Printing, Looping])
def test_the_host_would_be_noticed(wrong):
    assert ways_to_the_host(program((wrong(),), ONE))
