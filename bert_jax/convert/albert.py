"""ALBERT of Hugging Face transformers (`AlbertModel`, `AlbertForPreTraining` and their kin)."""

import dataclasses

import numpy as np

from bert_jax.convert.table import (
    COMMON_SETTINGS,
    KERNEL,
    KERNEL_FROM_HEADS,
    KERNEL_TO_HEADS,
    Family,
    Row,
    Setting,
    affine,
    norm,
)
from bert_jax.models.config import EncoderConfig

_MAPPING = "albert.encoder.embedding_hidden_mapping_in."
_LAYER = "albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}."


def _plain(config: EncoderConfig) -> EncoderConfig:
    if config.share == "all":
        return config
    # A group of its own for every layer: an ALBERT that shares nothing.
    return dataclasses.replace(config, share="all", layers=config.depth, groups=config.depth, inner_layers=1)


def group_places(config: EncoderConfig) -> list[dict[str, int]]:
    """One place an inner layer of a group."""
    return [
        {"group": group, "inner": inner} for group in range(config.groups) for inner in range(config.inner_layers)
    ]


ALBERT = Family(
    model_type="albert",
    base="albert.",
    encoder=(
        Row("embeddings/token", "albert.embeddings.word_embeddings.weight"),
        Row("embeddings/position", "albert.embeddings.position_embeddings.weight"),
        Row("embeddings/segment", "albert.embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "albert.embeddings.LayerNorm"),
        # transformers maps embeddings to the hidden width even where the two are equal; we do so only where they differ.
        Row("embeddings/projection/kernel", _MAPPING + "weight", KERNEL, absent=lambda c: np.eye(c.hidden_width)),
        Row("embeddings/projection/bias", _MAPPING + "bias", absent=lambda c: np.zeros(c.hidden_width)),
        *affine("attention/query", _LAYER + "attention.query", KERNEL_TO_HEADS),
        *affine("attention/key", _LAYER + "attention.key", KERNEL_TO_HEADS),
        *affine("attention/value", _LAYER + "attention.value", KERNEL_TO_HEADS),
        *affine("attention/output", _LAYER + "attention.dense", KERNEL_FROM_HEADS),
        *norm("attention/norm", _LAYER + "attention.LayerNorm"),
        *affine("feed_forward/intermediate", _LAYER + "ffn"),
        *affine("feed_forward/output", _LAYER + "ffn_output"),
        *norm("feed_forward/norm", _LAYER + "full_layer_layer_norm"),
    ),
    heads={
        "pooler": affine("pooler/dense", "albert.pooler"),
        "mlm": (
            *affine("mlm/transform", "predictions.dense"),
            *norm("mlm/norm", "predictions.LayerNorm"),
            Row("mlm/bias", "predictions.bias"),
        ),
        "pair": affine("pair/dense", "sop_classifier.classifier"),
        "classifier": affine("classifier/dense", "classifier"),
        "tagger": affine("tagger/dense", "classifier"),
        "choice": affine("choice/dense", "classifier"),
        "span": affine("span/dense", "qa_outputs"),
    },
    settings=(
        *(setting for setting in COMMON_SETTINGS if "dropout" not in setting.ours),
        Setting("embedding_width", "embedding_size", 128),
        Setting("max_length", "max_position_embeddings"),
        Setting("groups", "num_hidden_groups", 1),
        Setting("inner_layers", "inner_group_num", 1),
        Setting("activation", "hidden_act", "gelu_new"),
        Setting("dropout", "hidden_dropout_prob", 0.0),
        Setting("attention_dropout", "attention_probs_dropout_prob", 0.0),
        Setting("head_dropout", "classifier_dropout_prob", 0.1,
                load=lambda rate, settings: None if rate == settings.get("hidden_dropout_prob", 0.0) else rate,
                export=lambda rate, config: config.dropout if rate is None else rate),
    ),
    fixed={"share": "all", "position_offset": 0, "pooler_activation": "tanh"},
    only={"position_embedding_type": "absolute"},
    architectures=(
        # There is no class with the pair head alone.
        ("AlbertModel", ()),
        ("AlbertModel", ("pooler",)),
        ("AlbertForPreTraining", ("pooler", "mlm", "pair")),
        ("AlbertForMaskedLM", ("mlm",)),
        ("AlbertForMaskedLM", ("pooler", "mlm")),  # has no pooler: transformers names it as unexpected and goes on
        ("AlbertForSequenceClassification", ("pooler", "classifier")),
        ("AlbertForTokenClassification", ("tagger",)),
        ("AlbertForTokenClassification", ("pooler", "tagger")),
        ("AlbertForMultipleChoice", ("pooler", "choice")),
        ("AlbertForQuestionAnswering", ("span",)),
        ("AlbertForQuestionAnswering", ("pooler", "span")),
    ),
    places=group_places,
    plain=_plain,
    tied={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    special_ids={"pad_token_id": "pad_id", "bos_token_id": "cls_id", "eos_token_id": "sep_id"},
    factorised=True,
)
