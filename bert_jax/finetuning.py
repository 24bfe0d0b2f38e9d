"""Fine-tuning over seeds and what it leaves: scores with their deviation, predictions, pictures, a page, a card, a model.

Every seed is a run of the one loop in a folder of its own; a folder with ``result.json`` is finished. Everything else is made
of these at the end, and made again when the same command comes again.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import platform
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console

from bert_jax import config as configuration
from bert_jax.answering import Answering
from bert_jax.convert import hf
from bert_jax.convert.reading import PREDICTOR, Origin, flatten
from bert_jax.convert.settings import CONFIG, family_of
from bert_jax.errors import BertJaxError, each_warning_once
from bert_jax.files import check_local, read_json, write_json, write_whole
from bert_jax.model import CHECKPOINTS, EXPERIMENT, EXPORTED, PLAN, Model, load, save
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.predicting import kept_of, of_task
from bert_jax.reporting import card, judged, page, plots, table
from bert_jax.tasks import TASKS, Classification, Regression, Tagging, finetuning_task
from bert_jax.tasks.base import Finetuning, FinetuningTask
from bert_jax.tasks.columns import entities
from bert_jax.tasks.datasets import Named
from bert_jax.training import record
from bert_jax.training.experiment import Experiment
from bert_jax.training.recipe import paths_of
from bert_jax.training.train import train
from bert_jax.training.workdirs import kept_from_others, trained
from bert_jax.warm_start import of_the_checkpoint

logger = logging.getLogger("bert_jax")

RESULT, PREDICTIONS, PAGE, CARD = "result.json", "predictions.tsv", "report.html", "README.md"
OFFICIAL = "predictions.json"  # beside these where examples have ids: what is said of each, as the scripts of SQuAD take it
HARDEST = 20  # wrong examples on the page
PACKAGES = ("bert_jax", "jax", "jaxlib", "flax", "optax", "numpy")

Export = Literal["first", "best"]


class Finetuned(NamedTuple):
    """finished: False after a request to stop, all saved. scores: over seeds, None where not finished. workdir: of all."""

    finished: bool
    scores: table.Scores | None
    workdir: Path


def fit(
    experiment: Experiment, checkpoint: str | None = None, assignments: Sequence[str] = ()
) -> tuple[Experiment, Model]:
    """An experiment whose encoder has the sizes of the checkpoint that it starts from, and that checkpoint.

    Args:
      checkpoint: in place of ``task.init``. assignments: as ``--set`` has them.

    Raises:
      BertJaxError: no fine-tuning, no such checkpoint, or see :func:`check_assignments`.
    """
    _check_kind(experiment)
    if not isinstance(experiment.task, Finetuning):
        raise BertJaxError(f"the task is {type(experiment.task).__name__}: finetune runs {_kinds()}; pretrain runs the others")
    check_assignments(assignments, checkpoint)
    init = [f"task.init={json.dumps(str(checkpoint))}"] if checkpoint else []
    begun = init or [one for one in assignments if paths_of([one]) <= {"task", "task.init"}]
    model = load(configuration.override(experiment, begun).task.init)
    # All together, and only then checked: what is set must fit the checkpoint, and need not fit the configuration's sizes.
    sizes = [f"task.encoder.{name}={json.dumps(configuration.to_json(getattr(model.config, name)))}" for name in _SIZES]
    return configuration.override(experiment, [*assignments, *init, *sizes]), model


def _check_kind(experiment: Any) -> None:
    if not isinstance(experiment, Experiment):
        raise BertJaxError(
            f"finetune takes an experiment, not {experiment!r}: bert_jax.training.recipe.recipe makes an "
            "experiment of a model and own_data(FILE, ...), bert_jax.training.pretrain.load_config of a configuration file"
        )


def check_assignments(assignments: Sequence[str], checkpoint: str | None) -> None:
    """Raises BertJaxError where ``--set`` changes what the checkpoint decides, or which one it is."""
    for path in sorted(paths_of(assignments)):
        if path.startswith("task.encoder.") and path.split(".")[2] in _SIZES:
            raise BertJaxError(f"--set {path}: the checkpoint decides about it, leave it out")
        if path == "task.init" and checkpoint:
            raise BertJaxError(f"--set task.init beside --checkpoint {checkpoint}: use --checkpoint alone")


_SIZES = tuple(field.name for field in dataclasses.fields(EncoderConfig) if of_the_checkpoint(field.name))


def _kinds() -> str:
    return ", ".join(kind.__name__ for kind in TASKS)


@each_warning_once()
def finetune(
    experiment: Experiment, workdir: Path | str, *, seeds: int = 5, at_once: int = 1, model: Model | None = None,
    export: Export = "first", command: Sequence[str] = (),
) -> Finetuned:
    """Fine-tunes ``experiment`` with as many seeds, from ``train.seed`` on, or goes on with what is in ``workdir``. Seeds that
    are finished there count too, be ``seeds`` fewer.

    Args:
      at_once: seeds that train as one program (:mod:`bert_jax.training.together`), which takes as many times the memory, and on
        a large device with a small model little more time than one.
      model: of an experiment that :func:`fit` made, what it gave with it; None: it is fitted here.
      export: whose model is written: that of the first seed, or of the best by the held-out data, which flatters it.
      command: the words of what was called, for the report.

    Raises:
      BertJaxError: see :func:`bert_jax.training.train.train`; ``workdir`` holds something else, or was begun with other data.
    """
    _check_kind(experiment)
    check_local(workdir)
    with kept_from_others(Path(workdir)):
        return _finetune(experiment, Path(workdir), seeds, at_once, model, export, command)


def _finetune(
    experiment: Experiment, workdir: Path, seeds: int, at_once: int, model: Model | None, export: Export, command: Sequence[str]
) -> Finetuned:
    console = Console(stderr=True)
    for name, value in (("seeds", seeds), ("at_once", at_once)):
        if value < 1:
            raise BertJaxError(f"{name} is {value}: it must be at least 1")
    if model is None:
        experiment, model = fit(experiment)
    numbers = range(experiment.train.seed, experiment.train.seed + seeds)
    task = finetuning_task(experiment.task, model)
    identity = task.identity() | {"start (task.init)": _digest(model)}
    plan = {"experiment": configuration.to_json(experiment), "identity": identity}
    _check(workdir, plan)
    console.print("tokenising the data")
    _ = task.training, task.evaluation  # what is wrong with the data is said before anything is written
    if (scored := _scored(task, experiment)) < len(task.heldout.texts):
        logger.warning("scores are of %d of the %d held-out examples, since train.eval_batches is %d: null scores all", scored,
                       len(task.heldout.texts), experiment.train.eval_batches)
    if not experiment.optimizer.bias_correction:
        logger.warning("optimizer.bias_correction is off, as pre-training has it: fine-tuning is worse and less stable without "
                       "(Mosbach et al. 2021): --set optimizer.bias_correction=true")
    answering = Answering(task.predictor, experiment.train.eval_size)
    new = [path for path in (workdir / PLAN, workdir) if not path.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / PLAN, plan)
    results = finished_seeds(workdir)
    if others_there := sorted(results.keys() - set(numbers)):
        console.print(f"with seeds {', '.join(map(str, others_there))}, which are finished here", highlight=False)
    _warn_of_form(task.config.encoder, model.origin, workdir / EXPORTED)
    kept: dict[int, tuple[api.Params, _Answers]] = {}  # of the one seed that may be exported
    primary = primary_score(experiment)
    for group in _groups(numbers, at_once, workdir):
        console.print(f"seeds {', '.join(map(str, group))} together", highlight=False)
        with _leaving_no_refusal(workdir, new):
            finished = _together(task, experiment, group, workdir)
        if not finished:
            return Finetuned(False, None, workdir)
    for seed in numbers:
        folder = workdir / f"seed-{seed}"
        if seed in results:
            continue
        if seeds > 1:
            console.print(f"seed {seed}, {seed - numbers[0] + 1} of {seeds}", highlight=False)
        with _leaving_no_refusal(workdir, new):
            params, results[seed] = _run(task, _with_seed(experiment, seed), folder)
        if params is None:
            return Finetuned(False, None, workdir)
        found = _answers(task, answering, params, folder)
        write_json(folder / RESULT, results[seed])
        if seed == numbers[0] or (export == "best" and _better(results, primary) == seed):
            kept = {seed: (params, found)}
    results = dict(sorted(results.items()))
    labels = task.config.encoder.labels if isinstance(task.config, Classification) else ()
    scores = table.gather({seed: result["scores"] for seed, result in results.items()}, labels, experiment.train.best)
    chosen = _better(results, primary) if export == "best" else numbers[0]
    if chosen not in kept:
        folder = workdir / f"seed-{chosen}"
        params, _ = _run(task, _with_seed(experiment, chosen), folder)
        if params is None:
            return Finetuned(False, None, workdir)
        kept = {chosen: (params, _answers(task, answering, params, folder))}
    before = read_json(workdir / table.SCORES).get("exported_seed") if (workdir / table.SCORES).is_file() else chosen
    if before != chosen:
        console.print(f"{workdir / EXPORTED} was that of seed {before}, now of seed {chosen}", highlight=False, markup=False,
                      soft_wrap=True)
    console.print("writing the report")
    _report(task, experiment, scores, results, chosen, export, model, *kept[chosen], workdir, command)
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


_ONE, _SEVERAL = re.compile(r"seed-\d+"), re.compile(r"seeds(-\d+){2,}")  # folders of runs


def _digest(model: Model) -> str:
    """Of the weights that seeds begin with: a folder may have others when the next ones are asked for."""
    digest = hashlib.sha256()
    for name, array in flatten(model.params).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _check(workdir: Path, plan: dict[str, Any]) -> None:
    """Raises BertJaxError where ``workdir`` holds anything but this fine-tuning; one that trained nothing gives way."""
    if (workdir / PLAN).is_file():
        there = read_json(workdir / PLAN)
        runs = [path for path in workdir.iterdir() if _ONE.fullmatch(path.name) or _SEVERAL.fullmatch(path.name)]
        left = (workdir / EXPORTED).exists() or (workdir / table.SCORES).exists() or any(map(trained, runs))
        if there != plan and not left:
            logger.warning("the fine-tuning that was begun in %s trained nothing, this one takes its place", workdir)
            for path in runs:
                shutil.rmtree(path)
            return
        # Through a value, so that a field which an earlier version had not counts as its default.
        where = f"{workdir / PLAN} is not of this version, choose another --workdir: experiment"
        begun = configuration.from_json(Experiment, there.get("experiment"), where)
        for path, before, now in configuration.differences(configuration.to_json(begun), plan["experiment"]):
            raise BertJaxError(
                f"{workdir} holds another fine-tuning: {path} was {before}, is now {now}: choose another --workdir"
            )
        for name, now in plan["identity"].items():
            if there.get("identity", {}).get(name, now) != now:  # earlier versions kept less
                raise BertJaxError(
                    f"{workdir}: the {name} is not what it was when this fine-tuning began: use the same again, or choose "
                    "another --workdir"
                )
    elif (workdir / EXPERIMENT).exists() or (workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir()))):
        raise BertJaxError(f"{workdir} exists and is no work directory of finetune: choose another --workdir")


def finished_seeds(workdir: Path) -> dict[int, dict[str, Any]]:
    """The results of the seeds of a fine-tuning that are finished."""
    folders = {path.parent.name.removeprefix("seed-"): path for path in workdir.glob(f"seed-*/{RESULT}")}
    return {int(seed): read_json(path) for seed, path in folders.items() if seed.isdecimal()}


_OWN_FORM = "%s: in the form of bert_jax, not for transformers: %s"


def _warn_of_form(encoder: EncoderConfig, origin: Origin | None, folder: Path) -> None:
    """Says before training that ``folder`` will not be for transformers."""
    plain: list[EncoderConfig] = []

    def shapes() -> api.Params:
        params, config = api.plain(api.init(encoder, jax.random.key(0)), encoder)
        plain.extend([config, dataclasses.replace(config, position_offset=0)])  # either may be written
        return params

    try:
        jax.eval_shape(shapes)
        try:
            family_of(plain[0], origin)
        except BertJaxError:
            family_of(plain[1], origin)
    except BertJaxError as error:
        logger.warning(_OWN_FORM, folder, error)


def _scored(task: FinetuningTask, experiment: Experiment) -> int:
    """How many of the held-out examples an evaluation reads."""
    train = experiment.train
    order = task.eval_batches(train.eval_size, train.eval_limit).order
    return len(np.unique(task.evaluation.item[order]))


def _with_seed(experiment: Experiment, seed: int) -> Experiment:
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))


@contextlib.contextmanager
def _leaving_no_refusal(workdir: Path, new: Sequence[Path]) -> Iterator[None]:
    """What is refused before it has trained takes away what is ``new``: the plan, and ``workdir`` where it was absent."""
    try:
        yield
    except BertJaxError:
        if new and [path.name for path in workdir.iterdir()] == [PLAN]:
            for path in new:
                path.rmdir() if path == workdir else path.unlink()
        raise


def _groups(numbers: Sequence[int], at_once: int, workdir: Path) -> list[list[int]]:
    """The seeds that train together: those that have begun so, and then ``at_once`` at a time of those that have not begun."""
    for path in workdir.glob(".seeds-*.over"):
        shutil.rmtree(path)
    joint = sorted(path for path in workdir.iterdir() if _SEVERAL.fullmatch(path.name))
    going_on = [path for path in joint if trained(path) and (path / CHECKPOINTS).is_dir()]
    for path in joint:  # what trained nothing (perhaps the memory did not suffice), or is left of one that has ended
        if path not in going_on and not any(map(trained, path.glob("seed-*"))):
            shutil.rmtree(path)
    begun = [[int(seed) for seed in path.name.split("-")[1:]] for path in going_on]
    taken = {seed for group in begun for seed in group}
    waiting = [seed for seed in numbers if seed not in taken and not (workdir / f"seed-{seed}").exists()]
    new = [waiting[first : first + at_once] for first in range(0, len(waiting), at_once)] if at_once > 1 else []
    return [*begun, *(group for group in new if len(group) > 1)]


def _together(task: FinetuningTask, experiment: Experiment, seeds: Sequence[int], workdir: Path) -> bool:
    """Trains seeds as one program, up to the work directory that each alone would leave; False after a request to stop."""
    joint = workdir / f"seeds-{'-'.join(map(str, seeds))}"
    folders = {seed: joint / f"seed-{seed}" for seed in seeds}
    if not train(task, experiment, joint, runs=folders).finished:
        return False
    for folder in folders.values():
        if not (workdir / folder.name).exists():  # else this had been interrupted
            folder.rename(workdir / folder.name)
    over = joint.with_name(f".{joint.name}.over")  # in one go: half of it would be a run to go on with
    joint.rename(over)
    shutil.rmtree(over)
    return True


def _run(task: FinetuningTask, experiment: Experiment, folder: Path) -> tuple[api.Params | None, dict[str, Any]]:
    """Host parameters as they are exported, and scores with their time; None after a request to stop."""
    result = train(task, experiment, folder)
    if not result.finished:
        return None, {}
    rows = record.read(folder / record.METRICS)
    found = {"seed": experiment.train.seed, "step": result.step, "scores": result.evaluation,
             "seconds": max((row["time"] for row in rows), default=0.0)}
    return jax.device_get(task.finished(result.params)), found


_Answers = tuple[list[dict[str, Any]], list[judged.Judged]]  # about all held-out texts, and beside what is right


def _answers(task: FinetuningTask, answering: Answering, params: api.Params, folder: Path) -> _Answers:
    """The answers of a run; they are written beside it."""
    answers = [answer for _, answer in answering.stream(params, task.heldout.texts)]
    found = judged.judge(task.config, task.heldout, answers)
    judged.write(folder / PREDICTIONS, judged.columns(task.config), found)
    if official := judged.by_id(found):
        write_json(folder / OFFICIAL, official)
    return answers, found


def _report(
    task: FinetuningTask, experiment: Experiment, scores: table.Scores, results: dict[int, dict[str, Any]], chosen: int,
    export: Export, model: Model, params: api.Params, answered: _Answers, workdir: Path, command: Sequence[str],
) -> None:
    """All that is made of the runs. ``model``: what they began with; ``params``, ``answered``: of the seed ``chosen``."""
    config, (answers, found) = task.config, answered
    pictures = plots.draw(config, task.heldout, answers, found, workdir)
    records = {seed: record.read(workdir / f"seed-{seed}" / record.METRICS) for seed in results}
    plots.draw_curves(records, [row.name for row in scores.rows], workdir / record.CURVES)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    seconds = {seed: result["seconds"] for seed, result in results.items()}
    counts = {"training": len(np.unique(task.training.item)), "held-out": _scored(task, experiment)}
    device = jax.devices()[0]
    facts = {
        "command": shlex.join(command) or "bert_jax.finetune", "checkpoint": config.init,
        "training examples": f"{counts['training']:,}",
        "held-out examples": f"{counts['held-out']:,}",
        "updates": ", ".join(f"{result['step']:,}" for result in results.values()),
        "seconds of each seed": ", ".join(f"{one:,.1f}" for one in seconds.values()),
        "device": f"{jax.device_count()} x {device.device_kind}", "versions": _listed(versions),
        "written": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    table.write(scores, workdir, {"exported_seed": chosen, "chosen_by": primary_score(experiment) if export == "best" else None,
                                  "seconds": seconds, "versions": versions, "command": shlex.join(command)})
    shown = [(f"Learning curves of {len(results)} seeds" if len(results) > 1 else "Learning curves", workdir / record.CURVES)]
    shown += [(f"{path.stem.replace('_', ' ')}, seed {chosen}", path) for path in pictures]
    page.write(
        workdir / PAGE, title=f"{workdir.name}: {type(config).__name__}", scores=scores,
        summary=f"{Path(config.init).name} fine-tuned on {card.dataset_of(config.data)}, measured on "
                f"{card.dataset_of(config.heldout)}. Deviation: over {len(results)} seeds (n - 1). Pictures, examples: seed "
                f"{chosen}.",
        pictures=shown, hardest=judged.hardest(found, HARDEST), columns=judged.columns(config),
        configuration=json.dumps(configuration.to_json(experiment), indent=2, ensure_ascii=False), facts=facts,
    )
    settings, optimizer = experiment.train, experiment.optimizer
    recipe = [f"{settings.steps:,} updates of {settings.batch_size} rows, {type(optimizer).__name__}, learning rate "
              f"{optimizer.learning_rate:g}, warm-up over {optimizer.warmup_steps:,}, weight decay {optimizer.weight_decay:g}",
              f"dropout {config.encoder.dropout:g}, seeds {', '.join(map(str, results))}, up to {max(config.lengths)} tokens"]
    exported = Model(params, config.encoder, task.tokenizer, origin=model.origin)
    described = _export(exported, task, workdir / EXPORTED, lambda transformers: card.card(
        config, scores, chosen, name=workdir.resolve().name, base=config.init, transformers=transformers,
        chosen=export == "best" and len(results) > 1, best=settings.best, counts=counts,
        texts=len(task.heldout.texts[0]), recipe=recipe,
        command=shlex.join(map(_without_folders, command)), versions=versions,
    ))
    write_whole(workdir / CARD, described)


def _listed(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _without_folders(argument: str) -> str:
    """An argument with the last names of absolute paths alone, also behind its ``=`` and in JSON: a card is published."""
    argument = re.sub(r'(?<=")/[^"]*/(?=[^"/])', "", argument)
    return re.sub(r"(^|=)/.*/(?=[^/])", r"\1", argument, flags=re.DOTALL)


def _export(model: Model, task: FinetuningTask, folder: Path, describe: Callable[[bool], str]) -> str:
    """A directory for transformers in float32, or in our own form where transformers has no such model, and the card in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with hf.new_directory(folder) as partial:
        try:
            hf.write(model.params, model.config, model.tokenizer, partial, origin=model.origin, dtype="float32")
        except BertJaxError as error:
            logger.warning(_OWN_FORM, folder, error)
            save(model, partial, format="bert_jax")
        else:
            said = {PREDICTOR: kept_of(of_task(task.config, model).predictor)}
            if isinstance(task.config, Classification | Regression):  # what pipelines decide by, else by the number of labels
                kind = "regression" if isinstance(task.config, Regression) else "single_label_classification"
                said["problem_type"] = kind
            write_json(partial / CONFIG, read_json(partial / CONFIG) | said)
        described = describe((partial / CONFIG).exists())
        write_whole(partial / CARD, described)
    return described
