"""The compiled functions of the loop: one update, one evaluation step, and the shardings of the state."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from bert_jax.models.api import sharding_rules
from bert_jax.parallel.mesh import RULES, batch_sharding, parameter_shardings, replicated
from bert_jax.task import Batch, Losses, Params, Ratio, Task
from bert_jax.training import together
from bert_jax.training.optimizer import AdamW, Lamb, frozen, make_optimizer, matrices
from bert_jax.training.state import TrainState


def abstract_state(task: Task, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; the optimiser's moments lie where their parameters lie."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    shardings = parameter_shardings(task.logical_axes(), params, mesh)
    whole = replicated(mesh)
    moments = optax.tree.map_params(
        optimizer, lambda moment, sharding: moment if isinstance(moment, optax.MaskedNode) else sharding,
        jax.eval_shape(optimizer.init, params), shardings,
        transform_non_params=lambda _: whole, is_leaf=lambda moment: isinstance(moment, optax.MaskedNode),
    )
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    shapes = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params), key)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes, TrainState(whole, shardings, moments, whole),
    )


def init_state(
    task: Task, optimizer: optax.GradientTransformation, abstract: TrainState, key: Key[Array, "*S"],
    start: Params | None = None,
) -> TrainState:
    """What :func:`make_init` makes, once."""
    return make_init(task, optimizer, abstract, several=key.ndim > 0)(key, start)


def make_init(
    task: Task, optimizer: optax.GradientTransformation, abstract: TrainState, *, several: bool = False
) -> Callable[[Key[Array, "*S"], Params | None], TrainState]:
    """A function that makes a fresh state, created sharded: no device ever holds the whole. It is given a key, from which all
    randomness of the run comes, and what takes the place of random parameters, or None. ``several`` runs have as many keys, and
    an axis for them in their parameters. What it compiles serves the next run as well."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def state(params, key):
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(key))

    def compiled(one):
        return jax.jit(jax.vmap(one, out_axes=together.ALONG) if several else one, out_shardings=shardings)

    fresh, begun = compiled(lambda key: state(task.init(key), key)), compiled(state)

    def init(key: Key[Array, "*S"], start: Params | None) -> TrainState:
        if start is None:
            return fresh(key)
        params = jax.tree.map(  # (device_put would compare all of it between processes)
            lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), start, shardings.params
        )
        return begun(params, key)

    return init


