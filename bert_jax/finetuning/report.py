"""What is made of the finished seeds of a fine-tuning: pictures, a page, a card, and a model."""

import dataclasses
import importlib.metadata
import json
import logging
import platform
import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax import config as configuration
from bert_jax.convert import hf
from bert_jax.convert.reading import PREDICTOR, Origin
from bert_jax.convert.settings import CONFIG, family_of
from bert_jax.errors import BertJaxError
from bert_jax.files import read_json, write_json, write_whole
from bert_jax.model import EXPORTED, Model, save
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.predicting import kept_of
from bert_jax.reporting import card, judged, page, plots, table
from bert_jax.tasks import Classification, Regression
from bert_jax.tasks.base import FinetuningTask
from bert_jax.training import record
from bert_jax.training.experiment import Experiment

logger = logging.getLogger("bert_jax")

PAGE, CARD = "report.html", "README.md"
HARDEST = 20  # wrong examples on the page
PACKAGES = ("bert_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def scored(task: FinetuningTask, experiment: Experiment) -> int:
    """How many of the held-out examples an evaluation reads."""
    train = experiment.train
    order = task.eval_batches(train.eval_size, train.eval_limit).order
    return len(np.unique(task.evaluation.item[order]))


_OWN_FORM = "%s: in the form of bert_jax, not for transformers: %s"


def warn_of_form(encoder: EncoderConfig, origin: Origin | None, folder: Path) -> None:
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


def write(
    task: FinetuningTask, experiment: Experiment, scores: table.Scores, results: dict[int, dict[str, Any]], chosen: int,
    chosen_by: str | None, model: Model, params: api.Params, answered: judged.Answered, workdir: Path, command: Sequence[str],
) -> None:
    """All that is made of the runs.

    Args:
      results: of each seed, by number. chosen: the seed whose model is written, of which ``params`` and ``answered`` are.
      chosen_by: the score that chose it; None: none did. model: what the runs began with. command: the words that called it.
    """
    config, (answers, found) = task.config, answered
    pictures = plots.draw(config, task.heldout, answers, found, workdir)
    records = {seed: record.read(workdir / f"seed-{seed}" / record.METRICS) for seed in results}
    plots.draw_curves(records, [row.name for row in scores.rows], workdir / record.CURVES)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    seconds = {seed: result["seconds"] for seed, result in results.items()}
    counts = {"training": len(np.unique(task.training.item)), "held-out": scored(task, experiment)}
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
    table.write(scores, workdir, {"exported_seed": chosen, "chosen_by": chosen_by, "seconds": seconds,
                                  "versions": versions, "command": shlex.join(command)})
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
        chosen=chosen_by is not None and len(results) > 1, best=settings.best, counts=counts,
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
    kept, said = kept_of(task.config, model), {}
    if isinstance(task.config, Classification | Regression):  # what pipelines decide by, else by the number of labels
        kind = "regression" if isinstance(task.config, Regression) else "single_label_classification"
        said["problem_type"] = kind
    with hf.new_directory(folder) as partial:
        try:
            hf.write(model.params, model.config, model.tokenizer, partial, origin=model.origin, dtype="float32")
        except BertJaxError as error:
            logger.warning(_OWN_FORM, folder, error)
            origin = model.origin and model.origin._replace(settings=model.origin.settings | said)
            save(model._replace(origin=origin, predictor=kept), partial, format="bert_jax")
        else:
            write_json(partial / CONFIG, read_json(partial / CONFIG) | said | {PREDICTOR: kept})
        described = describe((partial / CONFIG).exists())
        write_whole(partial / CARD, described)
    return described
