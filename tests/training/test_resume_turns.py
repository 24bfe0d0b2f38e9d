"""A run whose objectives take turns, killed: it ends bit for bit where an uninterrupted one does."""

import pytest

from bert_jax.training.record import read
from tests.training.test_resume import assert_same_state, final_state, finish, steps_recorded, wait_for


@pytest.mark.slow
def test_killed_with_turns_ends_as_if_nothing_had_happened(start_tiny, tiny_store, tmp_path):
    """Bit for bit, and with the same record, though the moment of the kill lies anywhere between two saves."""
    settings = (
        "train.steps=30", "train.save_every=4", "train.eval_every=15", "train.log_every=1", "task.encoder.layers=1",
        'task.turns=[{"kind": "Turn", "name": "order", "share": 0.6, "objectives": [{"kind": "Structural"}, '
        '{"kind": "MaskedLM"}, {"kind": "WordOrder"}], "examples": {"kind": "PairSpec", "length": 16, "pairs": "structural"}}]',
    )
    finish(start_tiny(tmp_path / "whole", *settings))
    process = start_tiny(tmp_path / "broken", *settings)
    wait_for(lambda: max(steps_recorded(tmp_path / "broken", "train"), default=0) >= 11, process)
    process.kill()
    process.communicate()
    assert max(steps_recorded(tmp_path / "broken", "train")) < 30, "over before it could be killed"
    finish(start_tiny(tmp_path / "broken", *settings))
    whole, broken = (final_state(tmp_path / name, tiny_store, 30) for name in ("whole", "broken"))
    assert any("structural" in name for name in whole)
    assert_same_state(broken, whole)
    speed = {"time", "sequences_per_second", "tokens_per_second"}
    records = [[{k: v for k, v in row.items() if k not in speed} for row in read(tmp_path / name / "metrics.jsonl")]
               for name in ("whole", "broken")]
    assert records[0] == records[1]
    turns_taken = ["order_structural_loss" in row for row in records[0] if row["kind"] == "train"]
    assert turns_taken[:8] == [False, True, False, True, False, False, True, False] and len(turns_taken) == 30
