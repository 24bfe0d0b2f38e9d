"""BERT of Hugging Face transformers (`BertModel`, `BertForPreTraining` and their kin).

MiniLM, TinyBERT, E5, BGE and whatever else says ``"model_type": "bert"`` with absolute positions is this family.
"""

import dataclasses

from bert_jax.convert.table import (
    COMMON_SETTINGS,
    KERNEL_FROM_HEADS,
    KERNEL_TO_HEADS,
    Family,
    Row,
    Setting,
    affine,
    norm,
)
from bert_jax.models.config import EncoderConfig


def encoder_rows(base: str) -> tuple[Row, ...]:
    """The rows of BERT's encoder, whose names ELECTRA and RoBERTa repeat behind another prefix."""
    layer = base + "encoder.layer.{layer}."
    return (
        Row("embeddings/token", base + "embeddings.word_embeddings.weight"),
        Row("embeddings/position", base + "embeddings.position_embeddings.weight"),
        Row("embeddings/segment", base + "embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", base + "embeddings.LayerNorm"),
        *affine("attention/query", layer + "attention.self.query", KERNEL_TO_HEADS),
        *affine("attention/key", layer + "attention.self.key", KERNEL_TO_HEADS),
        *affine("attention/value", layer + "attention.self.value", KERNEL_TO_HEADS),
        *affine("attention/output", layer + "attention.output.dense", KERNEL_FROM_HEADS),
        *norm("attention/norm", layer + "attention.output.LayerNorm"),
        *affine("feed_forward/intermediate", layer + "intermediate.dense"),
        *affine("feed_forward/output", layer + "output.dense"),
        *norm("feed_forward/norm", layer + "output.LayerNorm"),
    )


def layer_places(config: EncoderConfig) -> list[dict[str, int]]:
    """One place a layer."""
    return [{"layer": layer} for layer in range(config.layers)]


def unshared(config: EncoderConfig) -> EncoderConfig:
    """The same function with a set of parameters for every layer."""
    return dataclasses.replace(config, share="none", layers=config.depth, groups=1, inner_layers=1)


BERT = Family(
    model_type="bert",
    base="bert.",
    encoder=encoder_rows("bert."),
    heads={
        "pooler": affine("pooler/dense", "bert.pooler.dense"),
        "mlm": (
            *affine("mlm/transform", "cls.predictions.transform.dense"),
            *norm("mlm/norm", "cls.predictions.transform.LayerNorm"),
            Row("mlm/bias", "cls.predictions.bias"),
        ),
        "pair": affine("pair/dense", "cls.seq_relationship"),
        "classifier": affine("classifier/dense", "classifier"),
        "tagger": affine("tagger/dense", "classifier"),
        "choice": affine("choice/dense", "classifier"),
        "span": affine("span/dense", "qa_outputs"),
    },
    settings=(
        *COMMON_SETTINGS,
        Setting("embedding_width", "hidden_size"),
        Setting("max_length", "max_position_embeddings"),
        Setting("activation", "hidden_act", "gelu"),
        Setting("head_dropout", "classifier_dropout", optional=True),
    ),
    fixed={"share": "none", "position_offset": 0, "pooler_activation": "tanh"},
    only={"position_embedding_type": "absolute"},
    architectures=(
        ("BertModel", ()),
        ("BertModel", ("pooler",)),
        ("BertForPreTraining", ("pooler", "mlm", "pair")),
        ("BertForMaskedLM", ("mlm",)),
        ("BertForMaskedLM", ("pooler", "mlm")),  # has no pooler: transformers names it as unexpected and goes on
        ("BertForNextSentencePrediction", ("pooler", "pair")),
        ("BertForSequenceClassification", ("pooler", "classifier")),
        ("BertForTokenClassification", ("tagger",)),
        ("BertForTokenClassification", ("pooler", "tagger")),
        ("BertForMultipleChoice", ("pooler", "choice")),
        ("BertForQuestionAnswering", ("span",)),
        ("BertForQuestionAnswering", ("pooler", "span")),
    ),
    places=layer_places,
    plain=unshared,
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    special_ids={"pad_token_id": "pad_id"},
)
