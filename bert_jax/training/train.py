"""The one training loop. It runs any :class:`~bert_jax.task.Task` and reads top to bottom.

Order within a step is fixed: evaluate, save, next batch, update. The saved iterator state and the saved step therefore
always agree, and a run killed at any moment continues as if nothing had happened. Metrics of step t are read after step
t + 1 has been dispatched, so the host never holds up the device. Checkpoints are written while training goes on.

Every process of a run executes this same loop on its own rows. What is written once, process 0 writes.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax import config as configuration
from bert_jax.checkpoint import Checkpoints
from bert_jax.compilation import keep_programs
from bert_jax.errors import BertJaxError
from bert_jax.files import check_local
from bert_jax.model import CHECKPOINTS, EXPERIMENT
from bert_jax.parallel.cluster import Cluster, checked
from bert_jax.parallel.mesh import batch_sharding, batch_shards, check_rows, local_rows, make_mesh, to_devices
from bert_jax.task import Params, Ratio, Task
from bert_jax.training import together, workdirs
from bert_jax.training.best import Best, check_metric
from bert_jax.training.evaluation import check_best, evaluate
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import AdamW, Lamb, schedule
from bert_jax.training.record import CURVES, METRICS, NoRecord, Record, Window, draw, read, summary
from bert_jax.training.state import TrainState, key_data
from bert_jax.training.step import make_eval_step, make_init, make_update

log = logging.getLogger("bert_jax")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: the step, the parameters, their evaluation, and whether all steps were done (False after a request
    to stop). With ``train.best`` parameters and evaluation are the best ones, else the last."""

    step: int
    params: Params = dataclasses.field(repr=False)
    evaluation: dict[str, float]
    finished: bool


def train(
    task: Task, experiment: Experiment, workdir: Path | str, cluster: Cluster | None = None,
    runs: Mapping[int, Path] | None = None, source: str | None = None,
) -> Result:
    """Trains, or continues the run in ``workdir``, until ``train.steps`` updates are done.

    SIGTERM and SIGINT, on any process, end the run with a checkpoint after a step on which all processes agree.

    Args:
      cluster: the processes that train together; None for this one alone.
      runs: several runs as one program (:mod:`bert_jax.training.together`), by seed, in place of ``train.seed``, and for each
        a work directory, which in the end holds what a run alone would leave there, but for TensorBoard's events: these are in
        ``workdir``, with the means. Parameters in the result have an axis in front, its evaluation means and ``NAME.SEED``.
      source: where the data lies, for the message that refuses other data.

    Raises:
      BertJaxError: the mesh or batch does not fit, the work directory holds another experiment or is not shared by all
        hosts, the loss is not finite, a checkpoint cannot be written, or several runs with ``train.best`` or processes.
    """
    keep_programs()
    workdir, cluster = Path(workdir), checked(cluster)
    check_local(workdir)
    with workdirs.kept_from_others(workdir, cluster.first):
        return _train(task, experiment, workdir, cluster, runs or {}, source)


