"""Evaluation on held-out batches: losses, metrics, and the scores of a task."""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.errors import BertJaxError
from bert_jax.parallel.mesh import to_devices
from bert_jax.task import Losses, Params, Task
from bert_jax.training.best import check_metric

IN_FLIGHT = 1  # batches that are computed while the next one is made


def evaluate(
    task: Task, eval_step: Any, params: Params, mesh: Mesh, batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Means over held-out batches (sums and weights are added up before they are divided), and the scores of the task."""
    terms: dict[str, np.ndarray] = {}
    metrics: dict[str, np.ndarray] = {}
    outputs: dict[str, list[np.ndarray]] = {}
    pending: deque[Losses] = deque()

    def fetch() -> None:
        losses = jax.device_get(pending.popleft())
        for totals, ratios in ((terms, losses.terms), (metrics, losses.terms | losses.metrics)):
            for name, ratio in ratios.items():
                totals[name] = totals.get(name, 0.0) + np.array(ratio, np.float64)
        for name, rows in losses.outputs.items():
            outputs.setdefault(name, []).extend(rows)

    for index, batch in enumerate(batches):
        pending.append(eval_step(params, to_devices(batch, mesh), index))
        if len(pending) > IN_FLIGHT:
            fetch()
    while pending:
        fetch()
    if not metrics:
        raise BertJaxError("nothing to evaluate: the data has no held-out documents (prepare it with --heldout above 0)")
    metrics.pop("tokens", None)
    means = {"loss": sum(_mean(total) for total in terms.values())} | {name: _mean(total) for name, total in metrics.items()}
    return means | (task.scores(outputs) if outputs else {})


def check_best(
    metric: str | None, task: Task, eval_step: Any, params: Params, mesh: Mesh,
    heldout_of: Callable[[int | None], Collection[dict[str, np.ndarray]]],
) -> None:
    """Raises BertJaxError where evaluations have no value ``metric`` (``train.best``): an evaluation of a batch of whole
    examples says so before the first update, and one of all where it has no such value, for some scores need an example of
    their kind."""
    if not metric:
        return
    if not len(heldout_of(1)):
        raise BertJaxError(f"train.best is {metric!r}, and there is no held-out data to find it with")
    with jax.set_mesh(mesh):
        for limit in (1, None):
            found = evaluate(task, eval_step, params, mesh, heldout_of(limit))
            if metric.removeprefix("-") in found:
                return
    check_metric(metric, found)


def _mean(total: np.ndarray) -> float:
    return float(total[0] / max(total[1], 1e-9))
