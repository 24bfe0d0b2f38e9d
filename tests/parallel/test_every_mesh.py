"""Loss, gradients and three updates are the same on every mesh that eight devices can form, dropout and all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.data.store import TokenStore
from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
from bert_jax.training.optimizer import AdamW, Lamb, make_optimizer
from bert_jax.training.step import abstract_state, init_state, make_eval_step, make_train_step

MESHES = [(d, f, t) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) for t in (1, 2, 4, 8) if d * f * t == 8]
STEPS = 3


def one_of(*optimizers: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation whose state says which of ``optimizers`` it is: one compiled step serves them all."""

    def init(params):
        return jnp.zeros((), jnp.int32), tuple(optimizer.init(params) for optimizer in optimizers)

    def update(gradients, state, params):
        choice, states = state
        updates, states = zip(*(o.update(gradients, s, params) for o, s in zip(optimizers, states, strict=True)), strict=True)
        return jax.tree.map(lambda *each: jax.lax.select_n(choice, *each), *updates), (choice, states)

    return optax.GradientTransformation(init, update)


OPTIMIZERS = {"AdamW": AdamW(1e-3, 0, clip_norm=1e9), "LAMB": Lamb(1e-3, 0, clip_norm=1e9)}


@pytest.fixture(scope="module")
def trace(tiny_store, tiny_experiment):
    """``trace(family, mesh, optimizer, accumulate, dropout)``: gradients of the first update, and the parameters and metrics
    after each of three, all as NumPy."""

    @functools.cache
    def prepare(family: str, sizes: tuple[int, int, int] | None, accumulate: int, dropout: float):
        experiment = tiny_experiment(
            family, f"task.encoder.dropout={dropout}", f"task.encoder.attention_dropout={dropout}"
        )
        task = PretrainingTask(experiment.task, TokenStore(tiny_store))
        mesh = make_mesh(MeshConfig(*(sizes or (1, 1, 1))), None if sizes else jax.devices()[:1])
        optimizer = one_of(*(make_optimizer(config, 100, task.logical_axes()) for config in OPTIMIZERS.values()))
        abstract = abstract_state(task, optimizer, mesh)
        return task, mesh, optimizer, abstract, make_train_step(task, optimizer, mesh, abstract, accumulate=accumulate)

    @functools.cache
    def fresh(family: str):
        task, mesh, optimizer, abstract, _ = prepare(family, None, 1, 0.1)
        with jax.set_mesh(mesh):
            return jax.device_get(init_state(task, optimizer, abstract, jax.random.key(0)))

    @functools.cache
    def run(family: str, sizes: tuple[int, int, int] | None, name: str = "AdamW", accumulate: int = 1, dropout: float = 0.1):
        task, mesh, optimizer, abstract, step = prepare(family, sizes, accumulate, dropout)
        batches = task.train_batches(16, 0)
        with jax.set_mesh(mesh):
            first = fresh(family)
            chosen = first._replace(optimizer=(np.int32(list(OPTIMIZERS).index(name)), first.optimizer[1]))
            state = jax.device_put(chosen, jax.tree.map(lambda x: x.sharding, abstract))
            history = []
            for number in range(STEPS):
                state, metrics = step(state, to_devices(next(batches), mesh))
                history.append({name: float(ratio.value) for name, ratio in jax.device_get(metrics).items()})
                if number == 0:  # the first moment after one update is (1 - beta1) times the gradient
                    gradients = jax.tree.map(lambda m: m / 0.1, jax.device_get(state.optimizer[1][0][1].mu))
            for array, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
                assert array.sharding.is_equivalent_to(wanted.sharding, array.ndim), "an update moved an array"
        return first.params, gradients, history, jax.device_get(state.params)

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
    for part in (1, 3):
        assert_close(one[part], other[part])


@pytest.mark.parametrize(
    "sizes", [pytest.param(sizes, marks=[pytest.mark.slow] * (sizes != (2, 2, 2))) for sizes in MESHES],
    ids=lambda sizes: "x".join(map(str, sizes)),
)
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_every_mesh_is_one_device(trace, family, sizes):
    for optimizer in OPTIMIZERS:
        alone = trace(family, None, optimizer)
        assert_same_run(trace(family, sizes, optimizer), alone)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone[0], alone[3])
        assert max(jax.tree.leaves(moved)) > 1e-3 and max(jax.tree.leaves(jax.tree.map(np.max, alone[1]))) > 0.01