def _train(
    task: Task, experiment: Experiment, workdir: Path, cluster: Cluster, runs: Mapping[int, Path], source: str | None
) -> Result:
    settings, seeds = experiment.train, tuple(runs)
    if seeds and settings.best:
        raise BertJaxError(f"train.best is {settings.best!r}: seeds that are trained together end together, leave one out")
    if seeds and jax.process_count() > 1:
        raise BertJaxError("seeds are trained together by one process, and there are several")
    mesh = make_mesh(experiment.mesh)
    eval_size = settings.eval_size
    check_rows("train.batch_size / accumulate", settings.batch_size // settings.accumulate, mesh)
    check_rows("train.eval_batch_size", eval_size, mesh)
    # All at once: a rate that the device computed when it is recorded would wait for the update that runs.
    rates = np.asarray(schedule(experiment.optimizer, settings.steps)(np.arange(settings.steps)))
    init, abstract, train_step, eval_step = _functions(
        task, mesh, experiment.optimizer, settings.steps, settings.accumulate, settings.reduce_dtype, seeds
    )
    sharding = batch_sharding(mesh)
    batches = task.train_batches(
        settings.batch_size, seeds or settings.seed, local_rows(sharding, settings.batch_size),
        settings.accumulate * batch_shards(mesh),
    )

    def heldout_of(limit: int | None) -> Collection[dict[str, np.ndarray]]:
        return task.eval_batches(eval_size, limit, local_rows(sharding, eval_size))

    heldout = heldout_of(settings.eval_limit)

    def begin() -> TrainState:
        key = jax.random.wrap_key_data(key_data(seeds or settings.seed))
        return init(key, _begin(task, settings.seed, seeds))

    # All that may refuse comes before the claim: a refusal changes nothing, and where nothing was there leaves nothing.
    folders = (workdir, *runs.values())
    identity = task.identity()  # once: it reads the data of a fine-tuning
    tokenizer = identity.get("tokenizer")
    state, fresh = None, cluster.from_first(
        lambda: [workdirs.check_experiment(folder, experiment, tokenizer) for folder in folders][0]
    )
    if fresh:
        experiment.check_beginning()
        state = begin()
        check_best(settings.best, task, eval_step, state.params, mesh, heldout_of)
    else:
        workdirs.check_shared(workdir, cluster, CHECKPOINTS, workdirs.trained)

    checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=settings.keep)
    identity = identity | ({"seeds": ", ".join(map(str, seeds))} if seeds else {})
    restored = checkpoints.restore({"params": abstract.params, "optimizer": abstract.optimizer})
    start = 0
    if restored is not None:
        workdirs.check_identity(restored.metadata, identity, workdir)
        if restored.step > settings.steps:
            raise BertJaxError(
                f"{workdir} has been trained for {restored.step} steps, train.steps is {settings.steps}: give at least as "
                "many, or another folder"
            )
        step = jax.device_put(np.int32(restored.step), abstract.step.sharding)
        key = jax.device_put(key_data(seeds or settings.seed), abstract.key.sharding)
        state = TrainState(step, restored.items["params"], restored.items["optimizer"], key)
        start = restored.step
        batches.set_state(restored.metadata["data"])
    elif state is None:
        state = begin()

    best = Best(workdir, settings.best, settings.patience, abstract.params)
    if settings.best and best.evaluation:
        check_metric(settings.best, best.evaluation)
    elif not fresh:
        check_best(settings.best, task, eval_step, state.params, mesh, heldout_of)
    cluster.from_first(lambda: workdirs.claim(workdir, experiment, task, tokenizer))
    workdirs.check_shared(workdir, cluster, EXPERIMENT, lambda folder: workdirs.experiment_of(folder) == experiment)
    device = f" for {mesh.size} x {mesh.devices.flat[0].device_kind}"
    record = Record(workdir, settings.steps, start, device) if cluster.first else NoRecord()
    if not len(heldout):
        log.warning("the data has no held-out documents: this run is not evaluated")
    if start:
        record.say(f"continuing {workdir} from step {start} of {settings.steps}")
    window = Window(settings.batch_size * max(1, len(seeds)), restored.metadata.get("window") if restored else None)
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
                f"good state is checkpoint {max(checkpoints.steps(), default='none')} in {workdir}/checkpoints: with a lower "
                "optimizer.learning_rate or a longer warm-up pretrain goes on from it, finetune begins in another --workdir"
            )
        if step % settings.log_every == 0 or step == settings.steps:
            progress = {"examples_seen": examples, "epoch": examples / batches.epoch}
            record.write(step, "train", window.take() | {"learning_rate": float(rates[step - 1])} | progress)
        record.show(step, window.line)

    def save(step: int) -> None:
        settle()  # never keep a state whose loss has not been seen to be finite
        if restored is None or step != restored.step:  # a damaged one that was skipped is replaced
            checkpoints.save(
                step, {"params": state.params, "optimizer": state.optimizer},
                {"data": batches.get_state(), "identity": identity, "experiment": configuration.to_json(experiment),
                 "source": source, "window": window.sums},
            )

    def evaluated() -> dict[str, float]:
        if not seeds:
            found = evaluate(task, eval_step, state.params, mesh, heldout)
            return cluster.from_first(lambda: found)  # the best is the same for all, whatever their processors round to
        return together.evaluation({
            seed: evaluate(task, eval_step, together.own(run, state.params), mesh, heldout)
            for run, seed in enumerate(seeds)
        })

    with (
        contextlib.closing(record), contextlib.closing(checkpoints), contextlib.closing(best), jax.set_mesh(mesh),
        cluster.heeding_signals(), cluster.ending_together(),
    ):
        due = start % settings.eval_every == 0 or start == settings.steps
        if settings.best and start and due and best.step < start and len(heldout):
            record.show(start, "evaluating")  # again: perhaps it was killed after this was saved, and before the best was
            evaluation = evaluated()
            best.offer(start, evaluation, state.params, identity)
        step = start
        while True:
            last = step == settings.steps
            stop = cluster.stop_at(step)
            if len(heldout) and step != start and (step % settings.eval_every == 0 or last):
                settle()
                record.show(step, "evaluating")
                evaluation = evaluated()
                record.write(step, "eval", evaluation)
                record.say(f"step {step} held out: " + summary(evaluation))
                best.offer(step, evaluation, state.params, identity)
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
            batch = next(batches)
            batch = jax.device_put(batch, together.widened(sharding)) if seeds else to_devices(batch, mesh)
            state, metrics = train_step(state, batch)
            settle()
            step += 1
            pending = (step, batches.get_state()["examples"], metrics)
        checkpoints.wait()
        if not last:
            record.say(f"asked to stop: saved step {step} of {settings.steps}; the same command continues")
        if last and not evaluation and len(heldout):  # a finished run was started again
            record.show(step, "evaluating")
            evaluation = evaluated()
            record.say(f"step {step} held out: " + summary(evaluation))
        params = state.params
        if last and settings.best:
            params, evaluation = best.params(), best.evaluation
    if last and runs:
        for run, (seed, folder) in enumerate(runs.items()):
            own = dataclasses.replace(experiment, train=dataclasses.replace(settings, seed=seed))
            rows = together.record_of(seed, seeds, read(workdir / METRICS))
            ended = together.own(run, (state.params, state.optimizer))
            _leave(folder, task, own, step, ended, batches.get_state(), rows)
    return Result(step, params, evaluation, last)


