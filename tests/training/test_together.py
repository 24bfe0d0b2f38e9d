"""Seeds that train as one program: each does what it would do alone, and leaves the same."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.parallel.mesh import MeshConfig, make_mesh
from bert_jax.tasks import shared_rows
from bert_jax.tasks.freelb import FreeLB
from bert_jax.tasks.mixout import Mixout
from bert_jax.tasks.shared_rows import Shape
from bert_jax.tasks.smart import Smart
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW, Lamb
from bert_jax.training.record import read
from bert_jax.training.train import train
from tests.tasks.tiny_tasks import make_task

SEEDS = (3, 7)


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    if "eight" not in request.node.name:
        monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


def experiment(task, optimizer=None, **changes) -> Experiment:
    settings = dict(steps=4, batch_size=8, eval_every=2, save_every=2, log_every=1, eval_batches=None, keep=1, seed=SEEDS[0])
    optimizer = optimizer or AdamW(0.01, 1, eps=1e-3, bias_correction=True)  # rounding alone moves nothing by a whole step
    return Experiment(task.config, optimizer, TrainConfig(**settings | changes), MeshConfig())


def with_seed(one: Experiment, seed: int) -> Experiment:
    return dataclasses.replace(one, train=dataclasses.replace(one.train, seed=seed))


def close(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4), a, b)


CASES = {
    "plain": ({}, {}), "several lengths": ({"fields": {"lengths": (8, 16)}}, {}),
    "LAMB, micro-batches": ({}, {"optimizer": Lamb(0.01, 1), "accumulate": 2}),
    "choice, freelb": ({"kind": "Choice", "tricks": (FreeLB(),)}, {}),
    "smart and mixout": ({"tricks": (Smart(radius=1e-2), Mixout(0.5)), "fields": {"reinitialise": 1}}, {}),
    "lora": ({"lora_rank": 2}, {}),
    "shared rows": ({"fields": {"packing": True}, "attention_dropout": 0.0}, {}),
    "gradual": ({}, {"optimizer": AdamW(0.01, 1, eps=1e-3, unfreeze_every=1, layer_decay=0.8)}),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case != "shared rows")) for case in CASES])
def test_each_does_what_it_would_do_alone(case, tmp_path, monkeypatch):
    made, changes = CASES[case]
    if case == "shared rows":  # of batches that fit into the smaller shape, one beside one that does not is in the larger
        shapes = Shape(2, 28, 8), Shape(3, 40, 8)
        monkeypatch.setattr(shared_rows, "choose_shapes", lambda *words: (shapes, 1.0))
    kind, dropout = made.get("kind", "Classification"), 0.0 if case == "several lengths" else 0.1
    task = make_task(**{"kind": kind, "dropout": dropout, "attention_dropout": dropout} | made)
    settings = experiment(task, **changes)
    joint = train(task, settings, tmp_path / "joint", runs={seed: tmp_path / f"part-{seed}" for seed in SEEDS})
    alone = {seed: train(task, with_seed(settings, seed), tmp_path / f"alone-{seed}") for seed in SEEDS}
    first, second = (jax.tree.leaves(jax.device_get(alone[seed].params)) for seed in SEEDS[:2])
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(first, second, strict=True))  # seeds do differ
    for run, seed in enumerate(SEEDS):
        close(jax.tree.map(lambda x, run=run: x[run], jax.device_get(joint.params)), jax.device_get(alone[seed].params))
        for name, value in alone[seed].evaluation.items():
            assert joint.evaluation[f"{name}.{seed}"] == pytest.approx(value, abs=1e-3), name


@pytest.mark.slow
def test_what_each_leaves_is_a_finished_run(tmp_path):
    task = make_task()
    settings = experiment(task)
    train(task, settings, tmp_path / "joint", runs={seed: tmp_path / f"part-{seed}" for seed in SEEDS})
    for seed in SEEDS:
        part, alone = tmp_path / f"part-{seed}", tmp_path / f"alone-{seed}"
        found = train(task, with_seed(settings, seed), part)  # nothing is left to do
        there = train(task, with_seed(settings, seed), alone)
        assert found.finished and found.step == 4
        close(jax.device_get(found.params), jax.device_get(there.params))
        rows, expected = read(part / "metrics.jsonl"), read(alone / "metrics.jsonl")
        kept = [(row["step"], row["kind"]) for row in expected]
        assert [(row["step"], row["kind"]) for row in rows][: len(kept)] == kept
        for row, other in zip(rows, expected, strict=False):
            assert set(row) == set(other) and row["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert json.loads((part / "experiment.json").read_text())["train"]["seed"] == seed
        assert (part / "curves.png").is_file()
    more = dataclasses.replace(settings, train=dataclasses.replace(settings.train, steps=6, seed=7))
    longer = [jax.device_get(train(task, more, tmp_path / name).params) for name in ("part-7", "alone-7")]
    close(*longer)  # its moments and its place in the data are there too


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(tmp_path):
    task = make_task()
    settings, runs = experiment(task), lambda name: {seed: tmp_path / f"{name}-{seed}" for seed in SEEDS}
    straight = train(task, settings, tmp_path / "straight", runs=runs("a"))
    short = dataclasses.replace(settings, train=dataclasses.replace(settings.train, steps=4))

    class Stops(Exception):
        pass

    given = task.train_batches

    def some(*arguments):
        batches = given(*arguments)
        make, left = type(batches).__next__, iter(range(3))

        class Few(type(batches)):
            def __next__(self):
                if next(left, None) is None:
                    raise Stops
                return make(self)

        batches.__class__ = Few
        return batches

    task.train_batches = some
    with pytest.raises(Stops):
        train(task, short, tmp_path / "again", runs=runs("b"))
    task.train_batches = given
    resumed = train(task, settings, tmp_path / "again", runs=runs("b"))
    assert resumed.finished and "continuing" not in str(resumed)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(straight.params), jax.device_get(resumed.params))
    with pytest.raises(BertJaxError, match="seeds 3, 7, this run has seeds 3, 5"):
        train(task, settings, tmp_path / "again", runs={seed: tmp_path / f"c-{seed}" for seed in (3, 5)})


@pytest.mark.slow
def test_on_eight_devices_too(tmp_path):
    task = make_task(dropout=0.1)
    settings = dataclasses.replace(experiment(task), mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    joint = train(task, settings, tmp_path / "joint", runs={seed: tmp_path / f"part-{seed}" for seed in SEEDS})
    for run, seed in enumerate(SEEDS):
        alone = train(task, with_seed(settings, seed), tmp_path / f"alone-{seed}")
        close(jax.tree.map(lambda x, run=run: x[run], jax.device_get(joint.params)), jax.device_get(alone.params))


def test_what_cannot_be_done_together_is_refused(tmp_path):
    task = make_task()
    settings = experiment(task, best="classifier_accuracy")
    with pytest.raises(BertJaxError, match="train.best is 'classifier_accuracy'.*end together"):
        train(task, settings, tmp_path / "joint", runs={0: tmp_path / "a", 1: tmp_path / "b"})
    assert not (tmp_path / "joint").exists()
