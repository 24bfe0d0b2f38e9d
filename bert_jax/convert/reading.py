"""From named tensors to parameters, by the rows of a table: what is there, what is missing, and then one tensor at a time."""

import functools
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.config import from_json, to_json
from bert_jax.convert.table import Row
from bert_jax.convert.tensors import DTYPES, Tensors
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.progress import tracked

logger = logging.getLogger("bert_jax")

LAYERS = ("attention", "feed_forward")
VOCABULARY = ("embeddings/token", "mlm/bias")  # have rows that only pad the vocabulary
NOTES = "bert_jax"  # key of config.json for what transformers has no word for
PREDICTOR = "bert_jax_predictor"  # key for what its answers to new texts are made with: lengths, thresholds

_SHARING = ("share", "layers", "groups", "inner_layers")
_FLOATS = tuple(DTYPES.values())


class Origin(NamedTuple):
    """Where a model came from, so that it can go back unchanged.

    Attributes:
      family: model_type. settings: all of its config.json. heads: those that its file held. dtype: of its weights.
    """

    family: str
    settings: dict[str, Any]
    heads: tuple[str, ...]
    dtype: str


class Imported(NamedTuple):
    """Float32 numpy parameters (rows that only pad the vocabulary are zero), their configuration, and their origin."""

    params: api.Params
    config: EncoderConfig
    origin: Origin


class Plan(NamedTuple):
    """What reading a checkpoint will do; nothing but headers has been read for it.

    Attributes:
      config: the encoder as the file has it. origin: see :class:`Origin`. tensors: the open file.
      rows: of the encoder and its heads. places: of its layers. names: from the table's names to those of the file.
      missing: names of the table that the file lacks. dropped: tensors of the file that belong to nothing of ours.
      tied: names of the table with the name whose tensor they repeat.
    """

    config: EncoderConfig
    origin: Origin
    tensors: Tensors
    rows: list[Row]
    places: list[dict[str, int]]
    names: Mapping[str, str]
    missing: list[str]
    dropped: list[str]
    tied: Mapping[str, str]

    @property
    def new_heads(self) -> list[str]:
        """Heads of which at least one tensor is missing."""
        parts = {row.part for row, name in _wanted(self.rows, self.places) if name in self.missing}
        return sorted(parts - {*LAYERS, "embeddings"})


def make_plan(
    tensors: Tensors, names: Mapping[str, str], config: EncoderConfig, origin: Origin, rows: list[Row],
    places: list[dict[str, int]], tied: Mapping[str, str], ignored: re.Pattern,
) -> Plan:
    """Compares a table with a file.

    Args:
      names: from the table's names to those of the file, for every tensor of the file.
      ignored: names that are left out without a word: constants and optimiser states.

    Raises:
      BertJaxError: a tensor has another shape than the configuration says, or does not hold floating-point numbers.
    """
    shapes = tree_shapes(config)
    rows = [row for row in rows if row.ours in shapes or row.absent is not None]  # no projection where E == D
    missing, used = [], set(tied)
    for row, name in _wanted(rows, places):
        used.add(name)
        if name not in names:
            missing.append(name)
            continue
        found = tensors.shapes[names[name]]
        if row.ours in shapes:
            shape = shapes[row.ours][1:] if row.part in LAYERS else shapes[row.ours]
            expected = row.transform.export(np.broadcast_to(np.float32(0), shape)).shape
        else:
            expected = row.absent(config).shape
        if found != expected:
            raise BertJaxError(
                f"{tensors.path}: {names[name]} has shape {list(found)}, its configuration says {list(expected)}"
            )
        if (dtype := tensors.dtypes[names[name]]) not in _FLOATS:
            held = "numbers of a kind that is not read" if dtype.kind == "V" else dtype.name
            raise BertJaxError(f"{tensors.path}: {names[name]} holds {held}: float32, float16 or bfloat16 is needed")
    dropped = sorted(theirs for name, theirs in names.items() if name not in used and not ignored.match(theirs))
    return Plan(config, origin, tensors, rows, places, names, missing, dropped, tied)


def read_imported(plan: Plan, *, allow_missing: bool = False) -> Imported:
    """Reads what a plan says; see :func:`read_plan` for what is refused.

    Sharing that was exported as copies is restored if the copies still agree, else one warning line says that not.
    """
    flat = read_plan(plan, allow_missing=allow_missing)
    flat, config = _restore(flat, plan.config, plan.origin.settings.get(NOTES, {}), plan.tensors.path)
    return Imported(nest(flat), config, plan.origin)


def noted(plain: EncoderConfig, notes: Mapping[str, Any], path: Path) -> EncoderConfig:
    """The configuration that was exported: the family's own terms with what config.json notes for us."""
    if not isinstance(notes, Mapping):
        raise BertJaxError(f"{path}: {NOTES} in its settings is {notes!r}: an object is needed")
    return from_json(EncoderConfig, {**to_json(plain), **notes}, f"{path}: {NOTES}")


