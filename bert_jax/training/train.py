"""The one training loop. It runs any :class:`~bert_jax.task.Task` and reads top to bottom.

Order within a step is fixed: evaluate, save, next batch, update. The saved iterator state and the saved step therefore
always agree, and a run killed at any moment continues as if nothing had happened. Metrics of step t are read after step
t + 1 has been dispatched, so the host never holds up the device. Checkpoints are written while training goes on.

Every process of a run executes this same loop on its own rows. What is written once, process 0 writes.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax import config as configuration
from bert_jax.checkpoint import Checkpoints
from bert_jax.errors import BertJaxError
from bert_jax.parallel.cluster import Cluster, local_rows
from bert_jax.parallel.mesh import batch_sharding, batch_shards, check_rows, make_mesh
from bert_jax.task import Batch, Params, Ratio, Task
from bert_jax.training.best import Best
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import AdamW, Lamb, frozen, make_optimizer, schedule
from bert_jax.training.record import NoRecord, Record
from bert_jax.training.step import TrainState, abstract_state, init_state, key_data, make_eval_step, make_train_step

log = logging.getLogger("bert_jax")

VISIBLE_SECONDS = 30.0  # until a file that one host wrote is seen by another; network file systems cache


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: the step, the parameters, their evaluation, and whether all steps were done (False after a request
    to stop). With ``train.best`` parameters and evaluation are the best ones, else the last."""

    step: int
    params: Params
    evaluation: dict[str, float]
    finished: bool


