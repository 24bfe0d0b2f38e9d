"""The pre-training task: an encoder, a mixture of objectives, and examples from a token store."""

import collections
import dataclasses
import json
import logging
import math
from collections.abc import Collection, Iterable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from bert_jax import functional
from bert_jax.config import from_json
from bert_jax.data import turns
from bert_jax.data.examples import AnyExamples, examples_that_give
from bert_jax.data.loader import heldout_batches, train_batches
from bert_jax.data.pairs import PairSpec
from bert_jax.data.rows import CHANNEL_OF
from bert_jax.data.store import TokenStore
from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations
from bert_jax.errors import BertJaxError
from bert_jax.model import EXPERIMENT, Model, find, load, load_run
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import AnyObjective
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.mlm import MaskedLM
from bert_jax.task import Batch, Examples, Losses, Ratio, plain_gradient
from bert_jax.task import Objective as Scalar
from bert_jax.warm_start import save_beside, warm_start

log = logging.getLogger("bert_jax")

ROWS_OF_PADDING = 128  # published vocabularies are rounded up to multiples of 8 to 128 for the sake of devices


@dataclasses.dataclass(frozen=True)
class Turn:
    """Other objectives on other examples, which take turns with those of the task.

    Attributes:
      name: prefix of its metrics. objectives, examples: as in :class:`Pretraining`.
      share: updates of this turn for each update of the task's own objectives.
    """

    name: str
    objectives: tuple[AnyObjective, ...]
    examples: AnyExamples
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Configuration of the task.

    Attributes:
      encoder: the model. objectives: their losses are added, each with its weight. examples: how sequences are cut from
        documents. turns: what alternates with these, an update each.
      init: a checkpoint to start from, any that :func:`bert_jax.load` takes; heads that it lacks are new. None: from scratch.
    """

    encoder: EncoderConfig
    objectives: tuple[AnyObjective, ...] = (MaskedLM(),)
    examples: AnyExamples = PairSpec()
    turns: tuple[Turn, ...] = ()
    init: str | None = None

    def __post_init__(self):
        names = [turn.name for turn in self.turns]
        if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise BertJaxError(f"task.turns are named {names}: metrics' names begin with them, they must differ and be words")
        for number, turn in enumerate(self.all_turns):
            if not 0 < turn.share < math.inf:
                raise BertJaxError(f"task.turns.{number - 1}.share is {turn.share}: it must be above 0")
            _check(f"task.turns.{number - 1}" if number else "task", self.encoder, turn.objectives, turn.examples)
            for objective in turn.objectives:
                other = self.all_objectives[objective.name]
                if objective != other and _own(objective, self.encoder) != _own(other, self.encoder):
                    raise BertJaxError(
                        f"{objective} and {other} take turns, but have another head each, or another generator: an objective "
                        "has one, whoever's turn it is"
                    )

    @property
    def all_turns(self) -> tuple[Turn, ...]:
        """The task's own objectives as the first of the turns, without a name."""
        return (Turn("", self.objectives, self.examples), *self.turns)

    @property
    def all_objectives(self) -> dict[str, AnyObjective]:
        """Every objective by name, one of each name."""
        return {objective.name: objective for turn in self.all_turns for objective in turn.objectives}


def _own(objective: AnyObjective, encoder: EncoderConfig) -> tuple[api.Heads, api.Params]:
    """What an objective adds to the encoder: its heads, and the shapes of its parameters."""
    key = jax.eval_shape(jax.random.key, 0)
    return objective.own_heads(encoder), jax.eval_shape(lambda key: objective.init(encoder, key), key)


def _check(where: str, encoder: EncoderConfig, objectives: tuple[AnyObjective, ...], examples: AnyExamples) -> None:
    """Refuses objectives that do not fit their examples or the encoder."""
    names = [objective.name for objective in objectives]
    if not names or len(set(names)) < len(names):
        raise BertJaxError(f"{where}.objectives {names}: at least one, and each kind once")
    for objective in objectives:
        if examples.packing and not objective.packs:
            raise BertJaxError(
                f"{objective} does not work on rows of several examples: leave out {where}.examples.packing, or give it a "
                "turn of its own (task.turns)"
            )
        for key in objective.needs:
            if key not in examples.provides:
                raise BertJaxError(
                    f"objective {type(objective).__name__} needs {key}, which {where}.examples={examples} does not give"
                    + examples_that_give(key)
                )
        for head in objective.heads:
            if head not in encoder.with_heads:
                raise BertJaxError(f"objective {type(objective).__name__} needs {head!r} in task.encoder.with_heads")
        objective.check(encoder, examples.length)
        objective.check_examples(examples)
    if examples.length > encoder.max_length:
        raise BertJaxError(
            f"{where}.examples.length {examples.length} exceeds the position table, task.encoder.max_length "
            f"{encoder.max_length}"
        )


