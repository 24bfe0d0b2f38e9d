"""How seconds of both sides of the fine-tuning benchmark are compared."""

import finetuning


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
