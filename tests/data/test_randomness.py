"""The shuffle is a permutation, and the numbers have the distribution they claim."""

import math

import numpy as np
import pytest

from bert_jax.data import randomness


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 16, 17, 100, 101, 1000, 4097, 65_536, 99_991])
def test_permute_is_a_bijection(count):
    for seed in range(3):
        found = randomness.permute(np.arange(count), count, randomness.key(seed, 0))
        np.testing.assert_array_equal(np.sort(found), np.arange(count))


def test_permutations_differ_and_look_random():
    count = 10_000
    index = np.arange(count)
    one, two = (randomness.permute(index, count, randomness.key(7, epoch)) for epoch in (0, 1))
    # Agreements of two random permutations are Poisson(1); correlations have standard deviation 1 / sqrt(n).
    assert (one == two).sum() < 10 and (one == index).sum() < 10
    for a, b in ((one, two), (one, index), (one[1:], one[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(count)


def test_permute_takes_a_key_for_each_index():
    keys = randomness.key(3, np.array([0, 0, 1, 1, 2]))
    index = np.array([5, 6, 5, 6, 5])
    found = randomness.permute(index, 50, keys)
    single = [randomness.permute(index[i : i + 1], 50, keys[i : i + 1])[0] for i in range(5)]
    np.testing.assert_array_equal(found, single)


def test_keys_depend_on_every_part_and_their_order():
    keys = [randomness.key(s, a, b) for s in (0, 1, -1, 2**63) for a in range(10) for b in range(10)]
    assert len({int(key) for key in keys}) == len(keys)
    np.testing.assert_array_equal(randomness.key(5, np.arange(4), 2), [randomness.key(5, i, 2) for i in range(4)])


def test_uniform_below_and_heads_have_their_distributions():
    count = 200_000
    key = randomness.key(0, np.arange(count))
    uniform = randomness.uniform(key, 3)
    assert 0 <= uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    counts = np.bincount(randomness.below(key, 4, 10), minlength=10)
    assert len(counts) == 10
    assert ((counts - count / 10) ** 2 / (count / 10)).sum() < 40  # chi-squared with 9 degrees of freedom
    for coins in (1, 63, 64, 65, 128, 300):
        heads = randomness.heads(key, 5, np.full(count, coins))
        assert heads.min() >= 0 and heads.max() <= coins
        assert abs(heads.mean() - coins / 2) < 5 * math.sqrt(coins / 4 / count)
        assert abs(heads.var() / (coins / 4) - 1) < 5 * math.sqrt(2 / count) + 0.02
    assert (randomness.heads(key, 5, np.zeros(count, int)) == 0).all()
    assert abs(np.corrcoef(uniform, randomness.uniform(key, 4))[0, 1]) < 5 / math.sqrt(count)


def test_heads_of_one_row_do_not_depend_on_the_others():
    key = randomness.key(0, np.arange(3))
    together = randomness.heads(key, 5, np.array([10, 500, 70]))
    alone = [randomness.heads(key[i : i + 1], 5, np.array([n]))[0] for i, n in enumerate((10, 500, 70))]
    np.testing.assert_array_equal(together, alone)
