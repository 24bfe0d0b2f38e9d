"""Which tokens are hidden, and by what: pieces, whole words and n-grams, spans, blocks. All rows at once, on the device.

The originals draw candidates one after another and take or skip each by what was taken before. A loop over candidates would
spend an accelerator's time on starting kernels, so here all candidates are judged at once, again and again, by what the last
judgement took: verdicts depend on earlier candidates only, so those on the first r candidates are final after r rounds at most,
and in practice all are after a few (:func:`_settle`).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from bert_jax import functional
from bert_jax.objectives.base import Pieces

Places = Bool[Array, "B L"]
Seeds = UInt32[Array, "B 2"]

# SpanBERT (facebookresearch/SpanBERT, pretraining/README.md): --geometric-p 0.2 --span-lower 1 --span-upper 10.
SPAN_STOP, LONGEST_SPAN = 0.2, 10
# UniLMv2, algorithm 1: four blocks in ten have 2 to 6 tokens, the others one.
BLOCK_SHARE, LONGEST_BLOCK = 0.4, 6

ROUNDS = 16


class Candidates(NamedTuple):
    """C units of each row in the order in which they are considered: half-open ranges of places, int32 [B, C] each."""

    begin: Int[Array, "B C"]
    end: Int[Array, "B C"]
    taken: Bool[Array, "B C"]


class Rivals(NamedTuple):
    """Which places of a row share a budget, where it has several examples: ``example_ids`` int32 [B, L], and P, their most."""

    example_ids: Int[Array, "B L"]
    examples: int


def pieces(
    seeds: Seeds, maskable: Places, budget: Int[Array, "B *L"], slots: int, rivals: Rivals | None = None
) -> Int[Array, "B L"]:
    """Single places, uniformly without replacement: the ``budget`` largest of uniform noise.

    Here and below: ``maskable`` says where tokens may be chosen, at most ``budget`` (<= ``slots``) of a row are; with
    ``rivals`` of each example, whose budget stands at all of its places. Returns, where a place is chosen, the place where its
    unit begins; -1 elsewhere.
    """
    noise = jnp.where(maskable, functional.uniform(seeds, maskable.shape), -1.0)
    if rivals is not None:
        chosen = maskable & (_ranks(noise, rivals) < budget)
        return jnp.where(chosen, jnp.arange(maskable.shape[1]), -1)
    value, position = jax.lax.top_k(noise, slots)
    chosen = _scatter(position, (value >= 0) & (jnp.arange(slots) < budget[:, None]), maskable)
    return jnp.where(chosen, jnp.arange(maskable.shape[1]), -1)


def words(
    seeds: Seeds, maskable: Places, starts: Places, budget: Int[Array, "B *L"], slots: int, max_ngram: int,
    rivals: Rivals | None = None,
) -> Int[Array, "B L"]:
    """Units of whole words in a random order of their first words, first come first served (ALBERT's
    create_pretraining_data.py): n words with p(n) proportional to 1/n for n <= ``max_ngram``; fewer where n exceed what is left
    of the budget, the text or the segment; none where one does, or where the unit meets one taken before."""
    order_seeds, size_seeds = functional.fold(seeds, 0), functional.fold(seeds, 1)
    # A unit fills at least one slot, so after 2M candidates the budget is spent but for words too long for it.
    starts = _segment_starts(starts, maskable)
    noise = jnp.where(starts & maskable, functional.uniform(order_seeds, maskable.shape), -1.0)
    many, mine = slots, None
    if rivals is not None:  # the first of every example come first: twice its budget are among them, and four more
        noise = jnp.where(noise >= 0, (budget + 2) / (1 + _ranks(noise, rivals)), -1.0)
        many += 2 * rivals.examples
    value, begin = jax.lax.top_k(noise, min(maskable.shape[1], 2 * many))
    if rivals is None:
        budget = budget[:, None]
    else:
        budget, number = (jnp.take_along_axis(of, begin, axis=1) for of in (budget, rivals.example_ids))
        mine = number[:, :, None] == number[:, None]
    shares = 1.0 / np.arange(1, max_ngram + 1)
    size = _draw(functional.uniform(size_seeds, begin.shape), shares)
    ends = _word_ends(begin, starts, maskable, max_ngram)

    def judge(units: Candidates) -> Candidates:
        length = jnp.where(units.taken, units.end - units.begin, 0)
        left = budget - (jnp.cumsum(length, axis=1) - length if mine is None else _spent(length, mine))
        fits = (jnp.arange(max_ngram) < size[..., None]) & (ends - begin[..., None] <= left[..., None])
        end = jnp.where(fits, ends, begin[..., None]).max(axis=-1)  # the longest that fits
        free = ~_earlier((units.begin[:, None] < end[:, :, None]) & (begin[:, :, None] < units.end[:, None]), units.taken)
        return Candidates(begin, end, (value >= 0) & (end > begin) & free)

    units = _settle(judge, Candidates(begin, ends[..., 0], value >= 0))
    return _paint(units, units.begin, maskable.shape[1])


def spans(seeds: Seeds, maskable: Places, starts: Places, budget: Int[Array, " B"], slots: int) -> Int[Array, "B L"]:
    """SpanBERT's spans (section 3.1; PairWithSpanMaskingScheme in its masking.py): a random place that is not yet chosen, from
    the start of its word on as many whole words as a geometric law says that is cut at 10; places chosen before are passed
    over, and the last span ends where the budget does, be it inside a word. Spans that touch are one span."""
    length = maskable.shape[1]
    order_seeds, size_seeds = functional.fold(seeds, 0), functional.fold(seeds, 1)
    starts = _segment_starts(starts, maskable)
    # In a random order of all places those already chosen are passed over, at most M; every other adds one or more.
    noise = jnp.where(maskable, functional.uniform(order_seeds, maskable.shape), -1.0)
    value, anchor = jax.lax.top_k(noise, min(length, 2 * slots))
    word = jax.lax.cummax(jnp.where(starts, jnp.arange(length), 0), axis=1)
    begin = jnp.take_along_axis(word, anchor, axis=1)
    size = _draw(functional.uniform(size_seeds, begin.shape), (1 - SPAN_STOP) ** np.arange(LONGEST_SPAN))
    end = jnp.take_along_axis(_word_ends(begin, starts, maskable, LONGEST_SPAN), size[..., None] - 1, axis=2)[..., 0]
    covers = (begin[:, None] <= anchor[:, :, None]) & (anchor[:, :, None] < end[:, None])

    units = _settle(
        lambda units: units._replace(taken=(value >= 0) & ~_earlier(covers, units.taken)), Candidates(begin, end, value >= 0)
    )
    # Every place is filled by the first span that covers it, a span from left to right: the budget takes the first of them.
    candidates = begin.shape[1]
    turn = candidates - 1 - _paint(units, candidates - 1 - jnp.arange(candidates), length)  # C where nothing covers
    late, position = jax.lax.top_k(-(turn * length + jnp.arange(length)), slots)
    filled = (late > -candidates * length) & (jnp.arange(slots) < budget[:, None])
    return run_starts(_scatter(position, filled, maskable))


def blocks(seeds: Seeds, maskable: Places, budget: Int[Array, " B"], slots: int) -> Int[Array, "B L"]:
    """UniLMv2's blockwise factorisation (algorithm 1): blocks of one token, or with probability 0.4 of 2 to 6, at random
    places, skipped where they meet one taken before or leave the segment, until ``budget`` tokens are covered or up to five
    more. Returns the number of a chosen place's block, from 1 in the order of choice; 0 elsewhere."""
    place_seeds, size_seeds, long_seeds = (functional.fold(seeds, number) for number in range(3))
    shape = (len(maskable), 2 * slots)  # blocks needed: a third of the slots, and seven in ten are taken
    many = maskable.sum(axis=1)[:, None]
    chosen = functional.integers(place_seeds, shape, jnp.maximum(many, 1))
    inside = jnp.argsort(~maskable, axis=1, stable=True)  # the maskable places, ascending
    begin = jnp.take_along_axis(inside, chosen, axis=1)
    longer = 2 + functional.integers(size_seeds, shape, LONGEST_BLOCK - 1)
    end = begin + jnp.where(functional.uniform(long_seeds, shape) < BLOCK_SHARE, longer, 1)
    segment_end = _next(~maskable)
    whole = (many > 0) & (end <= jnp.take_along_axis(segment_end, begin, axis=1))
    meets = (begin[:, None] < end[:, :, None]) & (begin[:, :, None] < end[:, None])

    units = _settle(
        lambda units: units._replace(taken=whole & ~_earlier(meets, units.taken)), Candidates(begin, end, whole)
    )
    length = jnp.where(units.taken, end - begin, 0)
    units = units._replace(taken=units.taken & (jnp.cumsum(length, axis=1) - length < budget[:, None]))
    return jnp.maximum(_paint(units, jnp.cumsum(units.taken, axis=1), maskable.shape[1]), 0)


