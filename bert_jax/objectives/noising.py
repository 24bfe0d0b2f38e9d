"""BART's noise as functions on rows of tokens (Lewis et al. 2020, section 2.2; fairseq's ``denoising_dataset.py``).

A row is [CLS] text [SEP] and padding, or has several texts with a [SEP] after each. ``text`` [B, L] is true of its real tokens
but [CLS] and [SEP]: those are never removed, and what moves, moves between two of them. Nothing loops over rows or tokens.
"""

import fractions
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from bert_jax import functional


def shares(rate: float, length: int) -> Int[np.ndarray, " L+1"]:
    """ceil(rate * n) for n = 0 .. ``length``, the rate taken as the decimal fraction that it was written as."""
    exact = fractions.Fraction(str(rate))
    return np.array([math.ceil(exact * n) for n in range(length + 1)], np.int32)


@functools.cache
def poisson(mean: float) -> tuple[float, ...]:
    """Probabilities of span lengths 0, 1, ...: Poisson's, ended by the first one below 1e-7 (and after 128), summing to 1."""
    law = [math.exp(-mean)]
    while law[-1] >= 1e-7 and len(law) < 128:
        law.append(law[-1] * mean / len(law))
    return tuple(p / sum(law) for p in law)


def chosen(seeds: UInt32[Array, "B 2"], allowed: Bool[Array, "B L"], count: Int[Array, " B"]) -> Bool[Array, "B L"]:
    """``count`` of the ``allowed`` places of each row (all of them where there are fewer), every subset alike."""
    order = jnp.argsort(jnp.where(allowed, functional.uniform(seeds, allowed.shape), -1.0), axis=1, descending=True)
    first = jnp.arange(allowed.shape[1]) < count[:, None]
    return _scattered(jnp.zeros_like(allowed), order, first) & allowed


def permuted(
    seeds: UInt32[Array, "B 2"], text: Bool[Array, "B L"], sentence_starts: Bool[Array, "B L"]
) -> Int[Array, "B L"]:
    """Sentence permutation: which token stands at each place when the sentences of each text come in a random order, all
    orders alike (up to ties of 24-bit numbers, which keep the order)."""
    sentence = jnp.cumsum(sentence_starts & text, axis=1)
    drawn = functional.uniform(seeds, (len(text), text.shape[1] + 1))  # a number for every sentence
    number = jnp.where(text, jnp.take_along_axis(drawn, sentence, axis=1), -1.0)
    block = jnp.cumsum(~text, axis=1)  # a special token, which comes first in it, and the text after it
    # A stable sort: the tokens of a sentence stay together and in order.
    return jax.lax.sort((block, number, _places(text)), dimension=1, num_keys=2)[2]


def rotated(seeds: UInt32[Array, "B 2"], text: Bool[Array, "B L"], rate: float) -> Int[Array, "B L"]:
    """Document rotation: which token stands at each place when a share ``rate`` of the rows has each text begin with a random
    one of its tokens, every token alike, and what was before it follow at the end."""
    place, length = _places(text), text.shape[1]
    begin = jax.lax.cummax(jnp.where(text, 0, place + 1), axis=1)
    end = jax.lax.cummin(jnp.where(text, length, place), axis=1, reverse=True)
    size = jnp.maximum(end - begin, 1)
    drawn = functional.integers(functional.fold(seeds, 0), text.shape, size)
    offset = jnp.take_along_axis(drawn, jnp.minimum(begin, length - 1), axis=1)  # one for each text
    turned = functional.uniform(functional.fold(seeds, 1), (len(text), 1)) < rate
    return jnp.where(text & turned, begin + (place - begin + offset) % size, place)


class Spans(NamedTuple):
    """What text infilling does to rows: ``heads`` bool [B, L], the tokens that give way to a span's one [MASK]; ``gone`` bool
    [B, L], the rest of the spans; ``inserted`` int32 [B], how many [MASK]s come in between (spans of no word)."""

    heads: Bool[Array, "B L"]
    gone: Bool[Array, "B L"]
    inserted: Int[Array, " B"]