@functools.lru_cache(maxsize=1)  # the next seed of the same task finds its programs compiled
def _functions(
    task: Task, mesh: Mesh, config: AdamW | Lamb, steps: int, accumulate: int, reduce_dtype: str, seeds: tuple[int, ...]
) -> tuple[Any, ...]:
    """The compiled functions, the first of which makes the state, and its shapes."""
    optimizer, abstract, step = make_update(
        task, mesh, config, steps, accumulate=accumulate, reduce_dtype=reduce_dtype, seeds=seeds
    )
    whole = together.abstract(abstract, len(seeds)) if seeds else abstract
    return make_init(task, optimizer, whole, several=bool(seeds)), whole, step, make_eval_step(task, mesh)


def _begin(task: Task, seed: int, seeds: tuple[int, ...]) -> Params | None:
    """Host arrays that a run begins with, or several runs, with an axis for them; None where the task has none."""
    if not seeds:
        return task.start(jax.random.key(seed))
    started = [task.start(jax.random.key(one)) for one in seeds]
    return None if started[0] is None else together.stacked(started)


def _leave(
    workdir: Path, task: Task, experiment: Experiment, step: int, state: tuple[Params, Any], data: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Makes ``workdir`` that of a finished run: its experiment, record and last checkpoint."""
    identity = task.identity()
    workdirs.claim(workdir, experiment, task, identity.get("tokenizer"))
    (workdir / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(workdir / METRICS, workdir / CURVES)
    with contextlib.closing(Checkpoints(workdir / CHECKPOINTS, keep=1)) as checkpoints:
        metadata = {"data": data, "identity": identity, "experiment": configuration.to_json(experiment)}
        checkpoints.save(step, {"params": state[0], "optimizer": state[1]}, metadata)
