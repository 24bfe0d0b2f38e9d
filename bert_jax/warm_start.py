"""What a run begins with and leaves beside its checkpoints: parameters of another checkpoint, the tokenizer."""

import dataclasses
import json
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from bert_jax import config as configuration
from bert_jax import tokenizers
from bert_jax.errors import BertJaxError
from bert_jax.model import TOKENIZER, Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers import Tokenizer

log = logging.getLogger("bert_jax")

# Fields of an encoder in which a checkpoint may differ from the run that starts from it: how it is trained and computed.
_MAY_DIFFER = {"dropout", "attention_dropout", "head_dropout", "init_std", "compute_dtype", "attention", "remat", "unroll",
               "with_heads", "labels", "vocab_multiple", "lora_rank", "lora_alpha", "read_layers", "combine"}

_LABELLED = ("classifier", "tagger")  # heads as wide as there are labels


def of_the_checkpoint(field: str) -> bool:
    """Whether a checkpoint decides about a field of an encoder; heads, labels, dropout and all else that says how it is trained
    and computed are the run's."""
    return field not in _MAY_DIFFER


def warm_start(
    model: Model, name: str, encoder: EncoderConfig, init: Callable[[Key[Array, ""]], api.Params], key: Key[Array, ""],
    tokenizer_hash: str | None,
) -> api.Params:
    """Host arrays for the tree of ``init``: the model's where it has them, fresh ones for other heads (one warning line).

    A head of the model that tells other classes apart, or reads states of another width, is not used, nor is a mix of other
    layers. LoRA of another rank or factor is added to the maps that it changes, and layers after the last that is read are left
    out.

    Args:
      name: what messages call the model: the checkpoint that it was loaded from.

    Raises:
      BertJaxError: the model has another tokenizer, or is another encoder than ``encoder``.
    """
    if None not in (model.tokenizer, tokenizer_hash) and model.tokenizer.hash != tokenizer_hash:
        raise BertJaxError(f"{name} has another tokenizer than the data: prepare the text with --tokenizer {name}")
    theirs, ours = (dataclasses.asdict(config) for config in (model.config, encoder))
    free = _MAY_DIFFER | ({"max_length"} if encoder.positions == model.config.positions == "relative" else set())
    differ = [field for field in ours if field not in free and ours[field] != theirs[field]]
    if differ:
        wanted = " ".join(f"--set task.encoder.{field}={_as_set(theirs[field])}" for field in differ)
        raise BertJaxError(f"{name} is another encoder than task.encoder; to start from it: {wanted}")
    if encoder.depth > model.config.depth:
        raise BertJaxError(
            f"{name} has {model.config.depth} layers, task.encoder.read_layers needs {encoder.depth}: "
            f"--set task.encoder.read_layers={_as_set(model.config.read_layers)}"
        )
    theirs, ours = (
        (config.lora_rank, config.lora_alpha) if config.lora_rank else None for config in (model.config, encoder)
    )
    found, config = (model.params, model.config) if theirs == ours else api.merged(model.params, model.config)
    for part in ("attention", "feed_forward", "lora"):
        if part in found and encoder.depth < config.depth:
            count = encoder.copies("attention" if part == "lora" else part)
            found = found | {part: jax.tree.map(lambda a: a[:count], found[part])}  # noqa: B023 (used at once)
    shapes = jax.eval_shape(init, key)
    other = [
        head for head in encoder.with_heads if head in found and _differs(head, found[head], shapes[head], config, encoder)
    ]
    for head in other:
        if head in _LABELLED and config.labels != encoder.labels:
            why = f"tells {_named(config.labels)} apart, not {_named(encoder.labels)}"
        else:
            why = "reads states of another width"
        log.warning("the head %s of %s %s: a fresh one takes its place", head, name, why)
    if "mix" in found.keys() & shapes.keys() and config.read_layers != encoder.read_layers:
        of, reads = (", ".join(map(str, one.read_layers)) for one in (config, encoder))
        log.warning("the mix of %s is of the layers %s, not %s: a fresh one takes its place", name, of, reads)
        other.append("mix")
    model = model._replace(params={part: tree for part, tree in found.items() if part not in other})
    parts = shapes.keys()
    fresh, unused = parts - model.params.keys(), model.params.keys() - parts
    if said := fresh - {*other, "lora", "mix"}:
        log.warning("%s has no head %s: it starts untrained", name, ", ".join(sorted(said)))
    if unused:
        log.warning("%s has a head %s that is not trained here and left out", name, ", ".join(sorted(unused)))
    begun = api.init_parts(init, key, fresh)
    params = {part: tree for part, tree in {**begun, **model.params}.items() if part not in unused}
    for part, leaf in (("embeddings", "token"), ("mlm", "bias")):  # the rows that only pad the vocabulary
        if part in model.params and part not in unused:
            table = np.asarray(model.params[part][leaf])[: encoder.vocab_size]
            extra = encoder.padded_vocab_size - encoder.vocab_size
            params[part] = params[part] | {leaf: np.pad(table, [(0, extra)] + [(0, 0)] * (table.ndim - 1))}
    return params


def reinitialised(
    params: api.Params, layers: int, encoder: EncoderConfig, init: Callable[[Key[Array, ""]], api.Params], key: Key[Array, ""]
) -> api.Params:
    """``params`` with the top ``layers`` and the pooler as ``init`` makes them (Zhang et al. 2021; as in their code
    the pooler comes first and goes with any number of layers). Nothing of the kind with 0."""
    if not layers:
        return params
    begun = api.init_parts(init, key, {"attention", "feed_forward", "pooler"} & params.keys())
    kept = encoder.depth - layers
    for part in ("attention", "feed_forward"):
        params = params | {part: jax.tree.map(
            lambda old, new: np.concatenate([np.asarray(old)[:kept], np.asarray(new)[kept:]]), params[part], begun[part]
        )}
    return params | ({"pooler": begun["pooler"]} if "pooler" in params else {})


def _differs(head: str, found: api.Params, shapes: api.Params, theirs: EncoderConfig, ours: EncoderConfig) -> bool:
    """Whether a head of a model cannot serve as ours. (The rows of ``mlm/bias`` that pad the vocabulary do not count.)"""
    own, wanted = ([a.shape for path, a in jax.tree.leaves_with_path(tree) if (head, path[0].key) != ("mlm", "bias")]
                   for tree in (found, shapes))
    return own != wanted or (head in _LABELLED and theirs.labels != ours.labels)


def _named(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


def save_beside(workdir: Path, tokenizer: Tokenizer) -> None:
    """Saves the tokenizer into a work directory; BertJaxError where another one lies there. No folder is renamed: a mounted
    bucket refuses that."""
    target = workdir / TOKENIZER
    if not tokenizers.is_in(target):  # or only a part of one, by a run that was killed
        tokenizer.save(target)
    elif (there := tokenizers.load(target)).hash != tokenizer.hash:
        raise BertJaxError(
            f"{workdir} was trained with tokenizer {there.hash}, the data has {tokenizer.hash}: use the same one, or another "
            "--workdir"
        )


def _as_set(value: Any) -> str:
    """As ``--set`` takes it in a shell."""
    plain = configuration.to_json(value)
    return shlex.quote(plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":")))
