"""Reading a work directory back: parameters of any checkpoint, the experiment, the tokenizer."""

from pathlib import Path
from typing import NamedTuple

import jax

from bert_jax import config as configuration
from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.experiment import Experiment


class Model(NamedTuple):
    """A model ready for use: parameters, configuration, tokenizer, and the experiment that made it (None: imported)."""

    params: api.Params
    config: EncoderConfig
    tokenizer: Tokenizer
    experiment: Experiment | None = None


def load_workdir(path: Path | str) -> Model:
    """Loads ``workdir`` (the newest whole checkpoint) or ``workdir@step``, on one device.

    Raises:
      BertJaxError: not a work directory, no such step, or nothing readable.
    """
    name, _, step = str(path).partition("@")
    if step and not step.isdigit():
        raise BertJaxError(f"{path}: after @ comes a step number")
    workdir = Path(name)
    if not (workdir / "experiment.json").is_file():
        raise BertJaxError(f"{workdir}: not a work directory of bert-jax pretrain (it has no experiment.json)")
    experiment = configuration.load(Experiment, workdir / "experiment.json")
    config = experiment.task.encoder
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    if not (workdir / "checkpoints").is_dir():
        raise BertJaxError(f"{workdir}: no checkpoint has been saved yet")
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore({"params": abstract}, int(step) if step else None)
    checkpoints.close()
    if restored is None:
        raise BertJaxError(f"{workdir}: no checkpoint has been saved yet")
    tokenizer = tokenizers.load(workdir / "tokenizer")
    trained_with = restored.metadata["identity"]["tokenizer"]
    if tokenizer.hash != trained_with:
        raise BertJaxError(f"{workdir}: the checkpoint was trained with tokenizer {trained_with}, there lies {tokenizer.hash}")
    return Model(restored.items["params"], config, tokenizer, experiment)