def make_update(
    task: Task, mesh: Mesh, config: AdamW | Lamb, steps: int, *, accumulate: int, reduce_dtype: str,
    seeds: tuple[int, ...] = (),
) -> tuple[optax.GradientTransformation, TrainState, Callable[[TrainState, Batch], tuple[TrainState, dict[str, Ratio]]]]:
    """What a run of ``steps`` updates runs, and what a plan of it compiles: the optimiser, the shapes of the state of one run,
    and the update, see :func:`make_train_step`."""
    axes = task.logical_axes()
    optimizer = make_optimizer(config, steps, axes)
    abstract = abstract_state(task, optimizer, mesh)
    return optimizer, abstract, make_train_step(
        task, optimizer, mesh, abstract, accumulate=accumulate, reduce_dtype=reduce_dtype, frozen=frozen(config, axes),
        seeds=seeds, steps=steps,
    )


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, abstract: TrainState, *, accumulate: int,
    reduce_dtype: str = "float32", frozen: Params | None = None, seeds: tuple[int, ...] = (), steps: int | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Ratio]]]:
    """The update: corrupt the batch, sum gradients over micro-batches, divide, step.

    All randomness comes from the state's key and the number of updates done, so a restarted run draws the same masks. The sum
    of a gradient over devices has the dtype of the parameter that enters the model: ``reduce_dtype`` for matrices.

    Args:
      abstract: of one run. frozen: True for the parameters of which no gradient is taken (0 is one number for each); None:
        there are none. seeds: those of several runs (:mod:`bert_jax.training.together`); none: it is one. steps: of the run,
        for :meth:`bert_jax.task.Task.follow`.

    Returns:
      A compiled function that consumes (donates) the state and returns the next one with the metrics of the batch, plus
      ``loss`` and ``grad_norm``.
    """
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    large = matrices(abstract.params)
    frozen = jax.tree.map(lambda _: False, abstract.params) if frozen is None else frozen

    def gradients_of(params: Params, batch: Batch, key: Array, weights: dict[str, Array]) -> tuple[Params, Losses]:
        """Float32 gradients of one micro-batch, each lying where its parameter lies."""
        entering = jax.tree.map(lambda p, is_large: p.astype(reduce_dtype) if is_large else p, params, large)

        def objective(params: Params, batch: Batch, key: Array) -> tuple[Array, Losses]:
            """The sum over terms of sum / weight, ``weights`` being those of the whole batch."""
            params = jax.tree.map(lambda p, still: jax.lax.stop_gradient(p) if still else p, params, frozen)
            losses = task.loss(params, batch, key)
            return sum(term.sum / jnp.maximum(weights[name], 1e-9) for name, term in losses.terms.items()), losses

        gradients, losses = task.gradient(objective, entering, batch, key)
        gradients = jax.tree.map(
            lambda g, p, sharding, still: jnp.zeros((), p.dtype) if still
            else jax.lax.with_sharding_constraint(g.astype(p.dtype), sharding),
            gradients, params, shardings.params, frozen,
        )
        return gradients, losses

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Ratio]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        corrupt_key, dropout_key = jax.random.split(key)
        with sharding_rules(RULES):
            batch = task.corrupt(batch, corrupt_key, state.step)
            gradients, losses = _accumulate(task, state.params, gradients_of, batch, dropout_key, accumulate, mesh)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        moved = optax.apply_updates(state.params, updates)
        moved = jax.tree.map(lambda p, new, still: p if still else new, state.params, moved, frozen)
        params = task.follow(moved, state.step, steps)
        one = jnp.ones(())
        metrics = losses.terms | losses.metrics
        metrics["loss"] = Ratio(sum(term.value for term in losses.terms.values()), one)
        metrics["grad_norm"] = Ratio(optax.global_norm(gradients), one)
        return TrainState(state.step + 1, params, optimizer_state, state.key), metrics

    whole, rows = shardings, batch_sharding(mesh)
    if seeds:
        step, rows = together.update(step, seeds), together.widened(rows)
        whole = jax.tree.map(lambda x: x.sharding, together.abstract(abstract, len(seeds)))
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, rows), out_shardings=(whole, replicated(mesh)))


def make_eval_step(task: Task, mesh: Mesh) -> Callable[[Params, Batch, int], Losses]:
    """Losses and metrics of held-out batch ``index``, without dropout, its masks a function of the index alone."""

    def step(params: Params, batch: Batch, index: Array) -> Losses:
        with sharding_rules(RULES):
            batch = task.corrupt(batch, jax.random.fold_in(jax.random.key(EVAL_SEED), index), None)
            return task.loss(params, batch, None)

    shardings = parameter_shardings(task.logical_axes(), jax.eval_shape(task.init, jax.random.key(0)), mesh)
    return jax.jit(
        step, in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)), out_shardings=replicated(mesh)
    )


EVAL_SEED = 12345  # masks of every evaluation, the seed of the original's evaluation data


def _accumulate(
    task: Task, params: Params, gradients_of: Callable[..., tuple[Params, Losses]], batch: Batch, key: Key[Array, ""],
    accumulate: int, mesh: Mesh,
) -> tuple[Params, Losses]:
    """Gradients and losses summed over micro-batches; weights are summed over the whole batch before anything is divided."""

    def weights_of(batch, key):  # does not depend on the parameters, so the compiler drops the forward pass
        return {name: term.weight for name, term in task.loss(params, batch, key).terms.items()}

    if accumulate == 1:
        return gradients_of(params, batch, key, weights_of(batch, key))

    def micro(x):  # row r goes to micro-batch r % accumulate, so that rows stay on their device
        x = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))))

    batches, keys = jax.tree.map(micro, batch), jax.random.split(key, accumulate)
    weights = jax.tree.map(lambda w: w.sum(axis=0), jax.lax.map(lambda xs: weights_of(*xs), (batches, keys)))

    def add(total, xs):
        return jax.tree.map(jnp.add, total, gradients_of(params, *xs, weights)), None

    first = jax.tree.map(lambda x: x[0], (batches, keys))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients_of, params, *first, weights))
    return jax.lax.scan(add, zero, (batches, keys))[0]
