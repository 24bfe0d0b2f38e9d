"""The settings in config.json of a Hugging Face directory: read, written, and kept where they still hold."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.config import from_json, to_json
from bert_jax.convert.albert import ALBERT
from bert_jax.convert.bert import BERT
from bert_jax.convert.distilbert import DISTILBERT
from bert_jax.convert.electra import ELECTRA
from bert_jax.convert.reading import NOTES, PREDICTOR, Origin
from bert_jax.convert.roberta import ROBERTA, XLM_ROBERTA
from bert_jax.convert.table import Family
from bert_jax.convert.xlnet import XLNET
from bert_jax.errors import BertJaxError
from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import HEADS
from bert_jax.tokenizers import Tokenizer

logger = logging.getLogger("bert_jax")

FAMILIES = (BERT, ALBERT, ELECTRA, ROBERTA, DISTILBERT, XLM_ROBERTA, XLNET)
CONFIG = "config.json"

# Names in transformers for one of our forms: the tanh forms differ by float rounding at most.
_ACTIVATIONS = {
    "gelu_python": "gelu", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu_python_tanh": "gelu_new",
}
# Settings whose other values make a different model, in every family.
_NULL_IS_ANOTHER = ("summary_activation",)  # where null means something, and not the default
_ONLY = {"is_decoder": False, "add_cross_attention": False, "pruned_heads": {}, "is_encoder_decoder": False}


def family_of(config: EncoderConfig, origin: Origin | None) -> Family:
    """The family in which a model is written; see :func:`bert_jax.convert.hf.export`.

    Raises:
      BertJaxError: no family has a form of it.
    """
    own = next((family for family in FAMILIES if origin and family.model_type == origin.family), None)
    if own and not any(own.reasons_against(config)):
        return own
    if config.positions == "relative":
        likeliest, others = XLNET, ()
    elif config.share == "all":
        likeliest, others = ALBERT, ()
    elif config.embedding_width != config.hidden_width:
        likeliest, others = ELECTRA, (ALBERT,)
    else:
        likeliest, others = BERT, (ELECTRA, ROBERTA, DISTILBERT)
    for family in (likeliest, *others):
        if not any(family.reasons_against(config)) and family.computes_mlm_head_of(config):
            return family
    reasons = [*likeliest.reasons_against(config), "the masked-language-model head has another activation than the encoder"]
    raise BertJaxError(f"transformers has no such model: {reasons[0]}")


def plain_form(config: EncoderConfig, family: Family) -> EncoderConfig:
    """The same function in its family's own terms; all that its config.json cannot say has its default."""
    default = {field.name: field.default for field in dataclasses.fields(EncoderConfig)}
    unsaid = {name: default[name] for name in ("vocab_multiple", "compute_dtype", "attention", "remat", "unroll")}
    heads = tuple(head for head in HEADS if head in config.with_heads)
    labels = config.labels if {"classifier", "tagger"} & set(heads) else ()
    return dataclasses.replace(family.plain(config), **unsaid, with_heads=heads, labels=labels)


def write_settings(config: EncoderConfig, tokenizer: Tokenizer | None, origin: Origin | None, dtype: str) -> dict:
    family = family_of(config, origin)
    plain = plain_form(config, family)
    if not family.computes_mlm_head_of(plain):
        logger.warning(
            "transformers computes the masked-language-model head of %s with %s, whatever config.json says; here it is %s",
            family.model_type, family.mlm_activation or plain.activation, plain.mlm_activation or plain.activation,
        )
    settings = {
        "architectures": [family.architecture(plain.with_heads)],
        "model_type": family.model_type,
        "dtype": dtype,
        "tie_word_embeddings": True,
    }
    settings |= {setting.theirs: setting.export(getattr(plain, setting.ours), plain) for setting in family.settings}
    if plain.labels:
        settings["id2label"] = {str(i): label for i, label in enumerate(plain.labels)}
        settings["label2id"] = {label: i for i, label in enumerate(plain.labels)}
    if "classifier" in plain.with_heads and len(plain.labels) == 1:  # else pipelines answer with a sigmoid of the value
        settings["problem_type"] = "regression"
    if tokenizer is not None:
        settings |= {key: getattr(tokenizer, attribute) for key, attribute in family.special_ids.items()}
    if origin is not None and origin.settings and origin.family == family.model_type:
        settings = _amended(origin, settings, plain, family, dtype)
    said = to_json(read_settings(settings, family, plain.with_heads, plain.labels, Path(CONFIG)))
    if notes := {name: value for name, value in to_json(config).items() if value != said[name]}:
        settings[NOTES] = notes
    return settings


