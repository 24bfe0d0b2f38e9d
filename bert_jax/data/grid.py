"""Where examples come from, and in which order: a grid of cells over the text, shuffled, with shares for languages.

A store's text is a number of *areas*, each an axis of tokens: a document, all documents of a language, a document with
its translation. Everything here is a pure function of (seed, position): no state, and no table of examples; of an area some
numbers of 8 bytes.

*Cells.* With room for T tokens an area of n tokens is cut into ceil(n / T) cells of 1 to T tokens, one more where n >= 32 T.
How long the first cell is, is drawn for every version and area, so the cuts move while their number stays (for an area
of one to a few cells by what its last cell leaves free). A cell makes an example.

*Order.* A keyed permutation of the examples of each epoch: an exact global shuffle with nothing stored.

*Languages.* With an exponent S a language that has the share p of the examples gets slots in proportion to p^S
(google-research/bert `multilingual.md`: S = 0.7, 1000 times as much English as Icelandic becomes about 100 times as much;
XLM's `set_sampling_probs` likewise). The slots of an epoch are fixed numbers, shuffled; each language goes through its own
examples, without replacement, in passes that last longer or shorter than an epoch.

*Copies.* Epoch (or pass) e is version e, for ever new cuts and pairs; with n copies it is version e mod n: what the original
calls `dupe_factor`, with each copy in an epoch of its own.
"""

import dataclasses

import numpy as np

from bert_jax.data import randomness
from bert_jax.data.rows import NAME_LANGUAGES, WITHOUT_LANGUAGES
from bert_jax.data.store import Split
from bert_jax.errors import BertJaxError

LONG_AREA = 32  # cells; one more then costs 3% of padding at most, and the cuts may fall anywhere

# What keys are for; the numbers are part of what a seed means.
SHUFFLE, FIRST_CELL, EXAMPLE, WALK = range(4)


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells of R examples.

    Attributes:
      key: uint64 [R], from which an example draws what else is random about it.
      area: int64 [R], in the order of the grid. here, after, later: int64 [R], where in its area the cell begins, the next
        one, and the one after that (n where there is none).
    """

    key: np.ndarray
    area: np.ndarray
    here: np.ndarray
    after: np.ndarray
    later: np.ndarray


class Grid:
    """The cells of a split's areas.

    Args:
      tokens: int64 [A], n of each area. language: int [A], ascending.
      room: T. exponent: S, None for shares as they are. copies: None for ever new versions.

    Attributes:
      count: examples in an epoch. slots: int64 [languages], how many of them each language gets.
    """

    def __init__(
        self, tokens: np.ndarray, language: np.ndarray, room: int, *, seed: int, exponent: float | None, copies: int | None
    ):
        self._tokens, self._room, self._seed, self._copies = tokens, room, seed, copies
        self._first = np.concatenate([[0], np.cumsum(_cells(tokens, room))])
        self.count = int(self._first[-1])
        self._sampled = exponent is not None
        if exponent is None:
            self.slots = np.array([self.count])
            return
        names = np.arange(language.max(initial=0) + 2)
        self._language_first = self._first[np.searchsorted(language, names)]
        self.slots = shares(np.diff(self._language_first), exponent)
        self._slot_end = np.cumsum(self.slots)

    def at(self, positions: np.ndarray) -> Cells:
        """The cells of the examples at `positions`, int64 [R]."""
        version, example = self._examples(np.asarray(positions, np.int64))
        if self._copies is not None:
            version %= self._copies
        return self.cells(version, example)

    def cells(self, version: np.ndarray, example: np.ndarray) -> Cells:
        """The cells of examples by their numbers, int64 [R], which run through the areas."""
        area = np.searchsorted(self._first, example, side="right") - 1
        tokens, cells = self._tokens[area], self._first[area + 1] - self._first[area]
        least, most, step, divisor = _grid(tokens, cells, self._room)
        first = least + randomness.below(self._key(FIRST_CELL, version, area), 0, most - least + 1)

        def begin(number: np.ndarray) -> np.ndarray:
            inside = first + _share(number - 1, step, divisor)
            return np.where(number == 0, 0, np.where(number < cells, inside, tokens))

        number = example - self._first[area]
        key = self._key(EXAMPLE, version, example)
        return Cells(key, area, begin(number), begin(number + 1), begin(number + 2))

    def _examples(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Version and number of the example at each position."""
        epoch = positions // self.count
        slot = randomness.permute(positions % self.count, self.count, self._key(SHUFFLE, epoch))
        if not self._sampled:
            return epoch, slot
        language = np.searchsorted(self._slot_end, slot, side="right")
        own, slots = np.diff(self._language_first)[language], self.slots[language]
        given = epoch * slots + slot - (self._slot_end[language] - slots)  # examples of the language before this one, ever
        walk = given // own
        step = randomness.permute(given % own, own, self._key(WALK, language, walk))
        return walk, self._language_first[language] + step

    def _key(self, *parts: int | np.ndarray) -> np.ndarray:
        return randomness.key(self._seed, *parts)