def run_starts(chosen: Places) -> Int[Array, "B L"]:
    """Where the run of chosen places begins that a place belongs to; -1 where a place is not chosen."""
    before = jnp.pad(chosen, ((0, 0), (1, 0)))[:, :-1]
    begin = jnp.where(chosen & ~before, jnp.arange(chosen.shape[1]), -1)
    return jnp.where(chosen, jax.lax.cummax(begin, axis=1), -1)


def run_ends(chosen: Places) -> Int[Array, "B L"]:
    """The first place after a place's run; only where ``chosen`` it means anything."""
    return _next(~chosen)


def replacements(
    action: Float[Array, "B M"], labels: Int[Array, "B M"], drawn: Int[Array, "B M"], vocabulary: Pieces,
    mask: float, random: float, unknown: float = 0.0,
) -> Int[Array, "B M"]:
    """What stands in place of ``labels``: [MASK] with probability ``mask``, the piece that was ``drawn`` with ``random``, [UNK]
    with ``unknown``, else the label itself. ``action`` is uniform in [0, 1)."""
    kept = jnp.where(action < mask + random + unknown, vocabulary.unk_id, labels)
    return jnp.where(action < mask, vocabulary.mask_id, jnp.where(action < mask + random, drawn, kept))


def most_of_share(rate: float, length: int) -> int:
    """The most that :func:`ceil_share` gives for rows of ``length``."""
    return math.ceil(rate * length - 1e-4)


