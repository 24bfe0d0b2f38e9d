"""The choice of hidden places: judged all at once, the candidates must come out as if judged one after another."""

import collections
import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bert_jax import functional, tokenizers
from bert_jax.objectives import masking
from tests.objectives.test_mlm import KEY, PIECES, inside, seeds


def sequential_words(begin, size, ends, valid, budget):
    """ALBERT's rule for one row: the places taken."""
    chosen, left = set(), budget
    for k in np.flatnonzero(valid):
        for n in range(size[k], 0, -1):
            if ends[k, n - 1] - begin[k] <= left:
                unit = set(range(begin[k], ends[k, n - 1]))
                if not unit & chosen:
                    chosen |= unit
                    left -= len(unit)
                break
    return chosen


def sequential_spans(anchor, size, ends_of, word_start, valid, budget):
    """SpanBERT's rule for one row."""
    chosen = set()
    for k in np.flatnonzero(valid):
        if len(chosen) >= budget:
            break
        if anchor[k] in chosen:
            continue
        begin = word_start[anchor[k]]
        for place in range(begin, ends_of(begin, size[k])):
            if len(chosen) >= budget:
                break
            chosen.add(place)
    return chosen


def sequential_blocks(begin, end, whole, budget):
    """UniLMv2's algorithm 1 for one row: blocks in their order."""
    found, covered = [], set()
    for k in np.flatnonzero(whole):
        if len(covered) >= budget:
            break
        block = set(range(begin[k], end[k]))
        if not block & covered:
            covered |= block
            found.append(block)
    return found


