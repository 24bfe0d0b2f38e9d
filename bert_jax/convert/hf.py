"""Hugging Face directories: written for, and read from, transformers in PyTorch. No torch is needed for either.

Every encoder of ours has an exact form there. ALBERT shares everything and the others nothing; whatever lies between is
written with its shared layers copied, and what their config.json has no word for (``share``, ``vocab_multiple``,
``compute_dtype`` ...) stands under its key ``bert_jax``, so :func:`load` gives back the very configuration. What their
config.json says and we have no word for travels as :class:`Origin`.
"""

import dataclasses
import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.convert.reading import (
    LAYERS,
    VOCABULARY,
    Imported,
    Origin,
    Plan,
    flatten,
    make_plan,
    read_imported,
    tree_shapes,
)
from bert_jax.convert.settings import CONFIG, FAMILIES, family_of, plain_form, read_settings, write_settings
from bert_jax.convert.table import Family
from bert_jax.convert.tensors import (
    DTYPES,
    INDEX,
    PICKLE,
    SAFETENSORS,
    Entry,
    dtype_name,
    open_tensors,
    write_safetensors,
)
from bert_jax.errors import BertJaxError
from bert_jax.files import check_local, read_json, write_json, write_whole
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import HEADS
from bert_jax.progress import tracked
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

# Classes of tokenizers that give no token_type_ids by themselves.
_NO_SEGMENTS = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "DistilBertTokenizer",
                "DistilBertTokenizerFast")

_SEGMENTS = ("Bert", "Electra", "MobileBert", "ConvBert", "Funnel", "LayoutLM")  # how classes begin that do

_BUFFERS = re.compile(r".*embeddings\.(position|token_type)_ids$")  # constants that old files carry along


def export(
    params: Mapping[str, Any],
    config: EncoderConfig,
    tokenizer: Tokenizer | None,
    directory: str | os.PathLike,
    *,
    origin: Origin | None = None,
    dtype: str | None = None,
) -> Path:
    """Writes a directory that the class fitting the heads (``AutoModelForPreTraining`` ...) and ``AutoTokenizer`` load.

    A model keeps the family that it came from. One that came from none is an XLNet if its positions are relative, an ALBERT if
    it shares all, an ELECTRA (or an ALBERT of many groups) if it is factorised, else a BERT, an ELECTRA if it has a
    discriminator, a RoBERTa if its positions are offset, a DistilBERT if it has no segments. A RoBERTa's offset is the id of
    its padding piece and one more: where that of the tokenizer makes another, the rows of the position table that serve no
    token are cut, and nothing is offset. Rows that pad the vocabulary are cut; the directory appears whole or not at all.

    Args:
      params, config: as :func:`bert_jax.models.api.init` makes them; every array fully on this host.
      tokenizer: saved beside the weights; its special ids go into config.json. None: none is written.
      directory: absent or empty.
      origin: what :func:`load` gave with a model that came from transformers; its config.json is kept where it still holds.
      dtype: float32, float16 or bfloat16 (bf16); None: that of the origin, else float32.

    Returns:
      The directory.

    Raises:
      BertJaxError: the directory is not empty or cannot be written, ``params`` do not fit ``config``, the tokenizer
        has more pieces than the token table, no family has a class for these heads, heads read several layers, ``dtype`` is
        none of these, or a value is beyond it.
    """
    with new_directory(directory) as partial:
        write(params, config, tokenizer, partial, origin=origin, dtype=dtype)
    return Path(directory)


@contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """A folder beside ``directory`` that takes its name when everything in it has been written, and else disappears.

    Raises:
      BertJaxError: ``directory`` exists and is not empty, or cannot be written.
    """
    check_local(directory)
    directory = Path(directory)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise BertJaxError(f"{directory} exists and is not an empty directory: choose another place")
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    new_parents = [folder for folder in directory.parents if not folder.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, directory)
    except OSError as error:
        raise BertJaxError(f"cannot write {directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in new_parents:
            with suppress(OSError):  # not empty: it holds what was written
                folder.rmdir()


def write(
    params: Mapping[str, Any], config: EncoderConfig, tokenizer: Tokenizer | None, directory: Path, *,
    origin: Origin | None, dtype: str | None,
) -> None:
    """The files of :func:`export`, into a folder that exists."""
    dtype = dtype_name(dtype or (origin.dtype if origin else "float32"))
    params, config = sayable(params, config, tokenizer, origin)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise BertJaxError(
            f"the tokenizer has {tokenizer.vocab_size} pieces but the token table {config.vocab_size}: "
            "give the tokenizer that the encoder was trained with"
        )
    if tokenizer is not None and tokenizer.vocab_size < config.vocab_size and not (origin and origin.settings):
        logger.warning(
            "the token table has %d rows for %d pieces of the tokenizer", config.vocab_size, tokenizer.vocab_size
        )
    settings = write_settings(config, tokenizer, origin, dtype)
    entries = _entries(params, config, origin)
    write_safetensors(directory / SAFETENSORS, entries, DTYPES[dtype], tracked(entries, "writing"))
    write_whole(directory / CONFIG, json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if tokenizer is not None:
        tokenizer.save(directory)
        _complete(directory / "tokenizer_config.json", tokenizer, config, _is_of_transformers(origin))


def _is_of_transformers(origin: Origin | None) -> bool:
    """Whether a model came from a directory of transformers, which has settings of the tokenizer as well, and not from a
    checkpoint of TensorFlow, whose settings are those that we found."""
    said = origin.settings if origin else {}
    return bool(said) and ("model_type" not in said or bool({"architectures", "transformers_version"} & said.keys()))


def _complete(file: Path, tokenizer: Tokenizer, config: EncoderConfig, foreign: bool) -> None:
    """What transformers needs to know of a tokenizer besides, unless it is ``foreign`` and came with its own settings.

    ``truncation=True`` cuts to ``model_max_length``, and does nothing where no file says it, or a larger one. Classes without
    rules of their own give no ``token_type_ids``, whatever the tokenizer.json says, unless ``model_input_names`` has them: a
    BERT then sees pairs as one segment.
    """
    settings, added = read_json(file), {}
    stated = settings.get("model_max_length")
    if config.positions == "absolute" and not foreign and not (type(stated) in (int, float) and stated <= config.max_length):
        added["model_max_length"] = config.max_length
    names = settings.get("model_input_names", ["input_ids", "attention_mask"])
    _, segments = tokenizer.build([0], [0])
    kind = settings["tokenizer_class"]
    gives_none = kind in _NO_SEGMENTS or config.positions == "absolute" and not foreign and not kind.startswith(_SEGMENTS)
    if config.segments > 1 and segments.any() and "token_type_ids" not in names and gives_none:
        added["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if added:
        write_json(file, settings | added)


def sayable(
    params: Mapping[str, Any], config: EncoderConfig, tokenizer: Tokenizer | None, origin: Origin | None
) -> tuple[Mapping[str, Any], EncoderConfig]:
    """The same function as transformers can say it with this tokenizer: :func:`bert_jax.models.api.plain`, and without an
    offset of positions (one warning line) that is not where a RoBERTa with its padding piece would begin to count."""
    params, config = api.plain(params, config)
    offset, came_so = config.position_offset, origin is not None and origin.family in ("roberta", "xlm-roberta")
    if not offset or came_so or tokenizer is None or tokenizer.pad_id + 1 == offset:
        return params, config
    logger.warning(
        "written without the first %d rows of its position table, which serve no token: a RoBERTa counts positions from its "
        "padding piece, which has the id %d here", offset, tokenizer.pad_id,
    )  # fmt: skip
    embeddings = params["embeddings"] | {"position": params["embeddings"]["position"][offset:]}
    return {**params, "embeddings": embeddings}, dataclasses.replace(config, position_offset=0)


def to_tensors(params: Mapping[str, Any], config: EncoderConfig, origin: Origin | None = None) -> dict[str, np.ndarray]:
    """The float32 tensors of :func:`export` by their names in transformers, as in a state dict without tied entries.

    Gradients of ``params`` convert alike where no layer is copied and nothing is added (ALBERT with E == D).

    Raises:
      BertJaxError: ``params`` do not fit ``config``.
    """
    params, config = api.plain(params, config)
    return {name: np.ascontiguousarray(make(), np.float32) for name, _, make in _entries(params, config, origin)}


def load(directory: str | os.PathLike, *, allow_missing: bool = False) -> Imported:
    """Reads a model that :func:`export` or transformers wrote: safetensors or PyTorch's pickle, whole or in shards.

    Heads are those that the file holds; tensors that belong to none of ours are left out with one warning line.
    Sharing that was exported as copies is restored if the copies still agree, else one warning line says that not.

    Args:
      allow_missing: heads that config.json promises and the file lacks are new (seed 0) instead of an error.

    Raises:
      BertJaxError: a file is absent or damaged, another model type, a setting that makes a different model, tensors
        that are missing, of another shape, not floating point or not finite.
    """
    return read_imported(plan(directory), allow_missing=allow_missing)


def plan(directory: str | os.PathLike, *, of_sentences: bool = False) -> Plan:
    """What :func:`load` will do, from config.json and the headers of the weights alone.

    Args:
      of_sentences: the folder is one of sentence-transformers, which saves the encoder and leaves the base model's class in
        config.json: heads that it promises and of which no tensor is there are left out, with one warning line.
    """
    directory = Path(directory)
    path = directory / CONFIG
    settings = read_json(path)
    tensors = open_tensors(directory)
    modern = {name: _modern(name) for name in tensors.shapes}
    family = _family(settings, modern.values(), path)
    prefix = _prefix(modern.values(), family, tensors.path)
    names = {_canonical(name, family, prefix): theirs for theirs, name in modern.items()}
    for copy, original in family.tied.items():
        if copy in names:
            names.setdefault(original, names[copy])
    heads = _heads(names, family, settings, path)
    if of_sentences:
        absent = [head for head in heads if (rows := family.heads[head]) and not any(row.theirs in names for row in rows)]
        if absent:
            logger.warning("%s promises heads of which no tensor is there: left out: %s", path, ", ".join(absent))
            heads = tuple(head for head in heads if head not in absent)
        if not family.heads.get("pooler") and not {"pair", "classifier", "choice"} & set(heads):
            heads = tuple(head for head in heads if head != "pooler")  # of DistilBERT and ELECTRA it is a part of a head
    labels = _labels(settings, family, heads, names, tensors, path)
    config = read_settings(settings, family, heads, labels, path)
    dtypes = {tensors.dtypes[theirs] for name, theirs in names.items() if not _BUFFERS.match(name)}
    known = [name for name, dtype in DTYPES.items() if dtype in dtypes]
    origin = Origin(family.model_type, settings, heads, known[0] if len(known) == 1 else "float32")
    return make_plan(
        tensors, names, config, origin, family.rows(heads), family.places(config), family.tied, ignored=_BUFFERS
    )


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights that :func:`load` reads."""
    return any((directory / (name + end)).is_file() for name in (SAFETENSORS, PICKLE) for end in ("", INDEX))


# Names


def _modern(name: str) -> str:
    """Names of TensorFlow's layer norm, which files of transformers before 2019 kept."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _family(settings: Mapping[str, Any], names: Iterator[str], path: Path) -> Family:
    kind = settings.get("model_type")
    if kind is None:  # files before 2020
        names = list(names)
        family = next((f for f in FAMILIES if any(name.startswith(f.base) for name in names)), FAMILIES[0])
        logger.warning("%s has no model_type: taken for %s", path, family.model_type)
        return family
    family = next((f for f in FAMILIES if f.model_type == kind), None)
    if family is None:
        known = ", ".join(f.model_type for f in FAMILIES)
        raise BertJaxError(f"{path}: model_type is {kind!r}; those that are read are {known}")
    return family


def _prefix(names: Iterator[str], family: Family, path: Path) -> str:
    """What stands before the encoder's names in a file: its base, nothing, or the name of a wrapper as well."""
    table = family.encoder[0].theirs.removeprefix(family.base)
    found = [name.removesuffix(table) for name in names if f".{name}".endswith(f".{table}")]
    if len(found) > 1:
        raise BertJaxError(f"{path} holds {len(found)} encoders ({', '.join(found)}): save one of them alone")
    others = (f for f in FAMILIES if found and f.base != family.base and f.encoder[0].theirs.removeprefix(f.base) == table)
    other = next((f for f in others if f".{found[0]}".endswith(f".{f.base}")), None)
    if other:
        raise BertJaxError(f"{path} holds a {other.model_type}, its {CONFIG} describes a {family.model_type}: not of one model")
    return found[0] if found else family.base


def _canonical(name: str, family: Family, prefix: str) -> str:
    of_heads = {row.theirs for rows in family.heads.values() for row in rows} | family.tied.keys()
    bare = name.removeprefix(prefix.removesuffix(family.base))
    if bare in of_heads and not bare.startswith(family.base):
        return bare
    return family.base + name.removeprefix(prefix) if name.startswith(prefix) else name


def _heads(names: Mapping[str, str], family: Family, settings: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The heads that a file holds or its ``architectures`` promises. Some heads share a tensor name (``classifier.weight``):
    the promised one counts, else the first."""
    classes = settings.get("architectures") or []
    if not isinstance(classes, list):
        raise BertJaxError(f"{path}: architectures is {classes!r}: a list of class names is needed")
    promised = next((heads for name, heads in family.architectures if name in classes), ())
    wanted = {head: [row.theirs for row in rows] for head, rows in family.heads.items() if rows}
    heads, taken = set(promised), {name for head in promised if head in wanted for name in wanted[head]}
    for head in wanted:
        if head in heads or taken & set(wanted[head]) or not all(name in names for name in wanted[head]):
            continue
        rivals = [other for other in wanted if other != head and set(wanted[other]) == set(wanted[head])]
        if rivals:
            logger.warning("%s does not say whose %s it is: taken for the %s, not %s", path, wanted[head][0], head,
                           " or ".join(rivals))
        heads.add(head)
        taken |= set(wanted[head])
    if heads & {"pair", "classifier", "choice"}:
        heads.add("pooler")
    return tuple(head for head in HEADS if head in heads)


def _labels(settings, family: Family, heads: tuple[str, ...], names: Mapping[str, str], tensors, path: Path) -> tuple[str, ...]:
    """Names of classes; their number is that of the tensor."""
    head = next((head for head in ("classifier", "tagger") if head in heads), None)
    if head is None:
        return ()
    named = settings.get("id2label") or {}
    try:
        labels = tuple(str(named[key]) for key in sorted(named, key=int))
    except (TypeError, ValueError) as error:
        raise BertJaxError(f"{path}: id2label must map numbers to names") from error
    bias = next(row.theirs for row in family.heads[head] if row.ours == f"{head}/dense/bias")
    if bias in names:
        width = tensors.shapes[names[bias]][0]
    else:
        width = settings.get("num_labels") or len(labels) or 2
    if len(labels) != width:
        numbered = tuple(f"LABEL_{i}" for i in range(width))
        if any(label != f"LABEL_{i}" for i, label in enumerate(labels)):
            logger.warning("%s names %d classes, the %s has %d: they are numbered instead", path, len(labels), head, width)
        return numbered
    return labels


# Tensors


def _entries(params: Mapping[str, Any], config: EncoderConfig, origin: Origin | None) -> list[Entry]:
    """Every tensor to write; its array is made when it is asked for."""
    family = family_of(config, origin)
    plain, flat, expected = plain_form(config, family), flatten(params), tree_shapes(config)
    for path in sorted(expected.keys() | flat.keys()):
        found = list(flat[path].shape) if path in flat else "absent"
        wanted = list(expected[path]) if path in expected else "absent"
        if found != wanted:
            raise BertJaxError(f"the parameter {path} is {found} where the configuration has {wanted}")
    whole = functools.lru_cache(maxsize=1)(lambda path: np.asarray(flat[path]))  # all layers of a row come one after another
    prefix = family.base if set(plain.with_heads) <= {"pooler"} else ""  # the class of the bare encoder

    def entry(name, row, index=None):
        def array():
            if row.ours not in flat:
                return row.absent(plain)
            a = whole(row.ours) if index is None else whole(row.ours)[index]
            return row.transform.export(a[: config.vocab_size] if row.ours in VOCABULARY else a)

        if row.ours not in flat:
            shape = row.absent(plain).shape
        else:
            ours = expected[row.ours] if index is None else expected[row.ours][1:]
            ours = (config.vocab_size, *ours[1:]) if row.ours in VOCABULARY else ours
            shape = row.transform.export(np.broadcast_to(np.float32(0), ours)).shape
        return Entry(name.removeprefix(prefix), shape, array)

    entries = []
    for row in family.rows(plain.with_heads):
        if row.part in LAYERS:
            copied = config.copies(row.part) != plain.copies(row.part)
            index = config.shared_index if copied else range(plain.copies(row.part))
            places = zip(family.places(plain), index, strict=True)
            entries += [entry(row.theirs.format(**place), row, i) for place, i in places]
        elif row.ours in flat or row.absent is not None:
            entries.append(entry(row.theirs, row))
    return entries
