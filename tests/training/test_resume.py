"""Killed and stopped at any moment: the continued run ends bit for bit where an uninterrupted one does."""

import pathlib
import random
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest

from bert_jax import config
from bert_jax.checkpoint import Checkpoints
from bert_jax.data.store import TokenStore
from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.parallel.mesh import MeshConfig, make_mesh
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import make_optimizer
from bert_jax.training.record import read
from bert_jax.training.step import abstract_state

STEPS = 90
SETTINGS = ("train.steps=90", "train.save_every=3", "train.eval_every=45", "train.log_every=1", "train.keep=2")


def wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 120.0) -> None:
    """Waits until ``condition()`` holds, or the process has ended."""
    limit = time.monotonic() + seconds
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < limit, "nothing happened in time"
        time.sleep(0.02)


def final_state(workdir: pathlib.Path, store: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, parameters and optimiser, by path."""
    experiment = config.load(Experiment, workdir / "experiment.json")
    task = PretrainingTask(experiment.task, TokenStore(store))
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, task.logical_axes())
    abstract = abstract_state(task, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore({"params": abstract.params, "optimizer": abstract.optimizer}, step)
    checkpoints.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(restored.items)}


def assert_same_state(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys() and len(one) > 30
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.tobytes() == other[name].tobytes(), name


def steps_recorded(workdir: pathlib.Path, kind: str) -> list[int]:
    return [row["step"] for row in read(workdir / "metrics.jsonl") if row["kind"] == kind]


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Waits for a run that must end with ``status``; returns what it wrote to stderr."""
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == status, errors
    return errors


@pytest.mark.slow
def test_interrupted_runs_end_as_if_nothing_happened(start_tiny, tiny_store, tmp_path):
    """Two kills at random moments (a save every three steps, so most of them fall into a save), then SIGTERM, then on to
    the end; and a copy whose newest checkpoint was damaged besides."""
    finish(start_tiny(tmp_path / "whole", *SETTINGS))
    whole = final_state(tmp_path / "whole", tiny_store, STEPS)
    assert steps_recorded(tmp_path / "whole", "train") == list(range(1, STEPS + 1))

    workdir, chance = tmp_path / "broken", random.Random()
    reached = 0
    for number in range(2):
        process = start_tiny(workdir, *SETTINGS)
        wait_for(lambda: max(steps_recorded(workdir, "train"), default=0) > reached + 3, process)  # noqa: B023
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "over before it could be killed"
        reached = max(steps_recorded(workdir, "train"))
        assert number == 0 or reached < STEPS

    process = start_tiny(workdir, *SETTINGS)
    wait_for(lambda: max(steps_recorded(workdir, "train")) > reached, process)
    process.send_signal(signal.SIGTERM)
    errors = finish(process, 75)
    stopped = max(Checkpoints(workdir / "checkpoints").steps())
    assert "continuing" in errors and f"saved step {stopped} of {STEPS}" in errors and stopped < STEPS

    copied = shutil.copytree(workdir, tmp_path / "damaged")
    for path in (copied / "checkpoints" / str(stopped) / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-7])
    last, after_damage = finish(start_tiny(workdir, *SETTINGS)), finish(start_tiny(copied, *SETTINGS))
    assert f"continuing {workdir} from step {stopped} of {STEPS}" in last
    assert f"checkpoints/{stopped} is damaged and skipped" in after_damage
    for folder in (workdir, copied):
        assert_same_state(final_state(folder, tiny_store, STEPS), whole)
        assert steps_recorded(folder, "train") == list(range(1, STEPS + 1)), "every step is recorded once"
        assert steps_recorded(folder, "eval") == [45, 90]
        assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir()) == [87, 90]
        for ours, theirs in zip(read(folder / "metrics.jsonl"), read(tmp_path / "whole" / "metrics.jsonl"), strict=True):
            speed = ("time", "sequences_per_second", "tokens_per_second")
            assert {k: v for k, v in ours.items() if k not in speed} == {k: v for k, v in theirs.items() if k not in speed}