def ceil_share(rate: float | Float[Array, ""], count: Int[Array, " B"] | int) -> Int[Array, " B"]:
    """``rate * count`` rounded up, int32, blind to float32's error in products that are whole (0.15 * 20)."""
    return jnp.ceil(jnp.asarray(rate, jnp.float32) * count - 1e-4).astype(jnp.int32)


def _settle(judge: Callable[[Candidates], Candidates], first: Candidates) -> Candidates:
    """What judging the candidates one after another would take.

    ``judge`` decides about every candidate by a guess of what happens to those before it. Where two rounds agree on all
    candidates up to one, these are the sequential verdicts; should some still change after the last round, that one and all
    after it are left out. ROUNDS is static: an accelerator asks the host before each turn of a loop whose end it does not know.
    (Real text needs at most ten, at a rate of 0.4: tests/objectives/test_masking.py.)
    """
    guess = jax.lax.fori_loop(0, ROUNDS - 1, lambda _, guess: judge(guess), first)
    units = judge(guess)
    same = (units.taken == guess.taken) & ((units.end == guess.end) | ~units.taken)
    settled = jnp.cumsum(~same, axis=1) == 0
    return units._replace(taken=units.taken & settled)


def _ranks(noise: Float[Array, "B L"], rivals: Rivals) -> Int[Array, "B L"]:
    """How many places of the same example have more noise (as much, and stand before)."""
    place = jnp.arange(noise.shape[1])
    ahead = (noise[:, None] > noise[:, :, None]) | ((noise[:, None] == noise[:, :, None]) & (place < place[:, None]))
    mine = rivals.example_ids[:, None] == rivals.example_ids[:, :, None]
    return (mine & ahead).sum(axis=2)