class PretrainingTask:
    """:class:`Pretraining` on a token store (None: to plan it without data); :class:`bert_jax.task.Task` has the methods."""

    def __init__(self, config: Pretraining, store: TokenStore | None):
        self.config = config
        self._store = store
        self._turns = config.all_turns
        if store is None:  # enough for shapes and compiled programs, which is all that a plan needs
            self._pieces = Pieces(config.encoder.vocab_size, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4))
            return
        tokenizer = store.tokenizer
        if tokenizer.vocab_size > config.encoder.vocab_size:
            raise BertJaxError(
                f"the tokenizer of the data has {tokenizer.vocab_size} pieces, the model a vocabulary of "
                f"{config.encoder.vocab_size}: set task.encoder.vocab_size={tokenizer.vocab_size}"
            )
        languages = len(store.split("train").languages)
        for turn in self._turns:
            by_language = isinstance(turn.examples, Streams | Translations) and turn.examples.language_segments
            if by_language and languages > config.encoder.segments:  # the lookup would give zeros for the others without a word
                raise BertJaxError(
                    f"segment ids are languages: the data has {languages}, the model {config.encoder.segments} segments: "
                    f"set task.encoder.segments={languages}, or language_segments=false of the examples"
                )
        ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        self._pieces = Pieces(tokenizer.vocab_size, *ids, tuple(tokenizer.special_ids))

    def init(self, key: Key[Array, ""]) -> api.Params:
        encoder, params = self.config.encoder, api.init(self.config.encoder, key)
        for number, objective in enumerate(self.config.all_objectives.values()):
            params |= objective.init(encoder, jax.random.fold_in(key, number))
        return params

    def start(self, key: Key[Array, ""]) -> api.Params | None:
        """The parameters of ``task.init``, those of objectives that it was trained with included; see
        :func:`bert_jax.warm_start.warm_start`. A vocabulary much larger than the tokenizer's is warned of."""
        self._warn_of_unused_rows()
        if self.config.init is None:
            return None
        model = _run_with_objectives(self.config.init, jax.eval_shape(self.init, key)) or load(self.config.init)
        return warm_start(model, self.config.init, self.config.encoder, self.init, key, self._store.tokenizer.hash)

    def _warn_of_unused_rows(self) -> None:
        encoder, pieces = self.config.encoder, self._store.tokenizer.vocab_size
        if (unused := encoder.vocab_size - pieces) < ROWS_OF_PADDING:
            return
        advice = f"task.encoder.vocab_size={pieces} leaves them out"
        if self.config.init is not None:
            advice = f"{self.config.init} has them too; from scratch, {advice}"
        log.warning(
            "the model has a vocabulary of %d, the tokenizer of the data %d pieces: %d rows are trained for nothing; %s",
            encoder.vocab_size, pieces, unused, advice,
        )

    def logical_axes(self) -> api.Params:
        axes = api.logical_axes(self.config.encoder)
        for objective in self.config.all_objectives.values():
            axes |= objective.logical_axes(self.config.encoder)
        return axes

    def identity(self) -> dict[str, str]:
        channels = {CHANNEL_OF[key] for turn in self._turns for key in _columns(turn) if key in CHANNEL_OF}
        return {"tokenizer": self._store.tokenizer.hash, "data": self._store.identity(channels)}

    def save_assets(self, workdir: Path) -> None:
        save_beside(workdir, self._store.tokenizer)

    def gradient(self, objective: Scalar, params: api.Params, batch: Batch, key: Key[Array, ""]) -> tuple[api.Params, Losses]:
        return plain_gradient(objective, params, batch, key)

    def follow(self, params: api.Params, step: Array, steps: int | None) -> api.Params:
        return params

    def scores(self, outputs: dict[str, list[np.ndarray]]) -> dict[str, float]:
        return {}

    def corrupt(self, batch: Batch, key: Key[Array, ""], step: Array | None) -> Batch:
        rows = len(batch["input_ids"])
        seeds = batch.get("example_seeds")  # of static examples; else every update has its own
        if seeds is None:
            seeds = functional.fold(jax.random.bits(key, (2,), "uint32"), np.arange(rows))
        batch = batch | {"seeds": seeds, "real_tokens": batch["attention_mask"].sum(axis=-1, dtype="float32")}
        for number, objective in sorted(enumerate(self._turn_of(batch).objectives), key=lambda pair: pair[1].rank):
            batch = objective.corrupt(batch, functional.fold(seeds, number), self._pieces, step)
        return batch

    def loss(self, params: api.Params, batch: Batch, key: Key[Array, ""] | None) -> Losses:
        encoder, turn = self.config.encoder, self._turn_of(batch)
        keys = [None] * (1 + len(turn.objectives)) if key is None else jax.random.split(key, 1 + len(turn.objectives))
        heads: dict = {}
        for number, objective in enumerate(turn.objectives):
            batch = objective.complete(params, encoder, batch, functional.fold(batch["seeds"], number), keys[1 + number])
            heads |= objective.own_heads(encoder)
        outputs = api.apply(params, encoder, batch, key=keys[0], heads=heads)
        prefix = f"{turn.name}_" if turn.name else ""
        terms, metrics = {}, {"tokens": Ratio(batch["real_tokens"].sum(), np.float32(len(batch["input_ids"])))}
        for objective in turn.objectives:
            factors = objective.terms()
            for name, ratio in objective.loss(outputs, batch).items():
                metrics[f"{prefix}{objective.name}_{name}"] = ratio
                if name in factors:
                    terms[f"{prefix}{objective.name}_{name}"] = Ratio(ratio.sum * factors[name], ratio.weight)
        return Losses(terms, metrics)

    def majority_baselines(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Accuracies of always giving the most frequent label of corrupted ``batches``: ``mlm_majority_baseline``,
        ``nsp_majority_baseline`` and so on, for every objective that says which its labels are."""
        counts: dict[str, collections.Counter[int]] = {}
        for batch in batches:
            turn = self._turn_of(batch)
            for objective in turn.objectives:
                if not objective.labels:
                    continue
                labels, *weights = (np.asarray(batch[key]) for key in objective.labels)
                (counted,) = weights or (labels >= 0,)
                found, times = np.unique(labels[counted > 0], return_counts=True)
                name = f"{turn.name}_{objective.name}" if turn.name else objective.name
                counts.setdefault(name, collections.Counter()).update(dict(zip(found.tolist(), times.tolist(), strict=True)))
        return {
            f"{name}_majority_baseline": max(count.values()) / count.total() if count else 0.0
            for name, count in counts.items()
        }

    def _turn_of(self, batch: Batch) -> Turn:
        return next((turn for turn in self._turns[1:] if turns.marker(turn.name) in batch), self._turns[0])

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What :meth:`train_batches` will yield for a global batch (of the first turn); needs no store."""
        own = self._turns[0]
        layout = own.examples.layout(batch_size, _columns(own))
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in layout.items()}

    def train_batches(
        self, batch_size: int, seed: int | tuple[int, ...], rows: np.ndarray | None = None, multiple: int = 1
    ) -> Examples:
        if not isinstance(seed, int):
            raise BertJaxError("pre-training runs one seed at a time")
        split = self._store.split("train")
        sources = [
            train_batches(split, turn.examples, batch_size=batch_size, seed=seed, columns=_columns(turn), rows=rows)
            for turn in self._turns
        ]
        if len(sources) == 1:
            return sources[0]
        return turns.TakingTurns(sources, [turn.share for turn in self._turns], [turn.name for turn in self._turns])

    def eval_batches(self, batch_size: int, limit: int | None, rows: np.ndarray | None = None) -> Collection[dict]:
        if "heldout" not in self._store.splits:
            return ()
        split = self._store.split("heldout")
        sources = [
            heldout_batches(
                split, turn.examples, batch_size=batch_size, columns=_columns(turn),
                limit=None if limit is None else limit * batch_size, rows=rows,
            )
            for turn in self._turns
        ]
        return sources[0] if len(sources) == 1 else turns.OneAfterAnother(sources, [turn.name for turn in self._turns])


def _run_with_objectives(checkpoint: str, wanted: api.Params) -> Model | None:
    """What pre-training has left in a work directory: the encoder, and of its objectives' own parameters those that are
    ``wanted`` and have the same shapes. None where the checkpoint is something else."""
    place = find(checkpoint)
    if place.kind != "workdir" or place.part:
        return None
    path = place.path / EXPERIMENT
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["task"]
    except (ValueError, KeyError, TypeError):
        return None  # damaged: load() says so
    if saved.get("kind") != Pretraining.__name__:
        return None
    task = from_json(Pretraining, saved, f"{path}: task")
    there = jax.eval_shape(PretrainingTask(task, None).init, jax.random.key(0))
    encoder = jax.eval_shape(lambda key: api.init(task.encoder, key), jax.random.key(0))
    return load_run(checkpoint, {name: tree for name, tree in there.items() if name in encoder or tree == wanted.get(name)})


def _columns(turn: Turn) -> tuple[str, ...]:
    """Arrays that the objectives of a turn want of the data beyond those that every batch has."""
    return tuple(sorted({key for objective in turn.objectives for key in objective.needs}))