def train(task: Task, experiment: Experiment, workdir: Path | str, cluster: Cluster | None = None) -> Result:
    """Trains, or continues the run in ``workdir``, until ``train.steps`` updates are done.

    SIGTERM and SIGINT, on any process, end the run with a checkpoint after a step on which all processes agree.

    Args:
      cluster: the processes that train together; None for this one alone.

    Raises:
      BertJaxError: the mesh or batch does not fit, the work directory holds another experiment or is not shared by all
        hosts, the loss is not finite, or a checkpoint cannot be written.
    """
    workdir, settings, cluster = Path(workdir), experiment.train, cluster or Cluster()
    mesh = make_mesh(experiment.mesh)
    eval_size = settings.eval_batch_size or settings.batch_size
    check_rows("train.batch_size / accumulate", settings.batch_size // settings.accumulate, mesh)
    check_rows("train.eval_batch_size", eval_size, mesh)
    learning_rate = schedule(experiment.optimizer, settings.steps)
    fresh = cluster.from_first(lambda: not (workdir / "experiment.json").exists())
    first_key = jax.random.key(settings.seed)
    begun = task.start(first_key) if fresh else None  # before anything is written: a refusal leaves no work directory behind
    cluster.from_first(lambda: _claim(workdir, experiment, task))
    _check_shared(workdir, experiment, cluster)

    checkpoints = Checkpoints(workdir / "checkpoints", keep=settings.keep)
    optimizer, abstract, train_step, eval_step = _functions(
        task, mesh, experiment.optimizer, settings.steps, settings.accumulate, settings.reduce_dtype
    )
    restored = checkpoints.restore({"params": abstract.params, "optimizer": abstract.optimizer})
    sharding = batch_sharding(mesh)
    batches = task.train_batches(settings.batch_size, settings.seed, local_rows(sharding, settings.batch_size))
    heldout = task.eval_batches(eval_size, settings.eval_batches, local_rows(sharding, eval_size))
    if restored is None:
        state = init_state(task, optimizer, abstract, first_key, begun if fresh else task.start(first_key))
        start = 0
    else:
        _check_identity(restored.metadata["identity"], task.identity(), workdir)
        step = jax.device_put(np.int32(restored.step), abstract.step.sharding)
        key = jax.device_put(key_data(settings.seed), abstract.key.sharding)
        state = TrainState(step, restored.items["params"], restored.items["optimizer"], key)
        start = restored.step
        batches.set_state(restored.metadata["data"])

    best = Best(workdir, settings.best, settings.patience, abstract.params)
    record = Record(workdir, settings.steps, start) if cluster.first else NoRecord()
    if not len(heldout) and settings.best:
        raise BertJaxError(f"train.best is {settings.best!r}, and there is no held-out data to find it with")
    if not len(heldout):
        log.warning("the data has no held-out documents: this run is not evaluated")
    if start:
        record.say(f"continuing {workdir} from step {start} of {settings.steps}")
    window = _Window(settings.batch_size)
    evaluation: dict[str, float] = {}
    pending: tuple[int, int, dict[str, Ratio]] | None = None

    def settle() -> None:
        """Reads the metrics of the step dispatched before the last one, checks and records them."""
        nonlocal pending
        if pending is None:
            return
        step, examples, metrics = pending
        pending = None
        values = window.add(jax.device_get(metrics))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            checkpoints.wait()
            raise BertJaxError(
                f"loss {values['loss']:g} and gradient norm {values['grad_norm']:g} at step {step}: not finite. The last "
                f"good state is checkpoint {max(checkpoints.steps(), default='none')} in {workdir}/checkpoints; go on from "
                "it with a lower optimizer.learning_rate or a longer warm-up"
            )
        if step % settings.log_every == 0 or step == settings.steps:
            progress = {"examples_seen": examples, "epoch": examples / batches.epoch}
            record.write(step, "train", window.take() | {"learning_rate": float(learning_rate(step - 1))} | progress)
        record.show(step, window.line)

    def save(step: int) -> None:
        settle()  # never keep a state whose loss has not been seen to be finite
        if restored is None or step != restored.step:  # a damaged one that was skipped is replaced
            checkpoints.save(
                step, {"params": state.params, "optimizer": state.optimizer},
                {"data": batches.get_state(), "identity": task.identity(), "experiment": configuration.to_json(experiment)},
            )

    with (
        contextlib.closing(record), contextlib.closing(checkpoints), contextlib.closing(best), jax.set_mesh(mesh),
        cluster.heeding_signals(), cluster.ending_together(),
    ):
        step = start
        while True:
            last = step == settings.steps
            stop = cluster.stop_at(step)
            if len(heldout) and step != start and (step % settings.eval_every == 0 or last):
                settle()
                record.show(step, "evaluating")
                evaluation = evaluate(task, eval_step, state.params, mesh, heldout)
                record.write(step, "eval", evaluation)
                record.say(f"step {step} held out: " + _summary(evaluation))
                best.offer(step, evaluation, state.params, task.identity())
                window.restart()
            if not last and best.exhausted(step, settings.eval_every):
                record.say(f"step {step}: the best {settings.best} was at step {best.step}, train.patience is over")
                last = True
            if (step % settings.save_every == 0 and step != start) or last or stop:
                record.show(step, "saving")
                save(step)
                window.restart()
            if last or stop:
                break
            state, metrics = train_step(state, to_devices(next(batches), mesh))
            settle()
            step += 1
            pending = (step, batches.get_state()["examples"], metrics)
        checkpoints.wait()
        if not last:
            record.say(f"asked to stop: saved step {step} of {settings.steps}; the same command continues")
        if last and not evaluation and len(heldout):  # a finished run was started again
            evaluation = evaluate(task, eval_step, state.params, mesh, heldout)
        params = state.params
        if last and settings.best:
            params, evaluation = best.params(), best.evaluation
    return Result(step, params, evaluation, last)


@functools.lru_cache(maxsize=1)  # the next seed of the same task finds its programs compiled
def _functions(task: Task, mesh: Mesh, config: AdamW | Lamb, steps: int, accumulate: int, reduce_dtype: str) -> tuple[Any, ...]:
    """The optimiser, the shapes of the state, and the two compiled functions."""
    axes = task.logical_axes()
    optimizer = make_optimizer(config, steps, axes)
    abstract = abstract_state(task, optimizer, mesh)
    step = make_train_step(
        task, optimizer, mesh, abstract, accumulate=accumulate, reduce_dtype=reduce_dtype, frozen=frozen(config, axes)
    )
    return optimizer, abstract, step, make_eval_step(task, mesh)


def evaluate(
    task: Task, eval_step: Any, params: Params, mesh: Mesh, batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Means over held-out batches (sums and weights are added up before they are divided), and the scores of the task."""
    terms: dict[str, np.ndarray] = {}
    metrics: dict[str, np.ndarray] = {}
    outputs: dict[str, list[np.ndarray]] = {}
    for index, batch in enumerate(batches):
        losses = jax.device_get(eval_step(params, to_devices(batch, mesh), index))
        for totals, ratios in ((terms, losses.terms), (metrics, losses.terms | losses.metrics)):
            for name, ratio in ratios.items():
                totals[name] = totals.get(name, 0.0) + np.array(ratio, np.float64)
        for name, rows in losses.outputs.items():
            outputs.setdefault(name, []).extend(rows)
    if not metrics:
        raise BertJaxError("nothing to evaluate: the data has no held-out documents (prepare it with --heldout above 0)")
    metrics.pop("tokens", None)
    means = {"loss": sum(_mean(total) for total in terms.values())} | {name: _mean(total) for name, total in metrics.items()}
    return means | (task.scores(outputs) if outputs else {})


def _mean(total: np.ndarray) -> float:
    return float(total[0] / max(total[1], 1e-9))


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """The global batch, split over data and fsdp, of which ``batch`` has the rows that ``local_rows`` gives this process."""
    sharding, shards = batch_sharding(mesh), batch_shards(mesh)
    share = len(local_rows(sharding, shards))  # how many of the shards this process holds

    def place(rows: np.ndarray) -> Any:
        size = len(rows) // share * shards
        numbers = local_rows(sharding, size)

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            first, beyond, _ = index[0].indices(size)
            return rows[slice(*np.searchsorted(numbers, (first, beyond)))]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, of_device)

    return {name: place(rows) for name, rows in batch.items()}


class _Window:
    """Sums of the metrics since the last record, and the throughput."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._sums: dict[str, np.ndarray] = {}
        self._started = False  # the first step compiles; the clock starts after it
        self.line = ""
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, so that pauses (compilation, evaluation, saving) do not count as training."""
        self._steps, self._clock, self._tokens = 0, time.monotonic(), 0.0

    def add(self, metrics: dict[str, Ratio]) -> dict[str, float]:
        """Adds a step; returns its own values."""
        if self._started:
            self._steps += 1
            self._tokens += float(metrics["tokens"].sum) if "tokens" in metrics else 0.0
        else:
            self._started = True
            self.restart()
        for name, ratio in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + np.array(ratio, np.float64)
        values = {name: float(r.sum / max(r.weight, 1e-9)) for name, r in metrics.items()}
        self.line = f"{_summary(values)} {self._tokens / self._elapsed:,.0f} tokens/s"
        return values

    def take(self) -> dict[str, float]:
        """The means since the last call, and the speed."""
        values = {n: float(s / max(w, 1e-9)) for n, (s, w) in self._sums.items() if n != "tokens"}
        if self._steps:
            values["sequences_per_second"] = self._batch_size * self._steps / self._elapsed
            values["tokens_per_second"] = self._tokens / self._elapsed
        self._sums = {}
        self.restart()
        return values

    @property
    def _elapsed(self) -> float:
        return max(time.monotonic() - self._clock, 1e-9)


def _summary(values: dict[str, float]) -> str:
    shown = {n: v for n, v in values.items() if n == "loss" or n.endswith("_accuracy")}
    return " ".join(f"{name.replace('_accuracy', ' acc')} {value:.3f}" for name, value in shown.items())


def _claim(workdir: Path, experiment: Experiment, task: Task) -> None:
    """Writes experiment.json and assets, or checks that the ones that are there describe the same model and task."""
    path = workdir / "experiment.json"
    if path.exists():
        before, now = configuration.to_json(configuration.load(Experiment, path)), configuration.to_json(experiment)
        changed = [f"{field} was {old}, is now {new}" for field, old, new in configuration.differences(before, now)]
        fixed = [c for c in changed if c.startswith("task")]
        if fixed:
            raise BertJaxError(f"{workdir} holds another experiment: {fixed[0]}; choose another --workdir")
        for change in changed:
            log.warning("continuing with a changed setting: %s", change)
    workdir.mkdir(parents=True, exist_ok=True)
    configuration.save(experiment, path)
    task.save_assets(workdir)


def _check_shared(workdir: Path, experiment: Experiment, cluster: Cluster) -> None:
    """What process 0 has written must be there for all: every process writes and reads its part of a checkpoint."""
    path, deadline = workdir / "experiment.json", time.monotonic() + VISIBLE_SECONDS
    while not cluster.first and not (path.exists() and configuration.load(Experiment, path) == experiment):
        if time.monotonic() > deadline:
            raise BertJaxError(f"process 0 has written {path}, which is not here: --workdir must be shared by all hosts")
        time.sleep(0.5)


def _check_identity(saved: dict[str, str], now: dict[str, str], workdir: Path) -> None:
    for name, value in now.items():
        if saved.get(name) != value:
            raise BertJaxError(
                f"{workdir} was trained with {name} {saved.get(name)}, this run has {name} {value}: use the same one, or "
                "another --workdir"
            )