def spans(
    seeds: UInt32[Array, "B 2"], text: Bool[Array, "B L"], word_starts: Bool[Array, "B L"], rate: float, mean: float
) -> Spans:
    """Text infilling, with fairseq's law.

    fairseq draws lengths from :func:`poisson` until their sum reaches ceil(rate * words) and cuts the last to fit. Those of 0
    become insertions; the others begin at different random words and run on, to the end of the text at most. Spans that
    overlap are one span: less than ``rate`` of the words is hidden.

    Drawn here are the lengths above 0 alone, as many as can be needed, and for each of them how many of 0 came before it,
    which is geometric: the same law, with a fixed number of draws.
    """
    length_seeds, gap_seeds, start_seeds = (functional.fold(seeds, number) for number in range(3))
    words, budgets, law = word_starts & text, shares(rate, text.shape[1]), np.array(poisson(mean))
    budget = jnp.asarray(budgets)[words.sum(axis=1)][:, None]
    shape = (len(text), max(1, int(budgets[-1])))

    above = jnp.asarray(np.cumsum(law[1:])[:-1] / law[1:].sum(), jnp.float32)
    size = 1 + jnp.searchsorted(above, functional.uniform(length_seeds, shape), "right").astype(jnp.int32)
    before = jnp.cumsum(size, axis=1) - size
    size = jnp.clip(budget - before, 0, size)
    gaps = jnp.log1p(-functional.uniform(gap_seeds, shape)) / math.log(law[0])
    inserted = jnp.where(size > 0, gaps.astype(jnp.int32), 0).sum(axis=1)

    noise = jnp.where(words, functional.uniform(start_seeds, text.shape), -1.0)
    begins = jax.lax.top_k(noise, shape[1])[1]
    span = _scattered(jnp.zeros(text.shape, jnp.int32), begins, size)
    # The number of its word is compared with where the spans before it end. A special token counts as more words than any
    # span has, so that none goes past it.
    number = jnp.cumsum(jnp.where(text, words, text.shape[1]), axis=1)
    reach = jax.lax.cummax(jnp.where(span > 0, number + span, 0), axis=1)
    reached_before = jnp.pad(reach[:, :-1], ((0, 0), (1, 0)))
    heads = (span > 0) & (reached_before <= number)
    return Spans(heads, text & (reach > number) & ~heads, inserted)


class Rearranged(NamedTuple):
    """Rows after removals and insertions. ``order`` int32 [B, L]: which token stands at each place; ``real`` bool [B, L]: false
    where nothing does; ``inserted`` bool [B, L]: where something new stands, with the ``order`` of the token before it."""

    order: Int[Array, "B L"]
    real: Bool[Array, "B L"]
    inserted: Bool[Array, "B L"]


def rearranged(seeds: UInt32[Array, "B 2"], keep: Bool[Array, "B L"], count: Int[Array, " B"]) -> Rearranged:
    """Closes the gaps that tokens without ``keep`` leave and opens ``count`` new places among the rest, but for the first and
    the last place, every choice of places alike (fairseq's ``add_insertion_noise``).

    A row never grows beyond L: insertions that find no room are left out, kept tokens never.
    """
    length, place = keep.shape[1], _places(keep)
    kept = keep.sum(axis=1, dtype=jnp.int32)
    total = kept + jnp.minimum(count, length - kept)
    slot = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, length)
    packed = jnp.zeros_like(place).at[jnp.arange(len(keep))[:, None], slot].set(place, mode="drop")
    inserted = chosen(seeds, (place > 0) & (place < total[:, None] - 1), total - kept)
    order = jnp.take_along_axis(packed, jnp.maximum(place - jnp.cumsum(inserted, axis=1), 0), axis=1)
    return Rearranged(order, place < total[:, None], inserted)


def _places(like: Array) -> Int[Array, "B L"]:
    return jax.lax.broadcasted_iota(jnp.int32, like.shape, 1)


def _scattered(into: Array, places: Int[Array, "B M"], values: Array) -> Array:
    rows = jnp.arange(len(into))[:, None]
    return into.at[rows, places].set(values, unique_indices=True, mode="promise_in_bounds")
