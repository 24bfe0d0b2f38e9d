"""What all tasks on sentences and pairs have in common: an encoder with a head on its pooled state, and labelled tables."""

import dataclasses
import functools
import hashlib
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.task import Batch, Ratio
from bert_jax.tasks.batches import Encoded, EvalBatches, TrainBatches, encode
from bert_jax.tasks.tables import Rows, Table
from bert_jax.tokenizers import Tokenizer
from bert_jax.warm_start import save_beside, warm_start


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Fields of every task on sentences.

    Attributes:
      encoder: the model, its heads ``pooler`` and ``classifier``. init: the checkpoint that is fine-tuned, any that
        :func:`bert_jax.load` takes, with its tokenizer.
      data, heldout: the tables to train and to evaluate on.
      lengths: to which batches are padded; longer examples are cut.
    """

    encoder: EncoderConfig
    init: str
    data: Table
    heldout: Table
    lengths: tuple[int, ...] = (32, 64, 128)

    def __post_init__(self):
        if not self.lengths or max(self.lengths) > self.encoder.max_length or min(self.lengths) < 1:
            raise BertJaxError(f"task.lengths {self.lengths}: from 1 to the position table, {self.encoder.max_length}")
        if {"pooler", "classifier"} != set(self.encoder.with_heads):
            raise BertJaxError("task.encoder.with_heads must be pooler and classifier")


def finetuned_encoder(encoder: EncoderConfig, labels: tuple[str, ...], **changes) -> EncoderConfig:
    """A pre-trained encoder with a new classifier over ``labels`` in place of its other heads; further fields as given."""
    return dataclasses.replace(encoder, with_heads=("pooler", "classifier"), labels=labels, **changes)


class SentenceTask:
    """The methods of :class:`bert_jax.task.Task` without the loss. Subclasses give :meth:`numbers` and ``loss``."""

    def __init__(self, config: Sentences, model: Model | None = None):
        """``model``: what ``config.init`` names, where it is loaded already."""
        self.config = config
        self._model = model if model is not None else load(config.init)
        if self._model.tokenizer is None:
            raise BertJaxError(f"{config.init} has no tokenizer beside its weights, and text needs one")

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    def numbers(self, rows: Rows, table: Table) -> np.ndarray:
        """Labels as numbers [n]: int32 classes or float32 values."""
        raise NotImplementedError

    @functools.cached_property
    def _training(self) -> Encoded:
        return self._encoded(self.config.data)

    @functools.cached_property
    def _evaluation(self) -> Encoded:
        return self._encoded(self.config.heldout)

    def _encoded(self, table: Table) -> Encoded:
        rows = table.read()
        return encode(self.tokenizer, rows.texts, self.numbers(rows, table), max(self.config.lengths))

    def init(self, key: Key[Array, ""]) -> api.Params:
        return api.init(self.config.encoder, key)

    def start(self, key: Key[Array, ""]) -> api.Params:
        return warm_start(self._model, self.config.init, self.config.encoder, self.init, key, None)

    def logical_axes(self) -> api.Params:
        return api.logical_axes(self.config.encoder)

    def identity(self) -> dict[str, str]:
        digest = hashlib.blake2b(digest_size=16)
        for table in (self.config.data, self.config.heldout):
            digest.update(Path(table.path).read_bytes())
        return {"tokenizer": self.tokenizer.hash, "data": digest.hexdigest()}

    def save_assets(self, workdir: Path) -> None:
        save_beside(workdir, self.tokenizer)

    def corrupt(self, batch: Batch, key: Key[Array, ""], step: Array | None) -> Batch:
        return batch

    def logits(self, params: api.Params, batch: Batch, key: Key[Array, ""] | None) -> Array:
        """[B, C], float32."""
        return api.apply(params, self.config.encoder, batch, key=key).logits["classifier"]

    def tokens(self, batch: Batch) -> Ratio:
        """The throughput metric of every task."""
        return Ratio(batch["attention_mask"].sum(dtype="float32"), np.float32(len(batch["input_ids"])))

    def train_batches(self, batch_size: int, seed: int, rows: np.ndarray | None = None) -> TrainBatches:
        return TrainBatches(self._training, self.config.lengths, batch_size, rows, self.tokenizer.pad_id, seed)

    def eval_batches(self, batch_size: int, limit: int | None, rows: np.ndarray | None = None) -> Collection[dict]:
        return EvalBatches(self._evaluation, self.config.lengths, batch_size, rows, self.tokenizer.pad_id, limit)

    def predict(self, params: api.Params, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Logits [n, C] and labels [n] of the held-out table, in its order."""
        batches = self.eval_batches(batch_size, None)
        run = jax.jit(lambda params, batch: self.logits(params, batch, None))
        made = [np.asarray(run(params, {k: v for k, v in batch.items() if k != "label"})) for batch in batches]
        count = len(batches.order)
        logits = np.zeros((count, made[0].shape[1]), np.float32)
        logits[batches.order] = np.concatenate(made)[:count]
        return logits, self._evaluation.labels
