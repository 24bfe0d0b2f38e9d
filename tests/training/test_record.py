"""The record of a run: what is drawn when, and what starting it does not cost."""

import subprocess
import sys

import pytest

from bert_jax.training import record


def test_starting_a_run_imports_neither_torch_nor_scipy_stats(tmp_path):
    """tensorboardX would import torch; its writer works without, and torch can be imported afterwards."""
    pytest.importorskip("torch")
    code = (
        "import sys, pathlib, bert_jax.training.pretrain\n"
        "from bert_jax.training.record import Record\n"
        "kept = Record(pathlib.Path(sys.argv[1]), 2, 0)\n"
        "kept.write(1, 'train', {'loss': 1.0})\n"
        "kept.close()\n"
        "print({'torch', 'scipy.stats'} & set(sys.modules), 'torch' in sys.modules)\n"
        "import torch; print(torch.ones(2).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set() False", "2.0"]
    assert b"train/loss" in next((tmp_path / "tensorboard").glob("events.*")).read_bytes()


def test_curves_are_drawn_now_and_then_and_in_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(record, "draw", lambda metrics, picture: drawn.append(len(record.read(metrics))))
    kept = record.Record(tmp_path, 9, 0)
    kept.write(1, "eval", {"mlm_loss": 2.0})
    assert drawn == [], "a run of seconds is drawn once, when it ends"
    monkeypatch.setattr(record, "DRAW_SECONDS", -1.0)
    kept.write(2, "train", {"mlm_loss": 2.0})
    kept.write(2, "eval", {"mlm_loss": 2.0})
    assert drawn == [3]
    kept.close()
    assert drawn == [3], "nothing has come since"

    kept = record.Record(tmp_path, 9, 2)
    kept.write(3, "train", {"mlm_loss": 2.0})
    kept.close()
    assert drawn == [3, 4]
