"""ALBERT of Hugging Face transformers (`AlbertModel`, `AlbertForPreTraining` and their kin)."""

import dataclasses

import numpy as np

from bert_jax.convert.table import BIAS_OF_HEADS, KERNEL, KERNEL_FROM_HEADS, KERNEL_TO_HEADS, Family, Row, Setting
from bert_jax.models.config import EncoderConfig

_MAPPING = "albert.encoder.embedding_hidden_mapping_in."
_LAYER = "albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}."

ROWS = (
    Row("embeddings/token", "albert.embeddings.word_embeddings.weight"),
    Row("embeddings/position", "albert.embeddings.position_embeddings.weight"),
    Row("embeddings/segment", "albert.embeddings.token_type_embeddings.weight"),
    Row("embeddings/norm/scale", "albert.embeddings.LayerNorm.weight"),
    Row("embeddings/norm/bias", "albert.embeddings.LayerNorm.bias"),
    # transformers maps embeddings to the hidden width even where the two are equal; we do so only where they differ.
    Row("embeddings/projection/kernel", _MAPPING + "weight", KERNEL, absent=lambda c: np.eye(c.hidden_width)),
    Row("embeddings/projection/bias", _MAPPING + "bias", absent=lambda c: np.zeros(c.hidden_width)),
    Row("attention/query/kernel", _LAYER + "attention.query.weight", KERNEL_TO_HEADS),
    Row("attention/query/bias", _LAYER + "attention.query.bias", BIAS_OF_HEADS),
    Row("attention/key/kernel", _LAYER + "attention.key.weight", KERNEL_TO_HEADS),
    Row("attention/key/bias", _LAYER + "attention.key.bias", BIAS_OF_HEADS),
    Row("attention/value/kernel", _LAYER + "attention.value.weight", KERNEL_TO_HEADS),
    Row("attention/value/bias", _LAYER + "attention.value.bias", BIAS_OF_HEADS),
    Row("attention/output/kernel", _LAYER + "attention.dense.weight", KERNEL_FROM_HEADS),
    Row("attention/output/bias", _LAYER + "attention.dense.bias"),
    Row("attention/norm/scale", _LAYER + "attention.LayerNorm.weight"),
    Row("attention/norm/bias", _LAYER + "attention.LayerNorm.bias"),
    Row("feed_forward/intermediate/kernel", _LAYER + "ffn.weight", KERNEL),
    Row("feed_forward/intermediate/bias", _LAYER + "ffn.bias"),
    Row("feed_forward/output/kernel", _LAYER + "ffn_output.weight", KERNEL),
    Row("feed_forward/output/bias", _LAYER + "ffn_output.bias"),
    Row("feed_forward/norm/scale", _LAYER + "full_layer_layer_norm.weight"),
    Row("feed_forward/norm/bias", _LAYER + "full_layer_layer_norm.bias"),
    Row("pooler/dense/kernel", "albert.pooler.weight", KERNEL),
    Row("pooler/dense/bias", "albert.pooler.bias"),
    Row("mlm/transform/kernel", "predictions.dense.weight", KERNEL),
    Row("mlm/transform/bias", "predictions.dense.bias"),
    Row("mlm/norm/scale", "predictions.LayerNorm.weight"),
    Row("mlm/norm/bias", "predictions.LayerNorm.bias"),
    Row("mlm/bias", "predictions.bias"),
    Row("pair/dense/kernel", "sop_classifier.classifier.weight", KERNEL),
    Row("pair/dense/bias", "sop_classifier.classifier.bias"),
)

SETTINGS = (
    Setting("vocab_size", "vocab_size"),
    Setting("embedding_width", "embedding_size"),
    Setting("hidden_width", "hidden_size"),
    Setting("layers", "num_hidden_layers"),
    Setting("groups", "num_hidden_groups", 1),
    Setting("inner_layers", "inner_group_num", 1),
    Setting("heads", "num_attention_heads"),
    Setting("ffn_width", "intermediate_size"),
    Setting("max_length", "max_position_embeddings"),
    Setting("segments", "type_vocab_size", 2),
    Setting("activation", "hidden_act", "gelu_new"),
    Setting("dropout", "hidden_dropout_prob", 0.0),
    Setting("attention_dropout", "attention_probs_dropout_prob", 0.0),
    Setting("norm_eps", "layer_norm_eps", 1e-12),
    Setting("init_std", "initializer_range", 0.02),
)

# There is no class with the pair head alone.
ARCHITECTURES = {
    (): "AlbertModel",
    ("pooler",): "AlbertModel",
    ("mlm",): "AlbertForMaskedLM",
    ("pooler", "mlm"): "AlbertForMaskedLM",  # which has no pooler: transformers names it as unexpected and goes on
    ("pooler", "mlm", "pair"): "AlbertForPreTraining",
}


def _plain(config: EncoderConfig) -> EncoderConfig:
    if config.share == "all":
        return config
    # A group of its own for every layer: an ALBERT that shares nothing.
    return dataclasses.replace(config, share="all", layers=config.depth, groups=config.depth, inner_layers=1)


def _places(config: EncoderConfig) -> list[dict[str, int]]:
    return [
        {"group": group, "inner": inner} for group in range(config.groups) for inner in range(config.inner_layers)
    ]


ALBERT = Family(
    model_type="albert",
    base="albert.",
    rows=ROWS,
    settings=SETTINGS,
    fixed={"share": "all"},
    architectures=ARCHITECTURES,
    plain=_plain,
    places=_places,
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    special_ids={"pad_token_id": "pad_id", "bos_token_id": "cls_id", "eos_token_id": "sep_id"},
)
