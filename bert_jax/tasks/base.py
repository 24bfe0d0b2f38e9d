"""What all kinds of fine-tuning have in common: an encoder that was pre-trained, a head on it, and labelled examples."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig, Head
from bert_jax.task import Batch, Losses, Objective, Ratio, plain_gradient
from bert_jax.tasks.batches import IGNORED, Encoded, EvalBatches, TrainBatches, WrongText
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.freelb import FreeLB
from bert_jax.tasks.mixout import Mixout, mixed_part
from bert_jax.tasks.owners import owners
from bert_jax.tasks.shared_rows import batches_for_training
from bert_jax.tasks.smart import Smart
from bert_jax.tasks.tables import Rows, Source, Table, in_file
from bert_jax.tokenizers import Tokenizer
from bert_jax.warm_start import reinitialised, save_beside, warm_start

logger = logging.getLogger("bert_jax")

Texts = Sequence[tuple[str, ...]]
Outputs = dict[str, list[np.ndarray]]  # by name, a row each

COARSE = 1e-3  # what changes word embeddings in bfloat16, more or less: theirs are some hundredths, to eight bits


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """Fields of every kind of fine-tuning.

    Attributes:
      encoder: the model; its heads are those of the kind. init: the checkpoint that is fine-tuned, any that
        :func:`bert_jax.load` takes, with its tokenizer.
      data, heldout: what to train and to evaluate on.
      lengths: the longest is that of a sequence. One alone: batches of training have rows that several examples share, of one
        shape or two (:mod:`bert_jax.tasks.shared_rows`), where ``packing`` is on, the kind ``packs``, and most are not too long
        to share. Else up to it at most ``shapes`` lengths are chosen from the data, no more than bring padding below a tenth of
        all positions, and a step is compiled for each, as in evaluation always. Several: batches are padded to these.
      group_by_length: whether batches of training hold examples of about one length, where each has a row of its own: little
        padding. False: they come at random, as in most published recipes, with more of it.
      reinitialise: how many of the top layers begin anew, and with them the pooler (Zhang et al. 2021);
        0: none, nor the pooler.
      tricks: what else changes the loss or its gradient in training, one of each kind at most.
    """

    encoder: EncoderConfig
    init: str
    data: Table | Named
    heldout: Table | Named
    lengths: tuple[int, ...] = (128,)
    shapes: int = 16
    packing: bool = True
    group_by_length: bool = True
    reinitialise: int = 0
    tricks: tuple[FreeLB | Smart | Mixout, ...] = ()

    needs: ClassVar[tuple[Head, ...]] = ("pooler", "classifier")  # heads of this kind
    packs: ClassVar[bool] = False  # whether its losses are those of tokens, or of whole examples, side by side in a row as well

    def __post_init__(self):
        if not self.lengths or max(self.lengths) > self.encoder.max_length or min(self.lengths) < 1:
            raise BertJaxError(f"task.lengths {self.lengths}: from 1 to the position table, {self.encoder.max_length}")
        if self.shapes < 1:
            raise BertJaxError(f"task.shapes is {self.shapes}: it must be at least 1")
        for source in (self.data, self.heldout):
            if isinstance(source, Named) and source.dataset.kind not in [kind.__name__ for kind in type(self).__mro__]:
                raise BertJaxError(f"{source.name} is for {source.dataset.kind}, not for {type(self).__name__}")
        if not 0 <= self.reinitialise <= self.encoder.depth:
            raise BertJaxError(f"task.reinitialise is {self.reinitialise}: from 0 to the {self.encoder.depth} layers")
        if self.reinitialise and self.encoder.share != "none":
            raise BertJaxError(f"task.reinitialise: layers share parameters here (share {self.encoder.share!r}), leave it at 0")
        if self.encoder.lora_rank and self.reinitialise:
            raise BertJaxError("task.reinitialise: with task.encoder.lora_rank new layers stay untrained, leave one out")
        if self.encoder.lora_rank and any(isinstance(trick, Mixout) for trick in self.tricks):
            raise BertJaxError("Mixout: with task.encoder.lora_rank the encoder's maps stay what they are, leave one out")
        if len({type(trick) for trick in self.tricks}) < len(self.tricks):
            raise BertJaxError(f"task.tricks has one twice: {', '.join(type(trick).__name__ for trick in self.tricks)}")
        for trick in self.tricks:
            if isinstance(trick, Smart) and self.encoder.compute_dtype == "bfloat16" and trick.radius < COARSE:
                raise BertJaxError(
                    f"Smart.radius is {trick.radius:g}, and task.encoder.compute_dtype bfloat16, which rounds that away: set "
                    f"float32, or a radius of at least {COARSE:g}"
                )
        if set(self.needs) != set(self.encoder.with_heads):
            raise BertJaxError(f"task.encoder.with_heads must be {' and '.join(self.needs)}")

ANOTHER = 2**31  # folded into a key: no number of a split, which numbers from 0


def finetuned_encoder(
    encoder: EncoderConfig, labels: tuple[str, ...], heads: tuple[Head, ...] = ("pooler", "classifier"), **changes: Any
) -> EncoderConfig:
    """A pre-trained encoder with new heads over ``labels`` in place of its other ones; further fields as given."""
    return dataclasses.replace(encoder, with_heads=heads, labels=labels, **changes)


class Predictor:
    """How a fine-tuned model answers about new text; every kind of task has one. Subclasses give the three methods.

    Attributes:
      config: the encoder. tokenizer: its. length: the longest sequence. texts: how many an example has that it was trained on,
        of kinds that take one or two; None: that is not known.
      output_per: what :meth:`outputs` has, of rows that examples share, for each of them: something for each of the P examples
        [R, P, ...], or for each of the L tokens [R, L, ...], as it would be in a row of its own; None: examples share no rows.
      taken: how many texts an example has, at least and at most, and what they are called. alike: whether all have as many.
      rows_each: rows of the encoder that an example takes, about.
      kept: names of attributes that are kept beside the weights of an exported model.
    """

    texts: int | None = None
    output_per: ClassVar[Literal["example", "token"] | None] = None
    taken: ClassVar[tuple[int, float, str]]
    alike: ClassVar[bool] = False
    rows_each: ClassVar[int] = 1
    kept: ClassVar[tuple[str, ...]] = ("length",)

    def __init__(self, config: EncoderConfig, tokenizer: Tokenizer, length: int):
        self.config, self.tokenizer, self.length = config, tokenizer, length

    @functools.cached_property
    def run(self) -> Callable[[api.Params, Batch], dict[str, Array]]:
        """:meth:`outputs` of what the encoder makes of a batch: compiled once for each shape, as long as this object lives."""
        return jax.jit(lambda params, batch: self.outputs(api.apply(params, self.config, self.inputs(batch)), batch))

    def encode(self, texts: Texts) -> Encoded:
        """Rows for the encoder; what a tuple of texts holds is the kind's matter. Where texts may need several rows, ``item``
        int32 says whose each row is. Of one that cannot be encoded a :class:`WrongText` says which."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> Batch:
        """What the encoder is given of a batch, rows [B, L]: all of it, unless examples are several rows side by side."""
        return batch

    def outputs(self, found: api.Outputs, batch: Batch) -> dict[str, Array]:
        """Arrays [B, ...], computed on the device, that :meth:`answers` reads."""
        raise NotImplementedError

    def answers(self, texts: Texts, encoded: Encoded, outputs: Outputs) -> list[dict[str, Any]]:
        """For each tuple of texts the columns of its prediction, from the outputs of all rows of ``encoded`` in their order."""
        raise NotImplementedError


