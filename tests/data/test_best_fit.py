"""In which rows texts cost least; how rows are filled is tested with those who fill them."""

import numpy as np
import pytest

from bert_jax.data.best_fit import cheapest_row


@pytest.mark.parametrize("size, alone, longest, width, row", [
    (54, 64, 512, 384, 112),  # two in a row
    (4, 8, 512, 384, 64),
    (4, 4, 512, 384, None),  # there is no padding to save, and attention over long rows costs more
    (250, 256, 512, 384, None),  # longer than any
    (128, 128, 512, 384, None),  # no two of them share a row
    (54, 64, 111, 384, None), (10, 16, 32, 384, None),  # the position table has fewer
    (38, 48, 512, 64, 80), (38, 48, 512, 10_000, 192),  # attention costs more where the encoder is narrow
])
def test_the_row_that_costs_least_is_taken(size, alone, longest, width, row):
    assert cheapest_row(np.full(120, size), np.full(120, alone), longest, width) == row


def test_what_is_too_long_for_a_row_counts_alike():
    sizes, alone = np.array([54] * 100 + [300] * 10), np.array([64] * 100 + [384] * 10)
    assert cheapest_row(sizes, alone, 512, 384) == 112
