"""Several runs of one task as one program: they differ in their seeds, and share everything else.

A small model leaves most of a large device idle. Here whatever a run has of its own (parameters, moments, its random key, its
batches) gets an axis in front, and the update is `jax.vmap`-ed over it: each run does what it would do alone, with its own
clipped norm, trust ratios and adversarial steps. They share updates, schedule and lengths of batches; where a run alone would
have a shorter batch, dropout of attention draws another mask, for its places are counted along the length.

The metrics of such an update are means over the runs, and those of each run under ``NAME.SEED``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bert_jax.task import Batch, Ratio
from bert_jax.training.state import TrainState

ALONG = TrainState(None, 0, 0, 0)  # where the axis of runs is: all but the number of updates have one


def stacked(trees: Sequence[Any]) -> Any:
    """Host arrays with an axis in front for those of each tree."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *trees)


def widened(sharding: NamedSharding) -> NamedSharding:
    """For an array with an axis of runs in front, which every device has whole."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def abstract(state: TrainState, runs: int) -> TrainState:
    """Shapes, dtypes and shardings of the state of ``runs`` runs, from those of one."""

    def several(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((runs, *x.shape), x.dtype, sharding=widened(x.sharding))

    return jax.tree.map(several, state)._replace(step=state.step)


def update(step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Ratio]]], seeds: Sequence[int]) -> Callable:
    """The update of several runs: of a state and a batch with an axis for them."""
    several = jax.vmap(step, in_axes=(ALONG, 0), out_axes=(ALONG, 0))

    def joint(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Ratio]]:
        state, metrics = several(state, batch)
        own = {f"{name}.{seed}": Ratio(ratio.sum[k], ratio.weight[k])
               for name, ratio in metrics.items() if name != "tokens" for k, seed in enumerate(seeds)}
        return state, {name: Ratio(ratio.sum.sum(), ratio.weight.sum()) for name, ratio in metrics.items()} | own

    return joint


def evaluation(found: Mapping[int, dict[str, float]]) -> dict[str, float]:
    """The evaluations of all seeds as one: their means, and each under ``NAME.SEED``."""
    names = next(iter(found.values()))
    means = {name: float(np.mean([values[name] for values in found.values()])) for name in names}
    return means | {f"{name}.{seed}": value for seed, values in found.items() for name, value in values.items()}


def record_of(seed: int, seeds: Sequence[int], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a run alone would have recorded, from the rows of all: its own values where it has some. Times are those of all."""
    ends = tuple(f".{one}" for one in seeds)
    found = []
    for row in rows:
        common = {name: value for name, value in row.items() if not name.endswith(ends)}
        own = {name.removesuffix(f".{seed}"): value for name, value in row.items() if name.endswith(f".{seed}")}
        found.append(common | own)
    return found


def own(run: int, tree: Any) -> Any:
    """What one run has of arrays with an axis for all, lying as it would alone."""

    def one(x: jax.Array) -> jax.Array:
        return jax.device_put(x[run], NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:])))

    return jax.tree.map(one, tree)
