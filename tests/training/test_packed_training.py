"""Runs on rows of several examples: eight devices do what one does, and a run that was stopped ends as if it had not been."""

import jax
import numpy as np
import pytest

from bert_jax.checkpoint import Checkpoints
from bert_jax.data.store import TokenStore
from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
from bert_jax.training import train as train_module
from bert_jax.training.optimizer import make_optimizer
from bert_jax.training.record import read
from bert_jax.training.step import abstract_state, init_state, make_train_step

PACKED = ("task.examples.length=128", "task.encoder.max_length=128", "task.examples.packing=5", "task.encoder.layers=1")
SPEED = {"time", "sequences_per_second", "tokens_per_second"}


@pytest.fixture
def trace(tiny_store, tiny_experiment):
    """``trace(sizes, accumulate)``: the metrics of two updates on a mesh, and the parameters after them."""
    experiment = tiny_experiment("bert", *PACKED)
    task = PretrainingTask(experiment.task, TokenStore(tiny_store))
    optimizer = make_optimizer(experiment.optimizer, 10, task.logical_axes())

    def trace(sizes, accumulate):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
        abstract = abstract_state(task, optimizer, mesh)
        step = make_train_step(task, optimizer, mesh, abstract, accumulate=accumulate)
        batches, metrics = task.train_batches(16, 0), []
        with jax.set_mesh(mesh):
            state = init_state(task, optimizer, abstract, jax.random.key(0))
            for _ in range(2):
                batch = next(batches)
                assert batch["example_ids"].max() >= 2
                state, found = step(state, to_devices(batch, mesh))
                metrics.append({name: np.array(ratio) for name, ratio in jax.device_get(found).items()})
            return metrics, jax.device_get(state.params)

    return trace


@pytest.mark.slow
def test_eight_devices_and_micro_batches_do_what_one_does(trace):
    """Dropout and masks included; sums and weights of the losses are those of the whole batch."""
    (one, params), (eight, others), (micro, _) = trace((1, 1, 1), 1), trace((2, 2, 2), 1), trace((1, 1, 1), 2)
    assert one[0]["nsp_loss"][1] > 20, "a weight is of examples, of which 16 rows have more"
    for before, after in zip(one, eight, strict=True):
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    for path, leaf in jax.tree.leaves_with_path(params):
        np.testing.assert_allclose(dict(jax.tree.leaves_with_path(others))[path], leaf, atol=1e-4, err_msg=str(path))
    for name in ("mlm_loss", "nsp_loss", "tokens"):  # dropout differs between micro-batches, what is counted does not
        assert micro[0][name][1] == one[0][name][1]


@pytest.mark.slow
def test_a_stopped_run_ends_as_if_nothing_had_happened(run_tiny, tiny_store, tmp_path, monkeypatch):
    settings = (*PACKED, "train.steps=8", "train.save_every=3", "train.eval_every=8", "train.log_every=1", "train.keep=3")
    whole = run_tiny(tmp_path / "whole", *settings)

    class Killed(Exception):
        """What ends the run after its fifth update, two after the last save."""

    real, done = train_module.to_devices, []

    def to_devices_until_killed(batch, mesh):
        if len(done) == 5:
            raise Killed
        done.append(batch)
        return real(batch, mesh)

    monkeypatch.setattr(train_module, "to_devices", to_devices_until_killed)
    with pytest.raises(Killed):
        run_tiny(tmp_path / "broken", *settings)
    monkeypatch.setattr(train_module, "to_devices", real)
    assert max(Checkpoints(tmp_path / "broken" / "checkpoints").steps()) == 3
    again = run_tiny(tmp_path / "broken", *settings)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert whole.evaluation == again.evaluation
    records = [{row["step"]: {k: v for k, v in row.items() if k not in SPEED} for row in read(tmp_path / name / "metrics.jsonl")
                if row["kind"] == "train"} for name in ("whole", "broken")]
    assert records[0] == records[1] and len(records[0]) == 8
    seen = [row["examples_seen"] for row in records[0].values()]
    assert seen[-1] > 1.5 * 8 * 16 and sorted(set(seen)) == seen, "examples are counted, not rows"