def text(data_dir, name: str, rows: int, length: int):
    """Rows of [CLS] text [SEP], as (maskable, word starts)."""
    tokenizer = tokenizers.load(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
    with gzip.open(data_dir / "text" / name, "rt") as file:
        lines = [line for _, line in zip(range(20000), file, strict=False) if len(line) > 40]
    ids = np.concatenate(tokenizer.encode_batch(lines))[: rows * (length - 2)].reshape(rows, length - 2)
    ids = np.pad(ids, ((0, 0), (1, 1)), constant_values=tokenizer.sep_id)
    maskable = ~np.isin(ids, tokenizer.special_ids)
    after_special = ~np.pad(maskable, ((0, 0), (1, 0)))[:, :-1]
    return maskable, maskable & (np.asarray(tokenizer.word_starts())[ids] | after_special)


def candidates_seen(monkeypatch, choose, *arguments):
    """What ``choose`` returns, and what it hands to the rounds: recorded as it is traced, run eagerly."""
    seen = {}
    original = masking._settle

    def settle(judge, first):
        seen["first"] = jax.tree.map(np.asarray, first)
        seen["judge"] = judge
        return original(judge, first)

    monkeypatch.setattr(masking, "_settle", settle)
    result = np.asarray(choose(*arguments))
    monkeypatch.undo()
    return result, seen


def rounds_needed(seen) -> int:
    """After how many rounds nothing changes any more in any row."""
    guess, judge = seen["first"], jax.jit(seen["judge"])
    for count in range(200):
        units = judge(guess)
        if np.array_equal(units.taken, guess.taken) and (np.array(units.end == guess.end) | ~np.array(units.taken)).all():
            return count
        guess = units
    raise AssertionError("the rounds do not come to an end")


@pytest.mark.parametrize(("name", "rate"), [("books.txt.gz", 0.15), ("help-de.txt.gz", 0.4)])
def test_all_at_once_as_one_after_another(data_dir, monkeypatch, name, rate):
    """German in an English vocabulary has long words, which is what makes the order matter."""
    rows, length = 96, 128
    maskable, starts = text(data_dir, name, rows, length)
    slots, row_seeds = int(rate * length + 0.5), seeds(KEY, rows)
    rng = np.random.default_rng(0)
    budget = rng.integers(1, slots + 1, rows)
    most = 0
    bounds = np.where(starts | ~maskable, np.arange(length), length)
    following = np.pad(np.minimum.accumulate(bounds[:, ::-1], axis=1)[:, ::-1][:, 1:], ((0, 0), (0, 1)), constant_values=length)

    def ends_of(row, begin, count):
        end = following[row, begin]
        for _ in range(count - 1):
            end = following[row, end] if end < length and maskable[row, end] else end
        return end

    order, size_seeds = functional.fold(row_seeds, 0), functional.fold(row_seeds, 1)
    for max_ngram in (1, 3):
        found, seen = candidates_seen(monkeypatch, masking.words, row_seeds, maskable, starts, budget, slots, max_ngram)
        begin, valid = seen["first"].begin, seen["first"].taken
        size = np.asarray(masking._draw(functional.uniform(size_seeds, begin.shape), 1 / np.arange(1, max_ngram + 1)))
        most = max(most, rounds_needed(seen))
        for row in range(rows):
            ends = np.array([[ends_of(row, b, n) for n in range(1, max_ngram + 1)] for b in begin[row]])
            expected = sequential_words(begin[row], size[row], ends, valid[row], budget[row])
            assert set(np.flatnonzero(found[row] >= 0)) == expected

    found, seen = candidates_seen(monkeypatch, masking.spans, row_seeds, maskable, starts, budget, slots)
    begin, valid = seen["first"].begin, seen["first"].taken
    anchor = np.asarray(jax.lax.top_k(jnp.where(maskable, functional.uniform(order, maskable.shape), -1.0), begin.shape[1])[1])
    size = np.asarray(masking._draw(functional.uniform(size_seeds, begin.shape), 0.8 ** np.arange(10)))
    word_start = np.maximum.accumulate(np.where(starts, np.arange(length), 0), axis=1)
    most = max(most, rounds_needed(seen))
    for row in range(rows):
        expected = sequential_spans(
            anchor[row], size[row], functools.partial(ends_of, row), word_start[row], valid[row], budget[row]
        )
        assert set(np.flatnonzero(found[row] >= 0)) == expected and len(expected) == budget[row]

    found, seen = candidates_seen(monkeypatch, masking.blocks, row_seeds, maskable, budget, slots + 5)
    most = max(most, rounds_needed(seen))
    for row in range(rows):
        blocks = sequential_blocks(*(part[row] for part in seen["first"]), budget[row])
        assert [set(np.flatnonzero(found[row] == number)) for number in range(1, found[row].max() + 1)] == blocks
    assert most <= 10 < masking.ROUNDS


def test_too_few_rounds_choose_less_but_nothing_wrong(data_dir, monkeypatch):
    """Where verdicts still change, they are left out: words stay whole and budgets kept."""
    rows, length, slots = 96, 128, 51
    maskable, starts = text(data_dir, "help-de.txt.gz", rows, length)
    choose = functools.partial(masking.words, seeds(KEY, rows), maskable, starts, np.full(rows, slots), slots, 3)
    right = np.asarray(choose()) >= 0
    monkeypatch.setattr(masking, "ROUNDS", 4)
    early = np.asarray(choose()) >= 0
    assert (early & ~right).sum() == 0 and (early != right).any()
    word = np.cumsum(starts | ~maskable, axis=1)
    for row in range(rows):
        hidden = np.unique(word[row][early[row]])
        assert early[row][np.isin(word[row], hidden) & maskable[row]].all()


def runs(chosen) -> list[int]:
    """Lengths of the runs of True in one row, sorted."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]])))
    return sorted((edges[1::2] - edges[::2]).tolist())


def test_ngram_sizes_are_inverse():
    """Long rows of one-piece words, budget 3, two candidates: the units hardly ever touch, so the runs tell their sizes."""
    rows, length = 4096, 2048
    everywhere = jnp.ones((rows, length), bool)
    choose = jax.jit(masking.words, static_argnums=(4, 5))
    chosen = np.asarray(choose(seeds(KEY, rows), everywhere, everywhere, jnp.full((rows,), 3), 1, 3)) >= 0
    found = [tuple(runs(row)) for row in chosen]
    one, two, three = (6 / 11, 3 / 11, 2 / 11)
    assert set(found) <= {(3,), (1, 2), (1, 1), (2,), (1,)}
    assert inside(found.count((3,)), rows, three)
    assert inside(found.count((1, 1)), rows, one * one)
    assert inside(found.count((1, 2)), rows, two + one * (two + three))


def test_ngrams_stop_at_special_tokens():
    """Islands of two words between special tokens: a unit of three ends at the special token and never jumps it."""
    length = 46
    place = np.arange(length)
    maskable = np.broadcast_to(place % 3 != 0, (512, length))
    choose = jax.jit(masking.words, static_argnums=(4, 5))
    chosen = np.asarray(choose(seeds(KEY, 512), maskable, maskable, jnp.full((512,), 3), 1, 3)) >= 0
    assert not (chosen & ~maskable).any()
    found = {tuple(runs(row)) for row in chosen}
    assert found <= {(1, 2), (1, 1), (2,), (1,)} and (1, 2) in found


def test_span_lengths_are_geometric():
    """Budget 10 in long rows of one-piece words: which lengths fill it, the last one cut, follows from the law of one span."""
    law = 0.2 * 0.8 ** np.arange(10)
    law /= law.sum()
    assert round((law * np.arange(1, 11)).sum(), 1) == 3.8  # SpanBERT, section 3.1

    def fillings(left: int) -> dict[tuple[int, ...], float]:
        found = collections.Counter({(): 1.0} if left == 0 else {})
        for size, share in enumerate(law if left else (), start=1):
            for rest, probability in fillings(left - min(size, left)).items():
                found[tuple(sorted((min(size, left), *rest)))] += share * probability
        return found

    rows, length = 2048, 4000
    everywhere = jnp.ones((rows, length), bool)
    first = np.asarray(jax.jit(masking.spans, static_argnums=4)(
        seeds(KEY, rows), everywhere, everywhere, jnp.full((rows,), 10), 10
    ))
    found = collections.Counter(tuple(runs(row >= 0)) for row in first)
    assert all(sum(sizes) == 10 for sizes in found)
    expected = fillings(10)
    assert sum(expected.values()) == pytest.approx(1)
    for sizes, probability in expected.items():  # spans that touch, below 1% of the rows, make one of two
        assert inside(found[sizes], rows, probability)
    assert np.array_equal(first[first >= 0], masking.run_starts(first >= 0)[first >= 0]), "a place tells where its span begins"


def test_blocks_have_the_papers_sizes():
    """The first block of a row: 1 with probability 0.6, 2 to 6 with 0.08 each, less what would leave the row."""
    rows, length = 4096, 300
    everywhere = jnp.ones((rows, length), bool)
    turns = np.asarray(jax.jit(masking.blocks, static_argnums=3)(seeds(KEY, rows), everywhere, jnp.full((rows,), 20), 25))
    law = np.array([0.6] + [0.08] * 5) * (length - np.arange(6))  # places where such a block may begin
    sizes = (turns == 1).sum(axis=1)
    assert all(inside((sizes == n).sum(), rows, law[n - 1] / law.sum()) for n in range(1, 7))
    begins = (turns == 1).argmax(axis=1)
    assert stats.kstest(begins / length, "uniform").pvalue > 1e-6
    total = (turns > 0).sum(axis=1)
    assert total.min() == 20 and total.max() <= 25
    for row in turns:
        assert all(runs(row == number) in ([1], [2], [3], [4], [5], [6]) for number in range(1, row.max() + 1))
        assert (row[row > 0] == row.max()).sum() + 20 > (row > 0).sum(), "only the last block may exceed the budget"


def test_what_is_cut_short_has_its_budget():
    """Every place but one special: whatever the unit, that one is chosen and nothing else. All special: none is."""
    choices = (
        lambda s, where, n: masking.pieces(s, where, n, 3), lambda s, where, n: masking.words(s, where, where, n, 3, 2),
        lambda s, where, n: masking.spans(s, where, where, n, 3), lambda s, where, n: masking.blocks(s, where, n, 8) - 1,
    )
    for place in (7, None):
        maskable = np.broadcast_to(np.arange(16) == place, (4, 16))
        for choose in choices:
            found = jax.jit(choose)(seeds(KEY, 4), maskable, np.full(4, 1))
            assert (np.asarray(found) >= 0).tolist() == maskable.tolist()


def test_replacements():
    action = jnp.array([[0.0, 0.49, 0.5, 0.69, 0.7, 0.79, 0.8, 0.99]])
    labels, drawn = jnp.full((1, 8), 9), jnp.full((1, 8), 8)
    found = masking.replacements(action, labels, drawn, PIECES, 0.5, 0.2, 0.1)
    assert found.tolist() == [[4, 4, 8, 8, 1, 1, 9, 9]]


@pytest.mark.parametrize(
    ("rate", "count", "expected"), [(0.15, 20, 3), (0.15, 21, 4), (0.3, 10, 3), (0.15, 510, 77), (0.15, 0, 0)]
)
def test_shares_are_rounded_up(rate, count, expected):
    assert int(masking.ceil_share(rate, jnp.asarray(count))) == expected == masking.most_of_share(rate, count)