def _spent(length: Int[Array, "B C"], mine: Bool[Array, "B C C"]) -> Int[Array, "B C"]:
    """The length of all candidates of the same example before each."""
    count = length.shape[1]
    before = jnp.arange(count)[:, None] > jnp.arange(count)
    return jnp.where(mine & before, length[:, None], 0).sum(axis=2)


def _earlier(conflict: Bool[Array, "B C C"], taken: Bool[Array, "B C"]) -> Bool[Array, "B C"]:
    """Whether candidate k (axis 1) is in conflict with one taken before it (axis 2)."""
    count = taken.shape[1]
    before = jnp.arange(count)[:, None] > jnp.arange(count)
    return (conflict & taken[:, None] & before).any(axis=2)


def _paint(units: Candidates, value: Int[Array, "*b C"], length: int) -> Int[Array, "B L"]:
    """The largest value (>= 0) of the units taken that cover a place, -1 where none does."""
    place = jnp.arange(length)[:, None]
    covers = (units.begin[:, None] <= place) & (place < units.end[:, None]) & units.taken[:, None]
    return jnp.where(covers, jnp.broadcast_to(value, units.begin.shape)[:, None], -1).max(axis=2)


def _segment_starts(starts: Places, maskable: Places) -> Places:
    """Starts of units, and the first maskable place after one that is not: a unit never reaches over a special token."""
    before = jnp.pad(maskable, ((0, 0), (1, 0)))[:, :-1]
    return maskable & (starts | ~before)


def _word_ends(begin: Int[Array, "B C"], starts: Places, maskable: Places, most: int) -> Int[Array, "B C N"]:
    """Where 1, 2, ... ``most`` words from ``begin`` on end; they stop short before a special token or padding."""
    rows, length = maskable.shape
    following = jnp.pad(_next(starts | ~maskable, after=1), ((0, 0), (0, 1)), constant_values=length)
    inside = jnp.pad(maskable, ((0, 0), (0, 1)))
    ends = [jnp.take_along_axis(following, begin, axis=1)]
    for _ in range(most - 1):
        further = jnp.take_along_axis(following, ends[-1], axis=1)
        ends.append(jnp.where(jnp.take_along_axis(inside, ends[-1], axis=1), further, ends[-1]))
    return jnp.stack(ends, axis=-1)


def _next(boundary: Places, after: int = 0) -> Int[Array, "B L"]:
    """The first boundary at a place or beyond (``after``: so many places beyond), L where there is none."""
    length = boundary.shape[1]
    place = jax.lax.cummin(jnp.where(boundary, jnp.arange(length), length), axis=1, reverse=True)
    return jnp.pad(place, ((0, 0), (0, after)), constant_values=length)[:, after:]


def _scatter(position: Int[Array, "B M"], value: Bool[Array, "B M"], like: Places) -> Places:
    rows = jnp.arange(like.shape[0])[:, None]
    return jnp.zeros_like(like).at[rows, position].set(value, unique_indices=True, mode="promise_in_bounds")


def _draw(uniform: Float[Array, "B C"], shares: np.ndarray) -> Int[Array, "B C"]:
    """1, 2, ... with probabilities proportional to ``shares``."""
    bounds = np.cumsum(shares) / math.fsum(shares)
    return 1 + jnp.searchsorted(jnp.asarray(bounds[:-1], jnp.float32), uniform, "right")