def shares(examples: np.ndarray, exponent: float) -> np.ndarray:
    """Slots of an epoch, int64 [languages], as many as there are examples: in proportion to examples^exponent, at least 1.

    What rounding down leaves goes to the largest remainders; a language without examples has no slot.
    """
    count, there = int(examples.sum()), examples > 0
    weight = np.where(there, np.maximum(examples, 1) / max(count, 1), 0.0) ** exponent * there
    exact = count * weight / weight.sum()
    slots = np.where(there, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    spare = count - int(slots.sum())
    order = np.argsort(slots - exact, kind="stable")
    if spare >= 0:
        slots[order[:spare]] += 1
    for _ in range(-spare):  # small languages were lifted to one slot: the largest give
        slots[np.argmax(slots)] -= 1
    return slots


def by_language(split: Split, exponent: float | None) -> tuple[np.ndarray, np.ndarray]:
    """The documents of a split, languages together, and the language of each: int64 [documents] both.

    Raises:
      BertJaxError: an exponent for a store that does not know languages.
    """
    count = len(split.documents) - 1
    if not split.languages:
        if exponent is not None:
            raise BertJaxError(
                f"{split.name}: {WITHOUT_LANGUAGES}, which language_exponent needs: {NAME_LANGUAGES}, or leave it out"
            )
        return np.arange(count), np.zeros(count, np.int64)
    language = np.asarray(split.document_language, np.int64)
    order = np.argsort(language, kind="stable")
    return order, language[order]


def _share(number: np.ndarray, step: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """number * step // divisor where the product would overflow, as in an area of 50 billion tokens; number and divisor are
    below 2^40."""
    whole, rest = np.divmod(step, divisor)
    high, low = np.divmod(number, 1 << 20)
    whole_high, rest_high = np.divmod(rest << 20, divisor)
    return number * whole + high * whole_high + (high * rest_high + low * rest) // divisor


def _cells(tokens: np.ndarray, room: int) -> np.ndarray:
    """How many cells an area of so many tokens has."""
    return -(-tokens // room) + (tokens >= LONG_AREA * room)


def _grid(tokens: np.ndarray, cells: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where the cells of areas may begin, so that each has 1 to `room` tokens whatever is drawn.

    Returns least and most tokens of the first cell, and step and divisor: cell j > 0 begins (j - 1) * step // divisor
    after the first. In an area of a few cells all but the first and the last have `room` tokens, and the first is
    bounded by what the last can hold. With a cell to spare they have tokens / (cells - 1), and the first and the last
    share one such length, cut anywhere.
    """
    long = tokens >= LONG_AREA * room
    least = np.where(long, 1, np.maximum(1, tokens - (cells - 1) * room))
    most = np.where(long, tokens // np.maximum(cells - 1, 1) - 1, np.minimum(room, tokens))
    return least, most, np.where(long, tokens, room), np.where(long, cells - 1, 1)