class FinetuningTask:
    """A :class:`bert_jax.task.Task`. Subclasses give ``predictor_type``, :meth:`labelled`, :meth:`losses`, :meth:`compared` and
    :meth:`score`. Copies of parameters that tricks need lie under ``anchor``, by name of the trick; no optimiser moves them."""

    predictor_type: ClassVar[type[Predictor]]

    def __init__(self, config: Finetuning, model: Model | None = None):
        """``model``: what ``config.init`` names, where it is loaded already."""
        self.config = config
        self._model = model if model is not None else load(config.init)
        if self._model.tokenizer is None:
            raise BertJaxError(f"{config.init} has no tokenizer beside its weights, and text needs one")
        self.predictor = self.predictor_type(config.encoder, self._model.tokenizer, max(config.lengths))
        self._freelb, self._smart, self._mixout = (
            next((trick for trick in config.tricks if isinstance(trick, kind)), None) for kind in (FreeLB, Smart, Mixout)
        )
        self._averages = bool(self._smart and self._smart.proximity)

    def labelled(self, encoded: Encoded, rows: Rows, table: Table) -> Encoded:
        """``encoded`` with labels: as ``rows`` [n] int32 (-1: none) or float32 (NaN: none), or for each token.

        Raises:
          BertJaxError: labels of ``table`` that are wrong.
        """
        raise NotImplementedError

    def losses(self, found: api.Outputs, batch: Batch) -> Losses:
        """Terms and metrics of a batch from what the model made of it; rows and tokens without a label weigh nothing."""
        raise NotImplementedError

    def compared(self, found: api.Outputs, batch: Batch) -> tuple[Array, Array]:
        """Logits [..., C] of each distribution that the loss is about, and their weights [...] there; values have C = 1."""
        raise NotImplementedError

    def score(self, rows: Rows, answers: list[dict[str, Any]], outputs: Outputs) -> dict[str, float]:
        """Scores of the held-out ``rows``, or of some of them: their answers, and the outputs behind these."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    @functools.cached_property
    def training(self) -> Encoded:
        """The examples to train on."""
        return self._encoded(_labelled_rows(self.config.data), self.config.data)

    @functools.cached_property
    def heldout(self) -> Rows:
        """What to evaluate on, as it is written."""
        return _labelled_rows(self.config.heldout)

    @functools.cached_property
    def evaluation(self) -> Encoded:
        """The same, ready for batches."""
        return self._encoded(self.heldout, self.config.heldout)

    def _encoded(self, rows: Rows, source: Source) -> Encoded:
        try:
            encoded = self.predictor.encode(rows.texts)
        except WrongText as error:
            (number,) = in_file(source, rows, [error.row + 1])
            raise BertJaxError(f"{source.path}: row {number}: {error.problem}") from None
        return self.labelled(encoded, rows, source)

    def init(self, key: Key[Array, ""]) -> api.Params:
        return self._with_anchors(api.init(self.config.encoder, key), ())

    def start(self, key: Key[Array, ""]) -> api.Params:
        cls = self.tokenizer.cls_id
        if "pooler" in self.config.needs and not np.array_equal(self.tokenizer.build([IGNORED])[0][:1], [cls]):
            logger.warning("%s: a text does not begin with %s, and the pooler reads the first token, whichever it is",
                           self.config.init, self.tokenizer.pieces[cls])
        init = functools.partial(api.init, self.config.encoder)
        params = warm_start(self._model, self.config.init, self.config.encoder, init, key, None)
        new = [head for head in self.config.encoder.with_heads if self._is_new(head, params[head])]
        again = jax.random.fold_in(key, ANOTHER)  # with that of its pre-training it would be given what that began with
        return self._with_anchors(reinitialised(params, self.config.reinitialise, self.config.encoder, init, again), new)

    def _is_new(self, head: str, params: api.Params) -> bool:
        theirs = self._model.params.get(head)
        if theirs is None:
            return True
        ours, theirs = mixed_part(params), mixed_part(theirs)
        return not jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))

    def _with_anchors(self, params: api.Params, new: Collection[str]) -> api.Params:
        """Parameters with the copies that tricks need. ``new``: heads that the checkpoint lacks."""
        anchors = {}
        if self._mixout:
            anchors["mixout"] = self._mixout.anchor(params, new)
        if self._averages:
            anchors["smart"] = jax.tree.map(lambda w: w.copy(), params)
        return params | ({"anchor": anchors} if anchors else {})

    def logical_axes(self) -> api.Params:
        axes, anchors = api.logical_axes(self.config.encoder), {}
        if self._mixout:
            anchors["mixout"] = mixed_part(axes)
        if self._averages:
            anchors["smart"] = axes
        return axes | ({"anchor": anchors} if anchors else {})

    def identity(self) -> dict[str, str]:
        digest = hashlib.blake2b(digest_size=16)
        for table in (self.config.data, self.config.heldout):
            path = Path(table.path)
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                digest.update(file.read_bytes() if file.is_file() else b"")
        return {"tokenizer": self.tokenizer.hash, "data": digest.hexdigest()}

    def save_assets(self, workdir: Path) -> None:
        save_beside(workdir, self.tokenizer)

    def corrupt(self, batch: Batch, key: Key[Array, ""], step: Array | None) -> Batch:
        return batch

    def loss(self, params: api.Params, batch: Batch, key: Key[Array, ""] | None) -> Losses:
        params, anchors = without_anchors(params), params.get("anchor", {})
        if self._mixout and key is not None:
            params = self._mixout.mixed(params, anchors["mixout"], api.logical_axes(self.config.encoder), key)
        found = self._apply(params, batch, key)
        losses = self.losses(found, batch)
        if self._smart and key is not None:
            losses = self._smoothed(losses, found, params, anchors.get("smart"), batch, key)
        # What is a row of the encoder has its mask; a question with several of them counts as one example.
        mask = batch["attention_mask"]
        tokens = Ratio(mask.sum(dtype="float32"), (batch["example"] >= 0).sum(dtype="float32"))
        losses = losses._replace(metrics={**losses.metrics, "tokens": tokens})
        if key is not None:
            padding = Ratio(np.float32(mask.size) - tokens.sum, np.float32(mask.size))
            return losses._replace(metrics={**losses.metrics, "padding": padding})
        return losses._replace(outputs=self.predictor.outputs(found, batch) | {"example": batch["example"]})

    def _apply(self, params: api.Params, batch: Batch, key: Key[Array, ""] | None) -> api.Outputs:
        """What the model makes of a batch. Its ``perturbation`` [..., L, E] has the leading axes of the batch's ids."""
        inputs = self.predictor.inputs(batch)
        if "perturbation" in batch:
            perturbation = batch["perturbation"]
            inputs = inputs | {"perturbation": perturbation.reshape(*inputs["input_ids"].shape, perturbation.shape[-1])}
        return api.apply(params, self.config.encoder, inputs, key=key)

    def _smoothed(
        self, losses: Losses, found: api.Outputs, params: api.Params, average: api.Params | None, batch: Batch,
        key: Key[Array, ""],
    ) -> Losses:
        """``losses`` with the terms of SMART. ``found``: what the model made of ``batch`` with ``params``."""
        whose = owners(batch)
        start = batch.get("perturbation", jnp.zeros((*whose.mask.shape, self.config.encoder.embedding_width), jnp.float32))

        def logits(params: api.Params, perturbation: Array) -> Array:
            return self.compared(self._apply(params, batch | {"perturbation": perturbation}, key), batch)[0]

        clean, weights = self.compared(found, batch)
        return self._smart.add_to(losses, clean, weights, logits, params, average, start, whose, key)

    def gradient(self, objective: Objective, params: api.Params, batch: Batch, key: Key[Array, ""]) -> tuple:
        if self._freelb:
            return self._freelb.gradient(objective, params, batch, key, self.config.encoder.embedding_width)
        return plain_gradient(objective, params, batch, key)

    def follow(self, params: api.Params, step: Array, steps: int | None) -> api.Params:
        if not self._averages:
            return params
        average = self._smart.follow(params["anchor"]["smart"], without_anchors(params), step, steps)
        return params | {"anchor": params["anchor"] | {"smart": average}}

    def finished(self, params: api.Params) -> api.Params:
        """What is exported of trained parameters: all that the encoder and its heads need, and no more."""
        return without_anchors(params)

    def scores(self, outputs: Outputs) -> dict[str, float]:
        example = np.array(outputs["example"])
        order = np.argsort(example, kind="stable")[(example < 0).sum() :]  # without the empty rows
        encoded = self.evaluation.subset(example[order])
        sorted_outputs = {name: [rows[k] for k in order] for name, rows in outputs.items() if name != "example"}
        items = np.unique(self.evaluation.item[example[order]])
        rows = Rows([self.heldout.texts[k] for k in items], [self.heldout.labels[k] for k in items])
        return self.score(rows, self.predictor.answers(rows.texts, encoded, sorted_outputs), sorted_outputs)

    def train_batches(
        self, batch_size: int, seed: int | tuple[int, ...], rows: np.ndarray | None = None, multiple: int = 1
    ) -> TrainBatches:
        config, pad_id = self.config, self.tokenizer.pad_id
        if config.packing and config.packs and len(config.lengths) == 1:
            return batches_for_training(
                self.training, batch_size, rows, pad_id, seed, config.lengths[0], config.shapes, multiple,
                config.group_by_length,
            )
        return TrainBatches(
            self.training, config.lengths, batch_size, rows, pad_id, seed, config.shapes, config.group_by_length
        )

    def eval_batches(self, batch_size: int, limit: int | None, rows: np.ndarray | None = None) -> Collection[dict]:
        return EvalBatches(
            self.evaluation, self.config.lengths, batch_size, rows, self.tokenizer.pad_id, limit, self.config.shapes
        )


def without_anchors(params: api.Params) -> api.Params:
    """Parameters without the copies that tricks keep of them."""
    return {name: part for name, part in params.items() if name != "anchor"}


def _labelled_rows(source: Source) -> Rows:
    rows = source.read()
    if not rows.labels:
        raise BertJaxError(f"{source.path} has no labels: training and evaluation need them")
    return rows
