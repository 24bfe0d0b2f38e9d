"""Hugging Face directories: written for, and read from, transformers in PyTorch. No torch is needed for either.

Every encoder of ours has an exact form there. BERT shares nothing and ALBERT shares everything; whatever lies between
is written with its shared layers copied, and what their config.json has no word for (``share``, ``vocab_multiple``,
``compute_dtype`` ...) stands under its key ``bert_jax``, so :func:`load` gives back the very configuration.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bert_jax.config import from_json, to_json
from bert_jax.convert.albert import ALBERT
from bert_jax.convert.bert import BERT
from bert_jax.convert.table import Family, Row
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

FAMILIES = (BERT, ALBERT)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
NOTES = "bert_jax"  # key of config.json for what transformers has no word for

_HEADS = ("pooler", "mlm", "pair")
_LAYERS = ("attention", "feed_forward")
_VOCABULARY = ("embeddings/token", "mlm/bias")  # have rows that only pad the vocabulary
_SHARING = ("share", "layers", "groups", "inner_layers")
# Names in transformers for one of our three forms: the tanh forms differ by float rounding at most.
_ACTIVATIONS = {
    "gelu_python": "gelu", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python_tanh": "gelu_new",
}
# Settings whose other values make a different model.
_ONLY = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute",
         "tie_word_embeddings": True}
_FLOATS = (np.float32, np.float16, jax.numpy.bfloat16)
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # constants that old files carry along


def export(
    params: Mapping[str, Any],
    config: EncoderConfig,
    tokenizer: Tokenizer,
    directory: str | os.PathLike,
    *,
    extra_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what ``AutoModelForPreTraining`` (or the class that fits the heads) and ``AutoTokenizer`` load.

    The family follows from the configuration: factorised or wholly shared encoders are ALBERTs, all others BERTs.
    Weights are float32; rows that pad the vocabulary are cut; the directory appears whole or not at all.

    Args:
      params, config: as :func:`bert_jax.models.api.init` makes them; every array fully on this host.
      tokenizer: saved beside the weights; its special ids go into config.json.
      directory: absent or empty.
      extra_config: more keys for config.json.

    Returns:
      The directory.

    Raises:
      BertJaxError: the directory is not empty or cannot be written, ``params`` do not fit ``config``, the tokenizer
        has more pieces than the token table, the family has no class for these heads, or ``extra_config`` repeats a
        key.
    """
    directory = Path(directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise BertJaxError(f"{directory} exists and is not an empty directory: choose another place for the export")
    if tokenizer.vocab_size > config.vocab_size:
        raise BertJaxError(
            f"the tokenizer has {tokenizer.vocab_size} pieces but the token table {config.vocab_size}: "
            "give the tokenizer that the encoder was trained with"
        )
    if tokenizer.vocab_size < config.vocab_size:
        logger.warning(
            "the token table has %d rows for %d pieces of the tokenizer", config.vocab_size, tokenizer.vocab_size
        )
    settings = _write_settings(config, tokenizer)
    if repeated := sorted(settings.keys() & (extra_config or {}).keys()):
        raise BertJaxError(f"extra_config repeats {', '.join(repeated)} of {CONFIG}: leave it out")
    settings |= extra_config or {}
    tensors = to_tensors(params, config)

    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        tokenizer.save(partial)
        os.replace(partial, directory)
    except (OSError, SafetensorError) as error:
        raise BertJaxError(f"cannot write the export to {directory}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def to_tensors(params: Mapping[str, Any], config: EncoderConfig) -> dict[str, np.ndarray]:
    """The float32 tensors of :func:`export` by their names in transformers, as in a state dict without tied entries.

    Gradients of ``params`` convert alike where no layer is copied and nothing is added (ALBERT with E == D).

    Raises:
      BertJaxError: ``params`` do not fit ``config``.
    """
    family, plain = _plain(config)
    flat = _flatten(params)
    expected = _shapes(config)
    for path in sorted(expected.keys() | flat.keys()):
        found, wanted = (list(d[path].shape) if path in d else "absent" for d in (flat, expected))
        if found != wanted:
            raise BertJaxError(f"the parameter {path} is {found} where the configuration has {wanted}")
    return _write_tensors(_expand(flat, config, plain), plain, family)


def load(directory: str | os.PathLike) -> tuple[api.Params, EncoderConfig]:
    """Reads a BERT or ALBERT that :func:`export` or transformers wrote.

    Heads are those that the file holds; tensors that belong to none of ours are left out with one warning line.
    Sharing that was exported as copies is restored if the copies still agree, else one warning line says that not.

    Returns:
      Parameters as float32 numpy arrays (rows that pad the vocabulary are zero), and their configuration.

    Raises:
      BertJaxError: a file is absent or damaged, another model type, a setting that makes a different model, tensors
        that are missing, of another shape, or not floating point.
    """
    directory = Path(directory)
    settings = _read_json(directory / CONFIG)
    family = next((f for f in FAMILIES if f.model_type == settings.get("model_type")), None)
    if family is None:
        known = " or ".join(f.model_type for f in FAMILIES)
        raise BertJaxError(f"{directory / CONFIG}: model_type is {settings.get('model_type')!r}, not {known}")
    tensors = _read_weights(directory)
    if not any(name.startswith(family.base) for name in tensors):  # a bare encoder: its names lack the prefix
        tensors = {name if _is_head(name, family) else family.base + name: a for name, a in tensors.items()}

    heads = tuple(head for head in _HEADS if any(r.theirs in tensors for r in family.rows if r.part == head))
    plain = _read_settings(settings, family, heads, directory / CONFIG)
    flat = _read_tensors(tensors, plain, family, directory / WEIGHTS)
    flat, config = _restore(flat, plain, settings.get(NOTES, {}), directory / CONFIG)
    return _nest(flat), config


# Configuration


def _plain(config: EncoderConfig) -> tuple[Family, EncoderConfig]:
    """The same function in its family's own terms; all that its config.json cannot say has its default."""
    family = ALBERT if config.share == "all" or config.embedding_width != config.hidden_width else BERT
    default = {field.name: field.default for field in dataclasses.fields(EncoderConfig)}
    unsaid = {name: default[name] for name in ("vocab_multiple", "compute_dtype", "remat", "unroll")}
    heads = tuple(head for head in _HEADS if head in config.with_heads)
    return family, dataclasses.replace(family.plain(config), **unsaid, with_heads=heads)


def _write_settings(config: EncoderConfig, tokenizer: Tokenizer) -> dict:
    family, plain = _plain(config)
    if plain.with_heads not in family.architectures:
        raise BertJaxError(
            f"transformers has no {family.model_type} class for the heads {', '.join(plain.with_heads)} alone: "
            "give the encoder all of pooler, mlm and pair"
        )
    settings = {
        "architectures": [family.architectures[plain.with_heads]],
        "model_type": family.model_type,
        "dtype": "float32",
        "tie_word_embeddings": True,
    }
    settings |= {setting.theirs: getattr(plain, setting.ours) for setting in family.settings}
    settings |= {key: getattr(tokenizer, attribute) for key, attribute in family.special_ids.items()}
    said, wanted = to_json(plain), to_json(config)
    if notes := {name: value for name, value in wanted.items() if value != said[name]}:
        settings[NOTES] = notes
    return settings


def _read_settings(settings: dict, family: Family, heads: tuple[str, ...], path: Path) -> EncoderConfig:
    for name, value in _ONLY.items():
        if settings.get(name, value) != value:
            raise BertJaxError(f"{path}: {name} is {settings[name]!r}, only {value!r} can be read")
    data = {"with_heads": list(heads)} | family.fixed
    for ours, theirs, default in family.settings:
        data[ours] = settings.get(theirs, default)
        if data[ours] is None:
            raise BertJaxError(f"{path}: {theirs} is missing, it is needed for the shape of the encoder")
    data["activation"] = _ACTIVATIONS.get(data["activation"], data["activation"])
    try:
        return from_json(EncoderConfig, data, str(path))
    except BertJaxError as error:
        raise error if str(path) in error.args[0] else BertJaxError(f"{path}: {error}") from error


# Tensors


def _write_tensors(flat: dict[str, np.ndarray], plain: EncoderConfig, family: Family) -> dict[str, np.ndarray]:
    tensors = {}
    for row in _rows(plain, family):
        if row.ours not in flat:
            tensors[row.theirs] = row.absent(plain)
        elif row.part in _LAYERS:
            for place, a in zip(family.places(plain), flat[row.ours], strict=True):
                tensors[row.theirs.format(**place)] = row.transform.export(a)
        else:
            tensors[row.theirs] = row.transform.export(flat[row.ours])
    if family.architectures[plain.with_heads].endswith("Model"):
        tensors = {name.removeprefix(family.base): a for name, a in tensors.items()}
    return {name: np.ascontiguousarray(a, np.float32) for name, a in tensors.items()}


def _read_tensors(
    tensors: dict[str, np.ndarray], plain: EncoderConfig, family: Family, path: Path
) -> dict[str, np.ndarray]:
    left = dict(tensors)

    def take(name: str) -> np.ndarray:
        if name not in left:
            raise BertJaxError(f"{path}: tensor {name} is missing, the {family.model_type} of its {CONFIG} needs it")
        return left.pop(name)

    shapes = {path: leaf.shape for path, leaf in _shapes(plain).items()}
    flat = {}
    for row in _rows(plain, family):
        layers = row.part in _LAYERS
        names = [row.theirs.format(**place) for place in family.places(plain)] if layers else [row.theirs]
        arrays = [take(name) for name in names]
        if row.ours not in shapes:
            if not np.array_equal(arrays[0], row.absent(plain)):
                raise BertJaxError(
                    f"{path}: {row.theirs} changes embeddings that are as wide as the hidden states; our encoder has "
                    "such a map only where the widths differ"
                )
            continue
        shape = shapes[row.ours][1:] if layers else shapes[row.ours]
        expected = row.transform.export(np.broadcast_to(np.float32(0), shape)).shape
        for name, a in zip(names, arrays, strict=True):
            if a.shape != expected:
                raise BertJaxError(f"{path}: {name} has shape {list(a.shape)}, its {CONFIG} says {list(expected)}")
        ours = [np.ascontiguousarray(row.transform.load(a, plain)) for a in arrays]
        flat[row.ours] = np.stack(ours) if layers else ours[0]

    for name, original in family.tied.items():
        if name in left and original in tensors and not np.array_equal(left.pop(name), tensors[original]):
            raise BertJaxError(f"{path}: {name} differs from {original}; our decoder is tied to the token table")
    if unread := sorted(name for name in left if not name.endswith(_BUFFERS)):
        more = f" and {len(unread) - 4} more" if len(unread) > 4 else ""
        logger.warning("%s: not part of our encoder and left out: %s%s", path, ", ".join(unread[:4]), more)
    return flat


def _rows(plain: EncoderConfig, family: Family) -> list[Row]:
    return [row for row in family.rows if row.part not in _HEADS or row.part in plain.with_heads]


def _is_head(name: str, family: Family) -> bool:
    named = {row.theirs for row in family.rows} | family.tied.keys()
    return name in named and not name.startswith(family.base)


# Sharing and vocabulary padding


def _expand(flat: dict[str, np.ndarray], config: EncoderConfig, plain: EncoderConfig) -> dict[str, np.ndarray]:
    """From ``config`` to ``plain``: shared layers copied, padding rows cut."""
    plainer = {}
    for path, a in flat.items():
        part = path.partition("/")[0]
        if part in _LAYERS and config.copies(part) != plain.copies(part):
            a = a[list(config.shared_index)]
        plainer[path] = a[: config.vocab_size] if path in _VOCABULARY else a
    return plainer


def _restore(
    flat: dict[str, np.ndarray], plain: EncoderConfig, notes: dict, path: Path
) -> tuple[dict[str, np.ndarray], EncoderConfig]:
    """From ``plain`` to the configuration that was exported; the opposite of :func:`_expand`."""
    config = from_json(EncoderConfig, to_json(plain) | notes, f"{path}: {NOTES}")
    sets = {path: _collapse(a, path.partition("/")[0], config, plain) for path, a in flat.items()}
    if any(a is None for a in sets.values()):
        logger.warning("%s: layers that were shared differ by now: read as an encoder that does not share them", path)
        return _restore(flat, plain, {name: v for name, v in notes.items() if name not in _SHARING}, path)
    extra = config.padded_vocab_size - config.vocab_size
    for name in _VOCABULARY:
        if extra and name in sets:
            sets[name] = np.pad(sets[name], [(0, extra)] + [(0, 0)] * (sets[name].ndim - 1))
    return sets, config


def _collapse(a: np.ndarray, part: str, config: EncoderConfig, plain: EncoderConfig) -> np.ndarray | None:
    """The sets of parameters among copies [depth, ...]; None if copies of one set differ."""
    if part not in _LAYERS or config.copies(part) == plain.copies(part):
        return a
    index = config.shared_index
    if len(index) != len(a):
        return None
    sets = a[[index.index(i) for i in range(config.copies(part))]]
    return sets if np.array_equal(sets[list(index)], a) else None


# Files and trees


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BertJaxError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BertJaxError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BertJaxError(f"{path} is not a model configuration: a JSON object is needed")
    return content


def _read_weights(directory: Path) -> dict[str, np.ndarray]:
    path = directory / WEIGHTS
    if not path.is_file():
        others = [p.name for p in (directory / f"{WEIGHTS}.index.json", directory / "pytorch_model.bin") if p.exists()]
        hint = f"; {others[0]} is not read: save it with transformers as one {WEIGHTS}" if others else ""
        raise BertJaxError(f"{directory} holds no {WEIGHTS}{hint}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BertJaxError(f"{path} is damaged or no safetensors file: {error}") from error
    for name, a in tensors.items():
        if a.dtype not in _FLOATS and not name.endswith(_BUFFERS):
            raise BertJaxError(f"{path}: {name} holds {a.dtype}: float32, float16 or bfloat16 is needed")
    return {name: a.astype(np.float32) for name, a in tensors.items()}


def _shapes(config: EncoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return _flatten(jax.eval_shape(lambda: api.init(config, jax.random.key(0))))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value if isinstance(value, jax.ShapeDtypeStruct) else np.asarray(value)
    return flat


def _nest(flat: dict[str, np.ndarray]) -> api.Params:
    tree: api.Params = {}
    for path, a in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = a
    return tree
