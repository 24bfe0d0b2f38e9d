"""What an example has of its tokens, against a loop over examples."""

import numpy as np
import pytest

from bert_jax.tasks.owners import owners
from tests.tasks.tiny_tasks import make_batch, make_task


@pytest.mark.parametrize("kind", ["Classification", "Choice"])
@pytest.mark.parametrize("packing", [True, False], ids=["shared", "own"])
def test_sums_and_largest_are_those_of_each_example(kind, packing):
    batch = make_batch(make_task(kind, fields={"packing": packing}), 16)
    whose, mask = owners(batch), batch["attention_mask"]
    values = np.float32(np.random.default_rng(0).uniform(1, 2, mask.shape) * mask)
    sums, largest = np.array(whose.sum(values)), np.array(whose.largest(values))
    seen = np.zeros_like(mask)
    choices = batch["example_starts"].shape[1] // batch["example"].shape[1] if packing else 1
    for row, example in enumerate(batch["example"]):
        for place in np.flatnonzero(np.atleast_1d(example) >= 0):
            mine = mask[row] & (batch["example_ids"][row] // choices == place) if packing else mask[row]
            assert mine.any() and (sums[row][mine] == pytest.approx(values[row][mine].sum(), rel=1e-6))
            assert (largest[row][mine] == values[row][mine].max()).all()
            seen[row] |= mine
    assert (seen == mask).all() and (not packing or (batch["example"] >= 0).sum(axis=1).max() > 1)
