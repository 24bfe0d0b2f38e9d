"""An experiment as a value: everything that decides a run, in frozen dataclasses."""

import dataclasses
from typing import Literal

from bert_jax.errors import BertJaxError
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives.permutation import PermutationLM
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.parallel.mesh import MeshConfig
from bert_jax.task import SMALLER_IS_BETTER
from bert_jax.tasks import AnyFinetuning
from bert_jax.tasks.base import Finetuning
from bert_jax.tasks.mixout import Mixout
from bert_jax.training.optimizer import AdamW, Lamb


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at a time, how often what.

    Attributes:
      steps: optimiser updates in all. batch_size: sequences per update over all devices and micro-batches.
      accumulate: micro-batches per update; their gradients are summed before dividing, so the result is that of one batch.
      eval_every, save_every: in steps; both also happen at the end. log_every: steps per line of the record.
      eval_batches: held-out batches per evaluation, None for all. eval_batch_size: None for ``batch_size``, in micro-batches.
      reduce_dtype: in which the gradients of matrices and tables are summed over devices; biases and layer norms always in
        float32. bfloat16 halves what devices exchange for gradients, and rounds the embedding tables, which enter the model
        as float32 otherwise; matrices are rounded in the products anyway. Moments and parameters stay float32.
      best: a value of the held-out evaluation, such as classifier_accuracy (with ``-`` in front: the smaller, the better): the
        parameters of the best evaluation are kept and returned; None: the last ones. patience: evaluations without a better
        one after which the run ends. Whoever chooses by held-out data needs other data to report on.
      keep: checkpoints retained. seed: of parameters, example order, masks and dropout.
    """

    steps: int = 100_000
    batch_size: int = 256
    accumulate: int = 1
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    eval_every: int = 1_000
    save_every: int = 1_000
    log_every: int = 10
    eval_batches: int | None = 50
    eval_batch_size: int | None = None
    best: str | None = None
    patience: int | None = None
    keep: int = 3
    seed: int = 0

    def __post_init__(self):
        for field in ("steps", "batch_size", "accumulate", "eval_every", "save_every", "log_every", "keep"):
            if getattr(self, field) < 1:
                raise BertJaxError(f"train.{field} is {getattr(self, field)}: it must be at least 1")
        for field in ("eval_batches", "eval_batch_size"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise BertJaxError(f"train.{field} is {value}: it must be at least 1, or null")
        if self.patience is not None and (self.patience < 1 or not self.best):
            raise BertJaxError(f"train.patience is {self.patience}: at least 1, and train.best must name what is watched")
        if self.batch_size % self.accumulate:
            raise BertJaxError(f"train.batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")

    @property
    def eval_size(self) -> int:
        """Sequences of an evaluation's batch; where nothing is said those of a micro-batch, for which there is memory."""
        return self.eval_batch_size or self.batch_size // self.accumulate

    @property
    def eval_limit(self) -> int | None:
        """Batches of an evaluation: ``eval_batches``, of ``batch_size`` where no other size is said. None: all."""
        return self.eval_batches and self.eval_batches * (1 if self.eval_batch_size else self.accumulate)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration file returns. The same value lies as JSON in the work directory beside the checkpoints."""

    task: Pretraining | AnyFinetuning
    optimizer: AdamW | Lamb = AdamW()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        encoder, optimizer = self.task.encoder, self.optimizer
        if encoder.share != "none" and (optimizer.layer_decay is not None or optimizer.unfreeze_every is not None):
            raise BertJaxError(
                f"task.encoder.share is {encoder.share!r}: layers that share parameters cannot have different learning rates, "
                "leave optimizer.layer_decay and unfreeze_every out"
            )
        if encoder.lora_rank and optimizer.freeze_encoder:
            raise BertJaxError("optimizer.freeze_encoder with task.encoder.lora_rank: choose one, LoRA trains the encoder")
        if self.train.reduce_dtype == "bfloat16" and self.task.encoder.compute_dtype != "bfloat16":
            raise BertJaxError(
                f"train.reduce_dtype is bfloat16 with task.encoder.compute_dtype={self.task.encoder.compute_dtype}: it would "
                "round what is computed exactly; set both to bfloat16, or reduce_dtype to float32"
            )
        if isinstance(self.task, Finetuning):
            mixes = any(isinstance(trick, Mixout) for trick in self.task.tricks)
            if optimizer.freeze_encoder and (mixes or self.task.reinitialise):
                raise BertJaxError("optimizer.freeze_encoder: its layers stay, leave task.reinitialise and Mixout out")
            if mixes and self.train.reduce_dtype == "bfloat16":
                raise BertJaxError("train.reduce_dtype bfloat16 rounds away what Mixout makes larger: set float32")

    def check_beginning(self) -> None:
        """What would not do what is meant, and is refused where a run begins; one that has begun so may go on.

        Raises:
          BertJaxError: ``train.best`` is a loss, of which the largest would be the best; layers would be unfrozen after the
            end; fine-tuning would leave ``combine`` or ``lora_alpha`` without effect; or LAMB, whose steps are as long as the
            weights whatever the gradient, would move what has none.
        """
        encoder, optimizer, best = self.task.encoder, self.optimizer, self.train.best or ""
        if best in SMALLER_IS_BETTER or (best.endswith("_loss") and not best.startswith("-")):
            raise BertJaxError(f"train.best is {best!r}, of which the largest would be kept: write -{best}")
        if optimizer.unfreeze_every and (thawed := optimizer.unfreeze_every * (encoder.depth + 1)) >= self.train.steps:
            raise BertJaxError(
                f"optimizer.unfreeze_every is {optimizer.unfreeze_every}: all of {encoder.depth} layers and the embeddings "
                f"would train after {thawed} updates, train.steps is {self.train.steps}: lower the one or raise the other"
            )
        if isinstance(self.task, Finetuning):
            if encoder.combine == "concatenate" and len(encoder.read_layers) < 2:
                raise BertJaxError("task.encoder.combine=concatenate has nothing to combine: name two or more layers in "
                                   "task.encoder.read_layers")
            if encoder.lora_alpha != EncoderConfig.lora_alpha and not encoder.lora_rank:
                raise BertJaxError("task.encoder.lora_alpha does nothing without task.encoder.lora_rank: set that too")
        elif isinstance(optimizer, Lamb):
            self._check_lamb()

    def _check_lamb(self) -> None:
        task, encoder = self.task, self.task.encoder
        trained = {head for objective in task.all_objectives.values() for head in objective.heads}
        heads = [head for head in encoder.with_heads if head not in trained]
        idle = [f"{', '.join(heads)} of task.encoder.with_heads"] if heads else []
        queries = [encoder.positions != "relative" or any(isinstance(one, PermutationLM) for one in turn.objectives)
                   for turn in task.all_turns]
        if not any(queries):
            idle.append("the query vector of task.encoder.positions relative")
        if idle and self.optimizer.weight_decay:
            raise BertJaxError(
                f"no objective trains {', '.join(idle)}, and LAMB lets what has no gradient decay to nothing: leave it out "
                "there, give it an objective, or take AdamW"
            )
        each = [{head for objective in turn.objectives for head in (*objective.heads, *objective.own_heads(encoder))}
                for turn in task.all_turns]
        resting = sorted(set.union(*each) - set.intersection(*each))
        if any(queries) and not all(queries):
            resting.append("the query vector of relative positions")
        if resting:
            raise BertJaxError(
                f"not every turn trains {', '.join(resting)}, and LAMB would go on moving them by whole steps meanwhile: take "
                "AdamW, or the same objectives in all of task.turns"
            )
