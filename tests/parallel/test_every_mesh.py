"""Loss, gradients and three updates are the same on every mesh that eight devices can form, dropout and all."""

import functools

import jax
import numpy as np
import pytest

from bert_jax.data.store import TokenStore
from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.parallel.mesh import MeshConfig, make_mesh
from bert_jax.training.optimizer import make_optimizer
from bert_jax.training.step import abstract_state, init_state, make_eval_step, make_train_step
from bert_jax.training.train import to_devices

MESHES = [(d, f, t) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) for t in (1, 2, 4, 8) if d * f * t == 8]
STEPS = 3


@pytest.fixture(scope="module")
def trace(tiny_store, tiny_experiment):
    """``trace(family, mesh, accumulate, dropout)``: gradients of the first update, and the parameters and metrics after
    each of three, all as NumPy."""

    @functools.cache
    def run(family: str, sizes: tuple[int, int, int] | None, accumulate: int = 1, dropout: float = 0.1):
        experiment = tiny_experiment(
            family, f"task.encoder.dropout={dropout}", f"task.encoder.attention_dropout={dropout}",
            "optimizer.clip_norm=1e9", "optimizer.warmup_steps=0", "optimizer.learning_rate=1e-3",
        )
        task = PretrainingTask(experiment.task, TokenStore(tiny_store))
        mesh = make_mesh(MeshConfig(*(sizes or (1, 1, 1))), None if sizes else jax.devices()[:1])
        optimizer = make_optimizer(experiment.optimizer, 100, task.logical_axes())
        abstract = abstract_state(task, optimizer, mesh)
        batches = task.train_batches(16, 0)
        with jax.set_mesh(mesh):
            step = make_train_step(task, optimizer, mesh, abstract, accumulate=accumulate, seed=5)
            state = init_state(task, optimizer, abstract, jax.random.key(0))
            assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, abstract)
            initial = jax.device_get(state.params)
            history = []
            for number in range(STEPS):
                state, metrics = step(state, to_devices(next(batches), mesh))
                history.append({name: float(ratio.value) for name, ratio in jax.device_get(metrics).items()})
                if number == 0:  # the first moment after one update is (1 - beta1) times the gradient
                    gradients = jax.tree.map(lambda m: m / 0.1, jax.device_get(state.optimizer[1].mu))
            for array, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
                assert array.sharding.is_equivalent_to(wanted.sharding, array.ndim), "an update moved an array"
        return initial, gradients, history, jax.device_get(state.params)

    return run


def assert_close(one, other):
    for path, value in jax.tree.leaves_with_path(one):
        against = functools.reduce(lambda node, key: node[key.key], path, other)
        np.testing.assert_allclose(value, against, atol=1e-5, rtol=0, err_msg=jax.tree_util.keystr(path))


def assert_same_run(one, other):
    for left, right in zip(one[2], other[2], strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert left[name] == pytest.approx(right[name], rel=1e-5, abs=1e-5), name
    for part in (0, 1, 3):
        assert_close(one[part], other[part])


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_every_mesh_is_one_device(trace, family, sizes):
    alone = trace(family, None)
    assert_same_run(trace(family, sizes), alone)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone[0], alone[3])
    assert max(jax.tree.leaves(moved)) > 1e-3 and max(jax.tree.leaves(jax.tree.map(np.max, alone[1]))) > 0.01


def test_dropout_is_on(trace):
    """Else the comparison above would say nothing about it."""
    assert trace("bert", None)[2][0]["loss"] != trace("bert", None, 1, 0.0)[2][0]["loss"]


@pytest.mark.parametrize("sizes", [None, (4, 2, 1)], ids=["one", "4x2x1"])
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_accumulation_changes_nothing(trace, family, sizes):
    """Micro-batches with different numbers of predictions: sums and weights must be added before they are divided."""
    assert_same_run(trace(family, sizes, 2, 0.0), trace(family, None, 1, 0.0))


def test_compiled_is_eager(tiny_store, tiny_experiment):
    experiment = tiny_experiment("bert")
    task = PretrainingTask(experiment.task, TokenStore(tiny_store))
    params = jax.jit(task.init)(jax.random.key(0))
    batch = jax.tree.map(jax.numpy.asarray, next(task.train_batches(4, 0)))

    def loss(params, batch):
        corrupted = task.corrupt(batch, jax.random.key(1))
        losses = task.loss(params, corrupted, jax.random.key(2))
        return {name: ratio.value for name, ratio in (losses.terms | losses.metrics).items()}

    compiled = jax.jit(loss)(params, batch)
    with jax.disable_jit():
        eager = loss(params, batch)
    for name, value in compiled.items():
        np.testing.assert_allclose(value, eager[name], rtol=1e-5)


def test_evaluation_is_the_same_on_a_mesh(tiny_store, tiny_experiment):
    found = []
    for mesh in (make_mesh(MeshConfig(1), jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2))):
        experiment = tiny_experiment("bert")
        task = PretrainingTask(experiment.task, TokenStore(tiny_store))
        optimizer = make_optimizer(experiment.optimizer, 12, task.logical_axes())
        abstract = abstract_state(task, optimizer, mesh)
        with jax.set_mesh(mesh):
            params = init_state(task, optimizer, abstract, jax.random.key(0)).params
            batch = to_devices(next(iter(task.eval_batches(16, 1))), mesh)
            found.append(jax.device_get(make_eval_step(task, mesh)(params, batch, 3)))
    for name, ratio in found[0].items():
        np.testing.assert_allclose(ratio.sum, found[1][name].sum, rtol=1e-5)
        assert ratio.weight == found[1][name].weight
