"""Fine-tuning over seeds. Every seed is a run of the one loop in a folder of its own; a folder with ``result.json`` is
finished. What else is left is made of these at the end, and made again when the same command comes again.
"""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from bert_jax import config as configuration
from bert_jax.errors import BertJaxError, each_warning_once
from bert_jax.files import check_local, read_json, write_json
from bert_jax.finetuning import folders, report
from bert_jax.finetuning.fitting import check_kind, fit
from bert_jax.model import ANSWERS, EXPORTED, Model
from bert_jax.models import api
from bert_jax.parallel.cluster import Cluster, checked
from bert_jax.parallel.mesh import on_host
from bert_jax.predicting import kept_of
from bert_jax.progress import tracked
from bert_jax.reporting import judged, table
from bert_jax.tasks import Classification, Tagging, finetuning_task
from bert_jax.tasks.answering import Answering
from bert_jax.tasks.base import FinetuningTask
from bert_jax.tasks.columns import entities
from bert_jax.tasks.datasets import Named
from bert_jax.training import record
from bert_jax.training.experiment import Experiment
from bert_jax.training.train import train
from bert_jax.training.workdirs import kept_from_others

logger = logging.getLogger("bert_jax")

PREDICTIONS = "predictions.tsv"
OFFICIAL = "predictions.json"  # beside these where examples have ids: what is said of each, as the scripts of SQuAD take it

Export = Literal["first", "best"]


class Finetuned(NamedTuple):
    """finished: False after a request to stop, all saved. scores: over seeds, None where not finished. workdir: of all."""

    finished: bool
    scores: table.Scores | None
    workdir: Path


@each_warning_once()
def finetune(
    experiment: Experiment, workdir: Path | str, *, seeds: int = 5, at_once: int = 1, model: Model | None = None,
    export: Export = "first", command: Sequence[str] = (), cluster: Cluster | None = None,
) -> Finetuned:
    """Fine-tunes ``experiment`` with as many seeds, from ``train.seed`` on, or goes on with what is in ``workdir``. Seeds that
    are finished there count too, be ``seeds`` fewer.

    Args:
      at_once: seeds that train as one program (:mod:`bert_jax.training.together`), which takes as many times the memory, and on
        a large device with a small model little more time than one.
      model: of an experiment that :func:`fit` made, what it gave with it; None: it is fitted here.
      export: whose model is written: that of the first seed, or of the best by the held-out data, which flatters it.
      command: the words of what was called, for the report.
      cluster: the processes that train each seed together, all of which call this; None for this one alone. What they leave
        is the first one's to write, and so are the answers about the held-out data.

    Raises:
      BertJaxError: see :func:`bert_jax.training.train.train`; ``workdir`` holds something else, or was begun with other data;
        a process of the ``cluster`` has another experiment, data, start or devices.
    """
    check_kind(experiment)
    check_local(workdir)
    cluster, workdir = checked(cluster), Path(workdir)
    for name, value in (("seeds", seeds), ("at_once", at_once)):
        if value < 1:
            raise BertJaxError(f"{name} is {value}: it must be at least 1")
    if at_once > 1 and cluster.count > 1:
        raise BertJaxError(f"at_once is {at_once}: one process trains seeds together, and there are {cluster.count}")
    if model is None:
        experiment, model = fit(experiment)
    task = finetuning_task(experiment.task, model)
    plan = {"experiment": configuration.to_json(experiment),
            "identity": task.identity() | {"start (task.init)": folders.digest(model)}}
    # Before the folder is touched: the first process cannot clear up what it leaves when another one's refusal ends it.
    cluster.agree("fine-tuning", {"seeds": seeds, "export": export, "experiment": plan["experiment"]})
    cluster.agree("data", plan["identity"])
    cluster.agree_on_devices()
    if cluster.count > 1:  # batches are of what each process makes of the texts
        cluster.agree("tokenisation", {"training": task.training.digest(), "held-out": task.evaluation.digest()})
    with kept_from_others(workdir, cluster.first):
        return _finetune(task, experiment, plan, workdir, seeds, at_once, model, export, command, cluster)