def read_plan(plan: Plan, *, allow_missing: bool) -> dict[str, np.ndarray]:
    """Float32 parameters by path, layers stacked; heads that are missing are new if that is allowed, drawn from seed 0.

    Raises:
      BertJaxError: tensors are missing, damaged or not finite, or a repeated tensor differs from the one it repeats.
    """
    path, shapes = plan.tensors.path, tree_shapes(plan.config)
    parts = {row.part for row, name in _wanted(plan.rows, plan.places) if name in plan.missing}
    if plan.missing and (not allow_missing or parts & {*LAYERS, "embeddings"}):
        new_heads = "; convert --allow-missing (load(..., allow_missing=True)) begins with new heads"
        hint = "" if parts & {*LAYERS, "embeddings"} else new_heads
        raise BertJaxError(f"{path} lacks {_listed(plan.missing)}, which its configuration asks for{hint}")
    if plan.missing:
        logger.warning("%s lacks %s: new, untrained %s", path, _listed(plan.missing), ", ".join(sorted(parts)))
    if plan.dropped:
        logger.warning("%s: not part of our encoder and left out: %s", path, _listed(plan.dropped))

    flat: dict[str, np.ndarray] = {}
    if plan.missing:
        flat |= flatten(api.init_parts(functools.partial(api.init, plan.config), jax.random.key(0), parts))
    for row in tracked([row for row in plan.rows if row.part not in parts], f"reading {path.name}"):
        places = plan.places if row.part in LAYERS else [{}]
        arrays = (read_finite(plan.tensors, plan.names[row.theirs.format(**place)]) for place in places)
        if row.ours not in shapes:
            if not np.array_equal(next(arrays), row.absent(plan.config)):
                raise BertJaxError(
                    f"{path}: {row.theirs} changes embeddings that are as wide as the hidden states; our encoder has "
                    "such a map only where the widths differ"
                )
            continue
        whole = _empty(shapes[row.ours])
        for target, a in zip(whole if row.part in LAYERS else [whole], arrays, strict=True):
            target[...] = row.transform.load(a, target.shape)
        flat[row.ours] = whole

    for name, original in plan.tied.items():
        if name in plan.names and original in plan.names:
            if not np.array_equal(plan.tensors.read(plan.names[name]), plan.tensors.read(plan.names[original])):
                raise BertJaxError(
                    f"{path}: {plan.names[name]} differs from {plan.names[original]}; our decoder is tied to the token table"
                )
    return flat


@functools.lru_cache(maxsize=32)
def tree_shapes(config: EncoderConfig) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter by its path."""
    return {path: leaf.shape for path, leaf in flatten(jax.eval_shape(lambda: api.init(config, jax.random.key(0)))).items()}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by their path, steps joined by "/"."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def nest(flat: Mapping[str, Any]) -> api.Params:
    """The tree that :func:`flatten` took apart."""
    tree: api.Params = {}
    for path, a in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = a
    return tree


# Sharing and vocabulary padding


def _restore(
    flat: dict[str, np.ndarray], plain: EncoderConfig, notes: dict, path: Path
) -> tuple[dict[str, np.ndarray], EncoderConfig]:
    """From the family's own terms to the configuration that was exported."""
    config = noted(plain, notes, path)
    sets = {path: _collapse(a, path.partition("/")[0], config, plain) for path, a in flat.items()}
    if any(a is None for a in sets.values()):
        logger.warning("%s: layers that were shared differ by now: read as an encoder that does not share them", path)
        return _restore(flat, plain, {name: v for name, v in notes.items() if name not in _SHARING}, path)
    extra = config.padded_vocab_size - config.vocab_size
    for name in VOCABULARY:
        if extra and name in sets:
            sets[name] = np.pad(sets[name], [(0, extra)] + [(0, 0)] * (sets[name].ndim - 1))
    return sets, config


def _collapse(a: np.ndarray, part: str, config: EncoderConfig, plain: EncoderConfig) -> np.ndarray | None:
    """The sets of parameters among copies [depth, ...]; None if copies of one set differ."""
    if part not in LAYERS or config.copies(part) == plain.copies(part):
        return a
    index = config.shared_index
    if len(index) != len(a):
        return None
    sets = a[[index.index(i) for i in range(config.copies(part))]]
    return sets if np.array_equal(sets[list(index)], a) else None


def _wanted(rows: Iterable[Row], places: list[dict[str, int]]) -> list[tuple[Row, str]]:
    return [(row, row.theirs.format(**place)) for row in rows for place in (places if row.part in LAYERS else [{}])]


def read_finite(tensors: Tensors, name: str) -> np.ndarray:
    """One tensor. Raises BertJaxError where it is damaged, or holds a NaN or an infinity."""
    a = tensors.read(name)
    if not np.isfinite(a).all():
        raise BertJaxError(f"{tensors.path}: {name} holds NaN or infinity: the model was broken when it was saved")
    return a


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array at an address that JAX on CPU takes as its own, without a copy: a multiple of 64."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{more}"
