"""TensorFlow checkpoints: their settings, from the file beside them and the shapes of their variables, and their plan."""

import logging
import os
from pathlib import Path
from typing import Any

from bert_jax.convert.bundle import TensorBundle, find_prefix
from bert_jax.convert.reading import Origin, Plan, make_plan
from bert_jax.convert.settings import FAMILIES, read_settings
from bert_jax.convert.tensorflow_names import MARKERS, Naming, recognise
from bert_jax.errors import BertJaxError
from bert_jax.files import read_json
from bert_jax.models.heads import HEADS

logger = logging.getLogger("bert_jax")


def plan(path: str | os.PathLike, part: str | None = None) -> Plan:
    """What reading a checkpoint will do, from its index and settings alone.

    Args:
      path: its folder, the prefix of its files, or its .index file.
      part: "discriminator" or "generator" of an ELECTRA; None: the discriminator, with one warning line.

    Raises:
      BertJaxError: no or several checkpoints, names of no model that is known, settings that contradict the variables, or a
        part that is not there.
    """
    prefix = find_prefix(path) if Path(path).is_dir() else Path(path)
    if prefix is None:
        raise BertJaxError(f"{path} holds no TensorFlow checkpoint (NAME.index)")
    bundle = TensorBundle(prefix)
    namings = {_part(naming): naming for naming in recognise(bundle)}
    if part is None and len(namings) > 1:
        logger.warning("%s: the discriminator is read; put #generator behind the path for the other model", bundle.path)
    if part is not None and part not in namings:
        raise BertJaxError(f"{bundle.path} has no part {part!r}: {', '.join(namings)} is there")
    naming = namings[part] if part else next(iter(namings.values()))
    settings = read_config(bundle.path.parent, bundle, naming)
    names, heads = naming.to_table(bundle.shapes), naming.heads_in(bundle.shapes)
    heads = tuple(head for head in HEADS if head in heads)
    labels: tuple[str, ...] = ()
    if "classifier" in heads:
        row = next(row for row in naming.heads["classifier"] if row.ours == "classifier/dense/bias")
        labels = tuple(f"LABEL_{i}" for i in range(bundle.shapes[names[row.theirs]][0]))
    family = next(family for family in FAMILIES if family.model_type == naming.model_type)
    config = read_settings(settings, family, heads, labels, bundle.path)
    rows = [*naming.encoder, *(row for head in heads for row in naming.heads[head])]
    dtype = bundle.dtypes[names[naming.table_name(MARKERS[0])]].name
    origin = Origin(naming.model_type, settings, heads, dtype)
    return make_plan(bundle, names, config, origin, rows, naming.places(config), {}, naming.ignored)


def _part(naming: Naming) -> str:
    return "generator" if "generator" in naming.name else "discriminator" if naming.model_type == "electra" else "encoder"


def read_config(directory: str | os.PathLike, bundle: TensorBundle, naming: Naming) -> dict[str, Any]:
    """The settings of a checkpoint's model, with the keys and meanings of Hugging Face's config.json.

    Sizes come from the variables, and the file (`bert_config.json`, `albert_config.json`, NAME.config.json, or the only
    `*config*.json` in the folder) must agree with them. Layer norms have epsilon 1e-12 in all these code bases. What no file
    states and no shape shows is assumed, with a warning: heads of width 64, as in every model that google-research released
    without a file, and the dropout rates of the paper.

    Args:
      directory: where to look for the file.
      naming: of :func:`recognise`. An ELECTRA generator has no file: one that lies there describes the discriminator.

    Raises:
      BertJaxError: several files, one that is not JSON or contradicts the variables, a variable that every such model has is
        missing or has the wrong number of axes, or an ALBERT without a file, whose depth its shared layers do not show.
    """
    settings = {"model_type": naming.model_type, **_measure(bundle, naming), "layer_norm_eps": 1e-12}
    path = _config_file(Path(directory), bundle, naming)
    stated = read_json(path) if path else {}
    for key, value in settings.items():
        if stated.get(key) not in (None, value):
            raise BertJaxError(
                f"{path} says {key} {stated[key]}, {bundle.path.name} and its code {value}: it belongs to another model"
            )
    assumed = {
        "num_attention_heads": max(1, settings["hidden_size"] // 64),
        "hidden_act": "gelu",
        "hidden_dropout_prob": naming.dropout,
        "attention_probs_dropout_prob": naming.dropout,
        "initializer_range": 0.02,
    }
    if naming.model_type == "albert":
        assumed["num_hidden_layers"] = None
    settings |= {key: stated[key] for key in assumed if key in stated}
    if missing := {key: value for key, value in assumed.items() if key not in settings}:
        if "num_hidden_layers" in missing:
            raise BertJaxError(
                f"{path or directory} does not say num_hidden_layers, and the variables of an ALBERT do not show it: "
                f"put its albert_config.json beside {bundle.path.name}"
            )
        words = ", ".join(f"{key} {value}" for key, value in missing.items())
        logger.warning("%s: no file beside it states %s: assumed", bundle.path, words)
    settings |= missing
    if settings["hidden_act"] == "gelu" and naming.gelu != "gelu":
        settings["hidden_act"] = naming.gelu
        if naming.model_type == "bert":
            logger.warning(
                "%s: its gelu is read as the tanh form (gelu_new) that the code has today; Google's releases of 2018 were "
                "trained with the erf form: for those set hidden_act to gelu after converting", bundle.path,
            )
    return settings


def _measure(bundle: TensorBundle, naming: Naming) -> dict[str, int]:
    """The settings that shapes show."""
    there = naming.to_table(bundle.shapes)

    def shape(ours: str, *axes: int) -> tuple[int, ...]:
        name = naming.table_name(ours, layer=0, group=0, inner=0)
        found = bundle.shapes[there[name]] if name in there else None
        if found is None or len(found) not in axes:
            raise BertJaxError(f"{bundle.path}: {name} is {'missing' if found is None else list(found)}")
        return found

    def count(brace: str) -> int:
        number = 0
        place = dict(layer=0, group=0, inner=0)
        while naming.table_name(MARKERS[1], **place | {brace: number}) in there:
            number += 1
        return number

    vocabulary, embedding = shape("embeddings/token", 2)
    query = shape("attention/query/kernel", 2, 3)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": query[0],
        "intermediate_size": shape("feed_forward/intermediate/kernel", 2)[1],
        "max_position_embeddings": shape("embeddings/position", 2)[0],
        "type_vocab_size": shape("embeddings/segment", 2)[0],
    }
    if naming.model_type == "albert":
        sizes |= {"num_hidden_groups": count("group"), "inner_group_num": count("inner")}
    else:
        sizes["num_hidden_layers"] = count("layer")
    if naming.model_type != "bert":
        sizes["embedding_size"] = embedding
    elif embedding != query[0]:
        raise BertJaxError(
            f"{bundle.path}: embeddings of width {embedding} in a BERT of width {query[0]} are not supported"
        )
    if len(query) == 3:
        sizes["num_attention_heads"] = query[1]
    return sizes


def _config_file(directory: Path, bundle: TensorBundle, naming: Naming) -> Path | None:
    if not naming.config_files:
        return None
    for name in (f"{bundle.path.name}.config.json", *naming.config_files, "config.json"):
        if (directory / name).is_file():
            return directory / name
    others = sorted(path for path in directory.glob("*config*.json") if path.name != "tokenizer_config.json")
    if len(others) > 1:
        raise BertJaxError(
            f"{directory} holds {', '.join(path.name for path in others)}: name the one of {bundle.path.name} "
            f"{naming.config_files[0]}"
        )
    return others[0] if others else None
