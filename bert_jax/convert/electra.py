"""ELECTRA of Hugging Face transformers (Clark et al. 2020): generator, discriminator, and fine-tuned heads."""

from bert_jax.convert.bert import encoder_rows, layer_places, unshared
from bert_jax.convert.table import COMMON_SETTINGS, Family, Row, Setting, affine, norm

ELECTRA = Family(
    model_type="electra",
    base="electra.",
    encoder=(*encoder_rows("electra."), *affine("embeddings/projection", "electra.embeddings_project")),
    heads={
        "pooler": (),  # only with the heads that bring it
        "mlm": (
            *affine("mlm/transform", "generator_predictions.dense"),
            *norm("mlm/norm", "generator_predictions.LayerNorm"),
            Row("mlm/bias", "generator_lm_head.bias"),
        ),
        "discriminator": (
            *affine("discriminator/transform", "discriminator_predictions.dense"),
            *affine("discriminator/output", "discriminator_predictions.dense_prediction"),
        ),
        "classifier": (
            *affine("pooler/dense", "classifier.dense"),
            *affine("classifier/dense", "classifier.out_proj"),
        ),
        "tagger": affine("tagger/dense", "classifier"),
        "choice": (
            *affine("pooler/dense", "sequence_summary.summary"),
            *affine("choice/dense", "classifier"),
        ),
        "span": affine("span/dense", "qa_outputs"),
    },
    settings=(
        *COMMON_SETTINGS,
        Setting("embedding_width", "embedding_size", 128),
        Setting("max_length", "max_position_embeddings"),
        Setting("activation", "hidden_act", "gelu"),
        Setting("head_dropout", "classifier_dropout", optional=True),
    ),
    # transformers writes the activation of both heads into its code, whatever hidden_act says.
    fixed={"share": "none", "position_offset": 0, "pooler_activation": "gelu"},
    only={
        "position_embedding_type": "absolute", "summary_type": "first", "summary_use_proj": True,
        "summary_activation": "gelu",
    },
    architectures=(
        ("ElectraModel", ()),
        ("ElectraForPreTraining", ("discriminator",)),
        ("ElectraForMaskedLM", ("mlm",)),
        ("ElectraForSequenceClassification", ("pooler", "classifier")),
        ("ElectraForTokenClassification", ("tagger",)),
        ("ElectraForMultipleChoice", ("pooler", "choice")),
        ("ElectraForQuestionAnswering", ("span",)),
    ),
    mlm_activation="gelu",
    places=layer_places,
    plain=unshared,
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    special_ids={"pad_token_id": "pad_id"},
    factorised=True,
)