def _amended(origin: Origin, settings: dict, plain: EncoderConfig, family: Family, dtype: str) -> dict:
    """The config.json that a model came with, changed only where the model has changed."""
    base = {key: value for key, value in origin.settings.items() if key != NOTES}
    before = _fields(base, family)
    changed = {setting.theirs for setting in family.settings if before[setting.ours] != getattr(plain, setting.ours)}
    promised = [set(heads) for name, heads in family.architectures if name in (base.get("architectures") or ())]
    if origin.heads != plain.with_heads or not promised or not promised[0] <= set(plain.with_heads):
        changed.add("architectures")  # which may also have promised what was not there to be read
    if "model_type" not in base:
        changed.add("model_type")
    named = {str(i): label for i, label in enumerate(plain.labels)}
    if plain.labels and base.get("id2label") != named:
        changed |= {"id2label", "label2id"}
        base.pop("num_labels", None)
    if origin.heads != plain.with_heads:  # what an answer of the heads that it had was made of, and their loss
        base = {key: value for key, value in base.items() if key not in (PREDICTOR, "problem_type")}
        changed |= {"problem_type"} & settings.keys()
    if "span" in plain.with_heads and "span" not in origin.heads:  # transformers makes a span's two outputs by num_labels
        base = {key: value for key, value in base.items() if key not in ("id2label", "label2id", "num_labels")}
    amended = base | {key: settings[key] for key in changed}
    if dtype != origin.dtype or {"dtype", "torch_dtype"} & amended.keys():
        amended["torch_dtype" if "torch_dtype" in amended else "dtype"] = dtype
    return amended


def _fields(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Our fields from their settings; None where a needed one is missing."""
    fields = {}
    for ours, theirs, default, optional, convert, _ in family.settings:
        value = settings.get(theirs, default)
        try:
            fields[ours] = None if value is None and not optional else convert(value, settings)
        except TypeError:
            raise BertJaxError(f"{theirs} is {value!r}: a number is needed") from None
    if isinstance(fields["activation"], str):
        fields["activation"] = _ACTIVATIONS.get(fields["activation"], fields["activation"])
    return fields


def read_settings(
    settings: Mapping[str, Any], family: Family, heads: tuple[str, ...], labels: tuple[str, ...], path: Path
) -> EncoderConfig:
    only = _ONLY | family.only | ({"tie_word_embeddings": True} if "mlm" in heads else {})
    for name, value in only.items():
        if settings.get(name, value) not in (value, None) or (
            settings.get(name, value) is None and name in _NULL_IS_ANOTHER and "choice" in heads
        ):
            raise BertJaxError(f"{path}: {name} is {settings[name]!r}, only {value!r} can be read")
    for _, theirs, default, optional, *_ in family.settings:
        if settings.get(theirs, default) is None and not optional:
            raise BertJaxError(f"{path}: {theirs} is missing, it is needed for the shape of the encoder")
    try:
        data = family.fixed | _fields(settings, family) | {"with_heads": list(heads), "labels": list(labels)}
        if "mlm" in heads and family.mlm_activation != data["activation"]:
            data["mlm_activation"] = family.mlm_activation
        return from_json(EncoderConfig, data, str(path))
    except BertJaxError as error:
        raise error if str(path) in error.args[0] else BertJaxError(f"{path}: {error}") from error
