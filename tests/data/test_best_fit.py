"""In which rows texts cost least; how rows are filled is tested with those who fill them."""

import numpy as np
import pytest

from bert_jax.data.best_fit import cheapest_row


@pytest.mark.parametrize("size, alone, width, row", [
    (54, 64, 384, 112),  # two in a row
    (4, 8, 384, 64),
    (4, 4, 384, None),  # there is no padding to save, and attention over long rows costs more
    (250, 256, 384, None),  # longer than any
    (128, 128, 384, None),  # no two of them share a row
    (38, 48, 64, 80), (38, 48, 10_000, 192),  # attention costs more where the encoder is narrow
])
def test_the_row_that_costs_least_is_taken(size, alone, width, row):
    assert cheapest_row(np.full(1200, size), np.full(1200, alone), 1, 1, width) == row


def test_what_is_too_long_for_a_row_counts_alike():
    sizes, alone = np.array([54] * 1000 + [300] * 100), np.array([64] * 1000 + [384] * 100)
    assert cheapest_row(sizes, alone, 1, 1, 384) == 112


def test_of_few_texts_fewer_rows_are_tried():
    few, many = (np.full(count, 38) for count in (999, 1000))
    assert cheapest_row(few, few + 10, 1, 1, 384) == 128 and cheapest_row(many, many + 10, 1, 1, 384) == 80


def test_batches_are_computed_whole():
    """64 texts of 8 tokens fill one batch of 64 rows; 8 rows of 64 would be a batch of 16."""
    eight = np.full(64, 8)
    assert cheapest_row(eight, eight + 8, 8, 64, 384) == 64 and cheapest_row(eight, eight + 8, 16, 64, 384) is None
    assert cheapest_row(eight, eight + 8, 16, 128, 384) == 64


def test_what_was_chosen_before_stays_unless_more_is_saved():
    """Of 38 tokens each, in rows of 80, 112, 128, 160 and 192: 41.4, 58.7, 45.0, 42.8 and 41.6, and alone 49.0."""
    sizes = np.full(1200, 38)
    rows = {before: cheapest_row(sizes, sizes + 10, 1, 1, 768, before) for before in (None, 80, 112, 128, 160, 192)}
    assert rows == {None: 80, 80: 80, 112: 80, 128: 80, 160: 80, 192: 192}
