"""The one training loop. It runs any :class:`~bert_jax.task.Task` and reads top to bottom.

Order within a step is fixed: evaluate, save, next batch, update. The saved iterator state and the saved step therefore
always agree, and a run killed at any moment continues as if nothing had happened. Metrics of step t are read after step
t + 1 has been dispatched, so the host never holds up the device.
"""

import contextlib
import dataclasses
import logging
import math
import signal
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
from bert_jax.parallel.mesh import batch_sharding, batch_shards, make_mesh
from bert_jax.task import Batch, Params, Ratio, Task
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import make_optimizer, schedule
from bert_jax.training.record import Record
from bert_jax.training.step import TrainState, abstract_state, init_state, make_eval_step, make_train_step

log = logging.getLogger("bert_jax")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: the step, the parameters, the last evaluation, and whether all steps were done (False after a
    request to stop)."""

    step: int
    params: Params
    evaluation: dict[str, float]
    finished: bool


def train(task: Task, experiment: Experiment, workdir: Path | str) -> Result:
    """Trains, or continues the run in ``workdir``, until ``train.steps`` updates are done.

    SIGTERM and SIGINT end the run after the current step with a checkpoint.

    Raises:
      BertJaxError: the mesh or batch does not fit, the work directory holds another experiment, the loss is not finite,
        or a checkpoint cannot be written.
    """
    workdir, settings = Path(workdir), experiment.train
    mesh = make_mesh(experiment.mesh)
    _check_batch_sizes(experiment, mesh)
    optimizer = make_optimizer(experiment.optimizer, settings.steps, task.logical_axes())
    learning_rate = schedule(experiment.optimizer, settings.steps)
    fresh = not (workdir / "experiment.json").exists()
    begun = task.start() if fresh else None  # before anything is written: a refusal leaves no work directory behind
    _claim(workdir, experiment)
    task.save_assets(workdir)

    checkpoints = Checkpoints(workdir / "checkpoints", keep=settings.keep)
    abstract = abstract_state(task, optimizer, mesh)
    restored = checkpoints.restore({"params": abstract.params, "optimizer": abstract.optimizer})
    batches = task.train_batches(settings.batch_size, settings.seed)
    heldout = task.eval_batches(settings.eval_batch_size or settings.batch_size, settings.eval_batches)
    if restored is None:
        state = init_state(task, optimizer, abstract, jax.random.key(settings.seed), begun if fresh else task.start())
        start = 0
    else:
        _check_identity(restored.metadata["identity"], task.identity(), workdir)
        step = jax.device_put(np.int32(restored.step), abstract.step.sharding)
        state = TrainState(step, restored.items["params"], restored.items["optimizer"])
        start = restored.step
        batches.set_state(restored.metadata["data"])

    train_step = make_train_step(
        task, optimizer, mesh, abstract, accumulate=settings.accumulate, seed=settings.seed
    )
    eval_step = make_eval_step(task, mesh)
    record = Record(workdir, settings.steps, start)
    if not len(heldout):
        log.warning("the data has no held-out documents: this run is not evaluated")
    if start:
        record.say(f"continuing {workdir} from step {start} of {settings.steps}")
    window = _Window(settings.batch_size)
    evaluation: dict[str, float] = {}
    pending: tuple[int, dict[str, Ratio]] | None = None

    def settle() -> None:
        """Reads the metrics of the step dispatched before the last one, checks and records them."""
        nonlocal pending
        if pending is None:
            return
        step, metrics = pending
        pending = None
        values = window.add(jax.device_get(metrics))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise BertJaxError(
                f"loss {values['loss']:g} and gradient norm {values['grad_norm']:g} at step {step}: not finite. The last "
                f"good state is checkpoint {max(checkpoints.steps(), default='none')} in {workdir}/checkpoints; go on from "
                "it with a lower optimizer.learning_rate or a longer warm-up"
            )
        if step % settings.log_every == 0 or step == settings.steps:
            record.write(step, "train", window.take() | {"learning_rate": float(learning_rate(step - 1))})
        record.show(step, window.line)

    def save(step: int) -> None:
        settle()  # never keep a state whose loss has not been seen to be finite
        if restored is None or step != restored.step:  # a damaged one that was skipped is replaced
            checkpoints.save(
                step, {"params": state.params, "optimizer": state.optimizer},
                {"data": batches.get_state(), "identity": task.identity(), "experiment": configuration.to_json(experiment)},
            )

    stop = _StopRequest()
    with stop, jax.set_mesh(mesh), contextlib.closing(record), contextlib.closing(checkpoints):
        step = start
        while True:
            last = step == settings.steps
            if len(heldout) and step != start and (step % settings.eval_every == 0 or last):
                settle()
                record.show(step, "evaluating")
                evaluation = evaluate(eval_step, state.params, mesh, heldout)
                record.write(step, "eval", evaluation)
                record.say(f"step {step} held out: " + _summary(evaluation))
                window.restart()
            if (step % settings.save_every == 0 and step != start) or last or stop.requested:
                record.show(step, "saving")
                save(step)
                window.restart()
            if last or stop.requested:
                break
            state, metrics = train_step(state, to_devices(next(batches), mesh))
            settle()
            step += 1
            pending = (step, metrics)
        if stop.requested and not last:
            record.say(f"asked to stop: saved step {step} of {settings.steps}; the same command continues")
    if last and not evaluation and len(heldout):  # a finished run was started again
        with jax.set_mesh(mesh):
            evaluation = evaluate(eval_step, state.params, mesh, heldout)
    return Result(step, state.params, evaluation, last)


def evaluate(
    eval_step: Any, params: Params, mesh: Mesh, batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Means over held-out batches: sums and weights are added up before they are divided."""
    totals: dict[str, np.ndarray] = {}
    for index, batch in enumerate(batches):
        for name, ratio in jax.device_get(eval_step(params, to_devices(batch, mesh), index)).items():
            totals[name] = totals.get(name, 0.0) + np.array(ratio, np.float64)
    if not totals:
        raise BertJaxError("nothing to evaluate: the data has no held-out documents (prepare it with --heldout above 0)")
    values = {name: float(total / max(weight, 1e-9)) for name, (total, weight) in totals.items()}
    values.pop("tokens", None)
    return {"loss": sum(value for name, value in values.items() if name.endswith("_loss"))} | values


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """This process's rows as part of the global batch, split over data and fsdp."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


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


class _StopRequest:
    """Turns the first SIGTERM or SIGINT into a flag; the second SIGINT interrupts as usual."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._before = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals are not ours to handle
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def _request(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _summary(values: dict[str, float]) -> str:
    shown = {n: v for n, v in values.items() if n == "loss" or n.endswith("_accuracy")}
    return " ".join(f"{name.replace('_accuracy', ' acc')} {value:.3f}" for name, value in shown.items())


def _check_batch_sizes(experiment: Experiment, mesh: Mesh) -> None:
    shards, settings = batch_shards(mesh), experiment.train
    sizes = {"train.batch_size / accumulate": settings.batch_size // settings.accumulate,
             "train.eval_batch_size": settings.eval_batch_size or settings.batch_size}
    for name, size in sizes.items():
        if size % shards:
            raise BertJaxError(f"{name} is {size}: it must be a multiple of {shards}, the mesh's data x fsdp")


def _claim(workdir: Path, experiment: Experiment) -> None:
    """Writes experiment.json, or checks that the one that is there describes the same model and task."""
    path = workdir / "experiment.json"
    if path.exists():
        before, now = configuration.to_json(configuration.load(Experiment, path)), configuration.to_json(experiment)
        changed = list(_differences(before, now))
        fixed = [c for c in changed if c.startswith("task")]
        if fixed:
            raise BertJaxError(f"{workdir} holds another experiment: {fixed[0]}; choose another --workdir")
        for change in changed:
            log.warning("continuing with a changed setting: %s", change)
    workdir.mkdir(parents=True, exist_ok=True)
    configuration.save(experiment, path)


def _differences(before: Any, now: Any, where: str = ""):
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    elif before != now:
        yield f"{where} was {before}, is now {now}"


def _check_identity(saved: dict[str, str], now: dict[str, str], workdir: Path) -> None:
    for name, value in now.items():
        if saved.get(name) != value:
            raise BertJaxError(
                f"{workdir} was trained with {name} {saved.get(name)}, this run has {name} {value}: use the same one, or "
                "another --workdir"
            )