def _finetune(
    task: FinetuningTask, experiment: Experiment, plan: dict[str, Any], workdir: Path, seeds: int, at_once: int, model: Model,
    export: Export, command: Sequence[str], cluster: Cluster,
) -> Finetuned:
    console = Console(stderr=True, quiet=not cluster.first)
    numbers = range(experiment.train.seed, experiment.train.seed + seeds)
    cluster.from_first(lambda: folders.check(workdir, plan))
    console.print("tokenising the data")
    _ = task.training, task.evaluation  # what is wrong with the data is said before anything is written
    if (scored := report.scored(task, experiment)) < len(task.heldout.texts):
        logger.warning("scores are of %d of the %d held-out examples, since train.eval_batches is %d: null scores all", scored,
                       len(task.heldout.texts), experiment.train.eval_batches)
    if not experiment.optimizer.bias_correction:
        logger.warning("optimizer.bias_correction is off, as pre-training has it: fine-tuning is worse and less stable without "
                       "(Mosbach et al. 2021): --set optimizer.bias_correction=true")
    answering = Answering(task.predictor, experiment.train.eval_size)
    new = cluster.from_first(lambda: folders.begin(workdir, plan))
    results = {int(seed): found for seed, found in cluster.from_first(lambda: folders.finished_seeds(workdir)).items()}
    if others_there := sorted(results.keys() - set(numbers)):
        console.print(f"with seeds {', '.join(map(str, others_there))}, which are finished here", highlight=False)
    report.warn_of_form(task.config.encoder, model.origin, workdir / EXPORTED)
    kept: dict[int, tuple[api.Params, judged.Answered]] = {}  # of the one seed that may be exported
    primary = primary_score(experiment)
    together = cluster.from_first(lambda: folders.groups(numbers, at_once, workdir))
    if together and cluster.count > 1:
        raise BertJaxError(f"{workdir}: seeds {', '.join(map(str, together[0]))} were begun together (--at-once), which one "
                           "process has to finish: start it without the others")
    for group in together:
        console.print(f"seeds {', '.join(map(str, group))} together", highlight=False)
        with folders.leaving_no_refusal(workdir, new if cluster.first else []):
            finished = _together(task, experiment, group, workdir)
        if not finished:
            return Finetuned(False, None, workdir)

    def run(seed: int) -> tuple[api.Params, judged.Answered] | None:
        """Trains a seed, or reads it again; what it says of the held-out data, in the first process; None if asked to stop."""
        folder = workdir / f"seed-{seed}"
        with folders.leaving_no_refusal(workdir, new if cluster.first else []):
            params, results[seed] = _run(task, _with_seed(experiment, seed), folder, cluster)
        if params is None:
            return None
        found = _answers(task, answering, params, folder) if cluster.first else ([], [])
        return params, found

    for seed in numbers:
        if seed in results:
            continue
        if seeds > 1:
            console.print(f"seed {seed}, {seed - numbers[0] + 1} of {seeds}", highlight=False)
        if (found := run(seed)) is None:
            return Finetuned(False, None, workdir)
        if cluster.first:
            write_json(workdir / f"seed-{seed}" / folders.RESULT, results[seed])
        if seed == numbers[0] or (export == "best" and _better(results, primary) == seed):
            kept = {seed: found}
    chosen = _better(results, primary) if export == "best" else numbers[0]
    if chosen not in kept:
        before = results[chosen]
        if (found := run(chosen)) is None:
            return Finetuned(False, None, workdir)
        kept, results[chosen] = {chosen: found}, before
    results = dict(sorted(results.items()))
    labels = task.config.encoder.labels if isinstance(task.config, Classification) else ()
    scores = table.gather({seed: result["scores"] for seed, result in results.items()}, labels, experiment.train.best)

    def finish() -> None:
        before = read_json(workdir / table.SCORES).get("exported_seed") if (workdir / table.SCORES).is_file() else chosen
        if before != chosen:
            console.print(f"{workdir / EXPORTED} was that of seed {before}, now of seed {chosen}", highlight=False,
                          markup=False, soft_wrap=True)
        console.print("writing the report")
        chosen_by = primary if export == "best" else None
        report.write(task, experiment, scores, results, chosen, chosen_by, model, *kept[chosen], workdir, command)

    cluster.from_first(finish)  # for which the others wait: who leaves early would be missed
    return Finetuned(True, scores, workdir)


def primary_score(experiment: Experiment) -> str:
    """The score by which the best seed is chosen: ``train.best``, the data set's first, or else the kind's, of those that its
    labels have."""
    task = experiment.task
    if experiment.train.best:
        return experiment.train.best
    if isinstance(task, Tagging):
        return "f1" if entities(task.encoder.labels) else "accuracy"
    named = task.heldout.dataset.scores[0] if isinstance(task.heldout, Named) else None
    if named and not (named == "f1" and isinstance(task, Classification) and len(task.encoder.labels) > 2):
        return named
    return {"Regression": "-rmse", "QuestionAnswering": "f1"}.get(type(task).__name__, "accuracy")


def _better(results: dict[int, dict[str, Any]], name: str) -> int:
    """The seed with the best score, the first where some are equal."""
    sign, name = (-1 if name.startswith("-") else 1), name.removeprefix("-")
    return max(results, key=lambda seed: sign * results[seed]["scores"][name])


def _with_seed(experiment: Experiment, seed: int) -> Experiment:
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))


def _together(task: FinetuningTask, experiment: Experiment, seeds: Sequence[int], workdir: Path) -> bool:
    """Trains seeds as one program, up to the work directory that each alone would leave; False after a request to stop."""
    joint = workdir / f"seeds-{'-'.join(map(str, seeds))}"
    runs = {seed: joint / f"seed-{seed}" for seed in seeds}
    if not train(task, experiment, joint, runs=runs).finished:
        return False
    for folder in runs.values():
        if not (workdir / folder.name).exists():  # else this had been interrupted
            folder.rename(workdir / folder.name)
    over = joint.with_name(f".{joint.name}.over")  # in one go: half of it would be a run to go on with
    joint.rename(over)
    shutil.rmtree(over)
    return True


def _run(
    task: FinetuningTask, experiment: Experiment, folder: Path, cluster: Cluster
) -> tuple[api.Params | None, dict[str, Any]]:
    """Host parameters as they are exported, in the first process, and scores with their time; None after a request to stop."""
    result = train(task, experiment, folder, cluster)
    if not result.finished:
        return None, {}

    def found() -> dict[str, Any]:
        rows = record.read(folder / record.METRICS)
        return {"seed": experiment.train.seed, "step": result.step, "scores": result.evaluation,
                "seconds": max((row["time"] for row in rows), default=0.0)}

    return on_host(task.finished(result.params), wanted=cluster.first), cluster.from_first(found)


def _answers(task: FinetuningTask, answering: Answering, params: api.Params, folder: Path) -> judged.Answered:
    """The answers of a run; they are written beside it."""
    texts = task.heldout.texts
    answers = [answer for _, answer in tracked(answering.stream(params, texts), "answering", len(texts))]
    found = judged.judge(task.config, task.heldout, answers)
    judged.write(folder / PREDICTIONS, judged.columns(task.config), found)
    write_json(folder / ANSWERS, kept_of(task.config, Model(params, task.config.encoder, task.tokenizer)))
    if official := judged.by_id(found):
        write_json(folder / OFFICIAL, official)
    return answers, found