def test_the_optimizers_differ(trace):
    adamw, lamb = (jax.tree.leaves(trace("bert", None, optimizer)[3]) for optimizer in OPTIMIZERS)
    assert max(np.abs(a - b).max() for a, b in zip(adamw, lamb, strict=True)) > 1e-4


@pytest.mark.slow
def test_dropout_is_on(trace):
    """Else the comparison above would say nothing about it."""
    assert trace("bert", None)[2][0]["loss"] != trace("bert", None, dropout=0.0)[2][0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "sizes"), [("bert", None), ("albert", (4, 2, 1))], ids=["one", "4x2x1"])
def test_accumulation_changes_nothing(trace, family, sizes):
    """Micro-batches with different numbers of predictions: sums and weights must be added before they are divided."""
    assert_same_run(trace(family, sizes, accumulate=2, dropout=0.0), trace(family, None, dropout=0.0))


@pytest.mark.slow
def test_compiled_is_eager(tiny_store, tiny_experiment):
    experiment = tiny_experiment("bert")
    task = PretrainingTask(experiment.task, TokenStore(tiny_store))
    params = jax.jit(task.init)(jax.random.key(0))
    batch = jax.tree.map(jax.numpy.asarray, next(task.train_batches(4, 0)))

    def loss(params, batch):
        corrupted = task.corrupt(batch, jax.random.key(1), None)
        losses = task.loss(params, corrupted, jax.random.key(2))
        return {name: ratio.value for name, ratio in (losses.terms | losses.metrics).items()}

    compiled = jax.jit(loss)(params, batch)
    with jax.disable_jit():
        eager = loss(params, batch)
    for name, value in compiled.items():
        np.testing.assert_allclose(value, eager[name], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_fresh_parameters_and_evaluation_are_the_same_on_a_mesh(tiny_store, tiny_experiment, family):
    experiment = tiny_experiment(family)
    task = PretrainingTask(experiment.task, TokenStore(tiny_store))
    optimizer = make_optimizer(experiment.optimizer, 12, task.logical_axes())
    states, metrics = [], []
    for mesh in (make_mesh(MeshConfig(1), jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2))):
        abstract = abstract_state(task, optimizer, mesh)
        with jax.set_mesh(mesh):
            state = init_state(task, optimizer, abstract, jax.random.key(0))
            assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, abstract)
            states.append(jax.device_get(state.params))
            batch = to_devices(next(iter(task.eval_batches(16, 1))), mesh)
            losses = jax.device_get(make_eval_step(task, mesh)(state.params, batch, 3))
            metrics.append(losses.terms | losses.metrics)
    assert_close(*states)
    for name, ratio in metrics[0].items():
        np.testing.assert_allclose(ratio.sum, metrics[1][name].sum, rtol=1e-5)
        assert ratio.weight == metrics[1][name].weight


@pytest.mark.slow
def test_rounded_reduction_is_close(tiny_store, tiny_experiment):
    """Gradients summed in bfloat16 over eight devices: another number, but a near one; the state stays float32."""
    experiment = tiny_experiment("bert", "task.encoder.compute_dtype=bfloat16")
    task = PretrainingTask(experiment.task, TokenStore(tiny_store))
    mesh = make_mesh(MeshConfig(2, 4, 1))
    optimizer = make_optimizer(OPTIMIZERS["AdamW"], 100, task.logical_axes())
    abstract = abstract_state(task, optimizer, mesh)
    batch, norms = next(task.train_batches(16, 0)), []
    with jax.set_mesh(mesh):
        for dtype in ("float32", "bfloat16"):
            step = make_train_step(task, optimizer, mesh, abstract, accumulate=2, reduce_dtype=dtype)
            state, metrics = step(init_state(task, optimizer, abstract, jax.random.key(0)), to_devices(batch, mesh))
            assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
            norms.append(float(metrics["grad_norm"].value))
    assert norms[0] != norms[1] and norms[0] == pytest.approx(norms[1], rel=0.02)
