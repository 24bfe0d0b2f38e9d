"""The pre-training task: an encoder, a mixture of objectives, and sentence pairs from a token store."""

import collections
import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from bert_jax import tokenizers
from bert_jax.data.loader import TrainBatches, heldout_batches, train_batches
from bert_jax.data.pairs import PairSpec, batch_layout
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.model import load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import AnyObjective
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.task import Batch, Losses, Ratio

log = logging.getLogger("bert_jax")

# Fields of an encoder in which a checkpoint may differ from the run that starts from it: how it is trained and computed.
_MAY_DIFFER = {"dropout", "attention_dropout", "head_dropout", "init_std", "compute_dtype", "remat", "unroll", "with_heads",
               "labels", "vocab_multiple"}


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Configuration of the task.

    Attributes:
      encoder: the model. objectives: their losses are added. examples: how sequences are cut from documents.
      init: a checkpoint to start from, any that :func:`bert_jax.load` takes; heads that it lacks are new. None: from scratch.
    """

    encoder: EncoderConfig
    objectives: tuple[AnyObjective, ...] = (MaskedLM(),)
    examples: PairSpec = PairSpec()
    init: str | None = None

    def __post_init__(self):
        names = [objective.name for objective in self.objectives]
        if not names or len(set(names)) < len(names):
            raise BertJaxError(f"task.objectives {names}: at least one, and each kind once")
        provided = {"input_ids", "attention_mask", "word_starts"}
        provided |= {"nsp": {"next_sentence_label"}, "sop": {"sentence_order_label"}}.get(self.examples.pairs, set())
        for objective in self.objectives:
            for key in objective.needs:
                if key not in provided:
                    raise BertJaxError(
                        f"objective {type(objective).__name__} needs {key}, which task.examples.pairs="
                        f"{self.examples.pairs!r} does not give; set it to {objective.name!r}"
                    )
            for head in objective.heads:
                if head not in self.encoder.with_heads:
                    raise BertJaxError(f"objective {type(objective).__name__} needs {head!r} in task.encoder.with_heads")
        if self.examples.length > self.encoder.max_length:
            raise BertJaxError(
                f"task.examples.length {self.examples.length} exceeds the position table, "
                f"task.encoder.max_length {self.encoder.max_length}"
            )


class PretrainingTask:
    """:class:`Pretraining` on a token store (None: to plan it without data); :class:`bert_jax.task.Task` has the methods."""

    def __init__(self, config: Pretraining, store: TokenStore | None):
        self.config = config
        self._store = store
        if store is None:  # enough for shapes and compiled programs, which is all that a plan needs
            self._pieces = Pieces(config.encoder.vocab_size, 4, (0, 1, 2, 3, 4))
            return
        tokenizer = store.tokenizer
        if tokenizer.vocab_size > config.encoder.vocab_size:
            raise BertJaxError(
                f"the tokenizer of the data has {tokenizer.vocab_size} pieces, the model a vocabulary of "
                f"{config.encoder.vocab_size}: set task.encoder.vocab_size={tokenizer.vocab_size}"
            )
        self._pieces = Pieces(tokenizer.vocab_size, tokenizer.mask_id, tuple(tokenizer.special_ids))

    def init(self, key: Key[Array, ""]) -> api.Params:
        return api.init(self.config.encoder, key)

    def start(self) -> api.Params | None:
        """The parameters of ``task.init``.

        Raises:
          BertJaxError: it cannot be read, has another tokenizer than the data, or is another encoder than the task's.
        """
        if self.config.init is None:
            return None
        model, encoder = load(self.config.init), self.config.encoder
        if model.tokenizer is not None and model.tokenizer.hash != self._store.tokenizer.hash:
            raise BertJaxError(
                f"{self.config.init} has another tokenizer than the data: prepare the text with --tokenizer {self.config.init}"
            )
        theirs, ours = (dataclasses.asdict(config) for config in (model.config, encoder))
        differ = [name for name in ours if name not in _MAY_DIFFER and ours[name] != theirs[name]]
        if differ:
            wanted = " ".join(f"--set task.encoder.{name}={theirs[name]}" for name in differ)
            raise BertJaxError(f"{self.config.init} is another encoder than task.encoder; to start from it: {wanted}")
        fresh = set(encoder.with_heads) - model.params.keys()
        unused = model.params.keys() - {*encoder.with_heads, "embeddings", "attention", "feed_forward"}
        if fresh:
            log.warning("%s has no head %s: it starts untrained", self.config.init, ", ".join(sorted(fresh)))
        if unused:
            log.warning("%s has a head %s that is not trained here and left out", self.config.init, ", ".join(sorted(unused)))
        begun = api.init(encoder, jax.random.key(0)) if fresh else {}
        params = {name: part for name, part in {**begun, **model.params}.items() if name not in unused}
        for part, leaf in (("embeddings", "token"), ("mlm", "bias")):  # the rows that only pad the vocabulary
            if part in model.params and part not in unused:
                table = np.asarray(model.params[part][leaf])[: encoder.vocab_size]
                extra = encoder.padded_vocab_size - encoder.vocab_size
                params[part] = params[part] | {leaf: np.pad(table, [(0, extra)] + [(0, 0)] * (table.ndim - 1))}
        return params

    def logical_axes(self) -> api.Params:
        return api.logical_axes(self.config.encoder)

    def identity(self) -> dict[str, str]:
        manifest = hashlib.blake2b(self._store.manifest.to_json().encode(), digest_size=16).hexdigest()
        return {"tokenizer": self._store.tokenizer.hash, "data": manifest}

    def save_assets(self, workdir: Path) -> None:
        target = workdir / "tokenizer"
        if target.exists():
            there = tokenizers.load(target)
            if there.hash != self._store.tokenizer.hash:
                raise BertJaxError(
                    f"{workdir} was trained with tokenizer {there.hash}, the data has {self._store.tokenizer.hash}: use the "
                    "same one, or another --workdir"
                )
        else:
            partial = workdir / "tokenizer.partial"
            shutil.rmtree(partial, ignore_errors=True)
            self._store.tokenizer.save(partial)
            partial.rename(target)

    def corrupt(self, batch: Batch, key: Key[Array, ""]) -> Batch:
        for objective, objective_key in zip(
            self.config.objectives, jax.random.split(key, len(self.config.objectives)), strict=True
        ):
            batch = objective.corrupt(batch, objective_key, self._pieces)
        return batch

    def loss(self, params: api.Params, batch: Batch, key: Key[Array, ""] | None) -> Losses:
        outputs = api.apply(params, self.config.encoder, batch, key=key)
        tokens = Ratio(batch["attention_mask"].sum(dtype="float32"), np.float32(len(batch["input_ids"])))
        terms, metrics = {}, {"tokens": tokens}
        for objective in self.config.objectives:
            for name, ratio in objective.loss(outputs, batch).items():
                (terms if name == "loss" else metrics)[f"{objective.name}_{name}"] = ratio
        return Losses(terms, metrics)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What :meth:`train_batches` will yield for a global batch; needs no store."""
        layout = batch_layout(self.config.examples, batch_size)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in layout.items()}

    def train_batches(self, batch_size: int, seed: int, rows: np.ndarray | None = None) -> TrainBatches:
        return train_batches(
            self._store.split("train"), self.config.examples, batch_size=batch_size, seed=seed, rows=rows
        )

    def eval_batches(self, batch_size: int, limit: int | None, rows: np.ndarray | None = None) -> Collection[dict]:
        if "heldout" not in self._store.splits:
            return ()
        return heldout_batches(
            self._store.split("heldout"), self.config.examples, batch_size=batch_size,
            limit=None if limit is None else limit * batch_size, rows=rows,
        )


def majority_baseline(batches: Iterable[Batch]) -> float:
    """Accuracy of always predicting the most frequent label of the masked positions of corrupted ``batches``."""
    counts: collections.Counter[int] = collections.Counter()
    for batch in batches:
        labels = np.asarray(batch["masked_labels"])[np.asarray(batch["masked_weights"]) > 0]
        counts.update(dict(zip(*(part.tolist() for part in np.unique(labels, return_counts=True)), strict=True)))
    return max(counts.values()) / counts.total() if counts else 0.0
