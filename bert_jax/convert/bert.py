"""BERT of Hugging Face transformers (`BertModel`, `BertForPreTraining` and their kin)."""

import dataclasses

from bert_jax.convert.table import BIAS_OF_HEADS, KERNEL, KERNEL_FROM_HEADS, KERNEL_TO_HEADS, Family, Row, Setting
from bert_jax.models.config import EncoderConfig

_LAYER = "bert.encoder.layer.{layer}."

ROWS = (
    Row("embeddings/token", "bert.embeddings.word_embeddings.weight"),
    Row("embeddings/position", "bert.embeddings.position_embeddings.weight"),
    Row("embeddings/segment", "bert.embeddings.token_type_embeddings.weight"),
    Row("embeddings/norm/scale", "bert.embeddings.LayerNorm.weight"),
    Row("embeddings/norm/bias", "bert.embeddings.LayerNorm.bias"),
    Row("attention/query/kernel", _LAYER + "attention.self.query.weight", KERNEL_TO_HEADS),
    Row("attention/query/bias", _LAYER + "attention.self.query.bias", BIAS_OF_HEADS),
    Row("attention/key/kernel", _LAYER + "attention.self.key.weight", KERNEL_TO_HEADS),
    Row("attention/key/bias", _LAYER + "attention.self.key.bias", BIAS_OF_HEADS),
    Row("attention/value/kernel", _LAYER + "attention.self.value.weight", KERNEL_TO_HEADS),
    Row("attention/value/bias", _LAYER + "attention.self.value.bias", BIAS_OF_HEADS),
    Row("attention/output/kernel", _LAYER + "attention.output.dense.weight", KERNEL_FROM_HEADS),
    Row("attention/output/bias", _LAYER + "attention.output.dense.bias"),
    Row("attention/norm/scale", _LAYER + "attention.output.LayerNorm.weight"),
    Row("attention/norm/bias", _LAYER + "attention.output.LayerNorm.bias"),
    Row("feed_forward/intermediate/kernel", _LAYER + "intermediate.dense.weight", KERNEL),
    Row("feed_forward/intermediate/bias", _LAYER + "intermediate.dense.bias"),
    Row("feed_forward/output/kernel", _LAYER + "output.dense.weight", KERNEL),
    Row("feed_forward/output/bias", _LAYER + "output.dense.bias"),
    Row("feed_forward/norm/scale", _LAYER + "output.LayerNorm.weight"),
    Row("feed_forward/norm/bias", _LAYER + "output.LayerNorm.bias"),
    Row("pooler/dense/kernel", "bert.pooler.dense.weight", KERNEL),
    Row("pooler/dense/bias", "bert.pooler.dense.bias"),
    Row("mlm/transform/kernel", "cls.predictions.transform.dense.weight", KERNEL),
    Row("mlm/transform/bias", "cls.predictions.transform.dense.bias"),
    Row("mlm/norm/scale", "cls.predictions.transform.LayerNorm.weight"),
    Row("mlm/norm/bias", "cls.predictions.transform.LayerNorm.bias"),
    Row("mlm/bias", "cls.predictions.bias"),
    Row("pair/dense/kernel", "cls.seq_relationship.weight", KERNEL),
    Row("pair/dense/bias", "cls.seq_relationship.bias"),
)

SETTINGS = (
    Setting("vocab_size", "vocab_size"),
    Setting("embedding_width", "hidden_size"),
    Setting("hidden_width", "hidden_size"),
    Setting("layers", "num_hidden_layers"),
    Setting("heads", "num_attention_heads"),
    Setting("ffn_width", "intermediate_size"),
    Setting("max_length", "max_position_embeddings"),
    Setting("segments", "type_vocab_size", 2),
    Setting("activation", "hidden_act", "gelu"),
    Setting("dropout", "hidden_dropout_prob", 0.1),
    Setting("attention_dropout", "attention_probs_dropout_prob", 0.1),
    Setting("norm_eps", "layer_norm_eps", 1e-12),
    Setting("init_std", "initializer_range", 0.02),
)

ARCHITECTURES = {
    (): "BertModel",
    ("pooler",): "BertModel",
    ("mlm",): "BertForMaskedLM",
    ("pooler", "mlm"): "BertForMaskedLM",  # which has no pooler: transformers names it as unexpected and goes on
    ("pooler", "pair"): "BertForNextSentencePrediction",
    ("pooler", "mlm", "pair"): "BertForPreTraining",
}


def _plain(config: EncoderConfig) -> EncoderConfig:
    return dataclasses.replace(config, share="none", layers=config.depth, groups=1, inner_layers=1)


def _places(config: EncoderConfig) -> list[dict[str, int]]:
    return [{"layer": layer} for layer in range(config.layers)]


BERT = Family(
    model_type="bert",
    base="bert.",
    rows=ROWS,
    settings=SETTINGS,
    fixed={"share": "none"},
    architectures=ARCHITECTURES,
    plain=_plain,
    places=_places,
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    special_ids={"pad_token_id": "pad_id"},
)
