"""A table of one's own without a configuration file: which kind it is, its labels, and the published recipe for it."""

import dataclasses
from typing import Literal

import numpy as np

from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.regression import Regression
from bert_jax.tasks.tables import Rows, Table, kind_of, labels_of
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW

HELDOUT = 0.1  # of a table that comes alone
LONGEST = 512  # tokens; shorter texts take no more than they need
EPOCHS, BATCH, RATE, WARM = 3.0, 32, 2e-5, 0.1

SentenceKind = Literal["classification", "regression"]


def recipe(
    model: Model, checkpoint: str, data: Table, heldout: Table | None = None, *, kind: SentenceKind | None = None,
    epochs: float = EPOCHS,
) -> Experiment:
    """How to fine-tune ``model`` on a labelled table: batch 32 and 3 epochs (Devlin et al. 2019, section 4.1) at 2e-5, one of
    their four learning rates, which is also that of Mosbach et al. 2021, who correct Adam's bias; warm-up over a tenth of the
    updates (run_classifier.py of google-research/bert), then linearly to 0; weight decay 0.01.
    Small tables want more epochs: 20 in Mosbach et al. Dropout is the checkpoint's.

    Args:
      checkpoint: the name of ``model``. heldout: None: a tenth of ``data``, which examples with the same texts share.
      kind: None: what the labels say (:func:`bert_jax.tasks.tables.kind_of`).

    Raises:
      BertJaxError: a table that cannot be read, without a label, with too few rows or but one label or value.
    """
    if data.label is None:
        raise BertJaxError(f"{data.path}: name the column of the label (--label)")
    if not epochs > 0:
        raise BertJaxError(f"epochs is {epochs:g}: it must be above 0")
    kind = kind or kind_of(data)
    training, heldout = _split(data, heldout)
    rows = training.read()
    steps = max(1, round(epochs * len(rows.texts) / BATCH))
    # A step is compiled for each length, and one more has to save what that costs.
    shared = {"lengths": (min(LONGEST, model.config.max_length),), "shapes": min(16, max(2, steps // 100))}
    if kind == "classification":
        task = Classification(finetuned_encoder(model.config, labels_of(data)), checkpoint, training, heldout, **shared)
    else:
        values = _values(data.path, rows)
        encoder = finetuned_encoder(model.config, (data.label,))
        task = Regression(
            encoder, checkpoint, training, heldout, offset=float(values.mean()), scale=float(values.std()), **shared
        )
    each = max(1, round(len(rows.texts) / BATCH))
    return Experiment(
        task, AdamW(learning_rate=RATE, warmup_steps=int(WARM * steps), bias_correction=True),
        TrainConfig(steps=steps, batch_size=BATCH, eval_every=each, save_every=each, log_every=max(1, min(50, each // 4)),
                    eval_batches=None, eval_batch_size=64, keep=1),
    )


def _split(data: Table, heldout: Table | None) -> tuple[Table, Table]:
    """What is trained on, and what is held out."""
    if heldout is not None:
        return data, heldout
    training, heldout = (dataclasses.replace(data, share=share) for share in ((0.0, 1 - HELDOUT), (1 - HELDOUT, 1.0)))
    for part in (training, heldout):
        try:
            part.read()
        except BertJaxError as error:
            if "share=" not in str(error):
                raise
            raise BertJaxError(f"{data.path}: too few rows to hold some out: name another file (--heldout)") from None
    return training, heldout


def _values(path: str, rows: Rows) -> np.ndarray:
    try:
        values = np.array([float(label) for label in rows.labels])
    except ValueError as error:
        raise BertJaxError(f"{path}: a regression needs numbers, and {error}") from None
    if not np.isfinite(values).all() or values.std() == 0:
        wrong = "one value alone: there is nothing to learn" if np.isfinite(values).all() else "values that are not finite"
        raise BertJaxError(f"{path}: the labels have {wrong}")
    return values
