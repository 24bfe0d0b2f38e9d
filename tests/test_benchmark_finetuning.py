"""What the fine-tuning benchmark measures, and how seconds of both sides are compared."""

import finetuning
import pytest

from bert_jax.models.config import EncoderConfig


def row(seed, side, epoch, run, task="speed", alone=True):
    return {"task": task, "seed": seed, "side": side, "seconds_per_epoch": epoch, "seconds": run, "peak_mib": 100 * epoch,
            "alone": alone}


def test_times_are_compared_pair_by_pair_of_what_ran_alone():
    rows = [
        row(0, "ours", 1.0, 10.0), row(0, "trainer", 3.0, 12.0), row(1, "trainer", 5.0, 40.0), row(1, "ours", 2.0, 20.0),
        row(2, "ours", 9.0, 9.0),  # has no other side
        row(3, "ours", 9.0, 9.0, alone=False), row(3, "trainer", 1.0, 1.0), row(0, "ours", 7.0, 7.0, task="RTE"),
    ]
    found = finetuning.timing(rows, "speed", "trainer")
    assert found.epochs == [3.0, 2.5] and found.runs == [1.2, 2.0]
    assert found.epoch == (1.5, 4.0) and found.run == (15.0, 26.0) and found.peak == (150.0, 400.0)
    assert finetuning.times_as_long(found.epochs) == "2.75 (2.50 to 3.00)" and finetuning.times_as_long([2.0]) == "2.00"
    assert finetuning.timing(rows, "speed", "default") is None and finetuning.timing(rows, "RTE", "trainer") is None


def test_all_of_sst2_is_a_task_of_its_own_where_sst2_is_cut():
    cells = {name: finetuning.cells(size) for name, size in finetuning.SIZES.items()}
    whole = [cell for cell in cells["cpu"] if "whole" in cell]
    assert whole[:2] == ["SST-2 whole-0-ours", "SST-2 whole-0-trainer"] and len(whole) == 10
    assert not any("whole" in cell for name in ("full", "gpu", "test") for cell in cells[name])


@pytest.mark.parametrize("task, rows, updates", [("SST-2", 8_192, 768), (finetuning.WHOLE, 67_349, 2_104)])
def test_rows_and_updates_of_sst2(data_dir, tmp_path, task, rows, updates):
    experiment, score, count = finetuning.recipe(
        task, 3, finetuning.SIZES["cpu"], data_dir, tmp_path, tmp_path / "no-weights", EncoderConfig()
    )
    assert (count, experiment.train.steps, experiment.train.seed, score) == (rows, updates, 3, "accuracy")
