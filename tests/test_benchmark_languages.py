"""What benchmarks/languages.py trains on and measures with."""

import languages
import pytest

from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.planning.flops import task_work


def test_documents_are_aligned_and_lines_differ(data_dir):
    every = languages.documents(data_dir)
    assert len(every) > 2_000
    assert all(len({len(lines) for lines in one.values()}) == 1 for one in every)
    lines = languages.lines_of_the_manual(data_dir, 1)
    for texts in [*lines.values(), *languages.sentences_of_pud(data_dir).values()]:
        assert len(texts) == len(set(texts)) == languages.RETRIEVED


@pytest.mark.parametrize("row", languages.ROWS)
def test_rows_are_of_one_size(row):
    size = languages.SIZES["cpu"]
    value, store = languages.experiment(row, size, seed=1)
    power = getattr(value.task.examples, "language_exponent", None)
    assert (store, power) == {
        "mlm": ("even", None), "tlm": ("even", None), "as_they_are": ("uneven", None),
        "power_0.7": ("uneven", 0.7), "power_0.3": ("uneven", 0.3),
    }[row]
    first, _ = languages.experiment("mlm", size, seed=0)
    assert task_work(PretrainingTask(value.task, None)).useful == task_work(PretrainingTask(first.task, None)).useful
