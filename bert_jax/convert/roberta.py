"""RoBERTa and XLM-RoBERTa of Hugging Face transformers (Liu et al. 2019; Conneau et al. 2020): one table, two names.

Positions count on from the id of the padding piece (1): the first token has position 2. Rows 0 and 1 of the table are kept.
"""

import dataclasses

from bert_jax.convert.bert import encoder_rows, layer_places, unshared
from bert_jax.convert.table import COMMON_SETTINGS, Family, Row, Setting, affine, norm

_PAD = 1  # what transformers assumes where config.json has no pad_token_id


def _offset(settings) -> int:
    return settings.get("pad_token_id", _PAD) + 1


ROBERTA = Family(
    model_type="roberta",
    base="roberta.",
    encoder=encoder_rows("roberta."),
    heads={
        "pooler": affine("pooler/dense", "roberta.pooler.dense"),
        "mlm": (
            *affine("mlm/transform", "lm_head.dense"),
            *norm("mlm/norm", "lm_head.layer_norm"),
            Row("mlm/bias", "lm_head.bias"),
        ),
        "classifier": (
            *affine("pooler/dense", "classifier.dense"),
            *affine("classifier/dense", "classifier.out_proj"),
        ),
        "tagger": affine("tagger/dense", "classifier"),
        "choice": affine("choice/dense", "classifier"),
        "span": affine("span/dense", "qa_outputs"),
    },
    settings=(
        *COMMON_SETTINGS,
        Setting("embedding_width", "hidden_size"),
        Setting("position_offset", "pad_token_id", _PAD,
                load=lambda pad, _: pad + 1, export=lambda offset, _: offset - 1),
        Setting("max_length", "max_position_embeddings",
                load=lambda rows, settings: rows - _offset(settings),
                export=lambda length, config: length + config.position_offset),
        Setting("activation", "hidden_act", "gelu"),
        Setting("head_dropout", "classifier_dropout", optional=True),
    ),
    fixed={"share": "none", "pooler_activation": "tanh"},
    only={"position_embedding_type": "absolute"},
    architectures=(
        ("RobertaModel", ()),
        ("RobertaModel", ("pooler",)),
        ("RobertaForMaskedLM", ("mlm",)),
        ("RobertaForMaskedLM", ("pooler", "mlm")),  # has no pooler: transformers names it as unexpected and goes on
        ("RobertaForSequenceClassification", ("pooler", "classifier")),
        ("RobertaForTokenClassification", ("tagger",)),
        ("RobertaForTokenClassification", ("pooler", "tagger")),
        ("RobertaForMultipleChoice", ("pooler", "choice")),
        ("RobertaForQuestionAnswering", ("span",)),
        ("RobertaForQuestionAnswering", ("pooler", "span")),
    ),
    mlm_activation="gelu",
    places=layer_places,
    plain=unshared,
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    special_ids={"bos_token_id": "cls_id", "eos_token_id": "sep_id"},
)

XLM_ROBERTA = dataclasses.replace(
    ROBERTA,
    model_type="xlm-roberta",
    architectures=tuple((f"XLM{name}", heads) for name, heads in ROBERTA.architectures),
)
