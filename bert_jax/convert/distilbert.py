"""DistilBERT of Hugging Face transformers (Sanh et al. 2019): no segments, no pooler, names of its own."""

from bert_jax.convert.bert import layer_places, unshared
from bert_jax.convert.table import KERNEL_FROM_HEADS, KERNEL_TO_HEADS, Family, Row, Setting, affine, norm

_LAYER = "distilbert.transformer.layer.{layer}."

DISTILBERT = Family(
    model_type="distilbert",
    base="distilbert.",
    encoder=(
        Row("embeddings/token", "distilbert.embeddings.word_embeddings.weight"),
        Row("embeddings/position", "distilbert.embeddings.position_embeddings.weight"),
        *norm("embeddings/norm", "distilbert.embeddings.LayerNorm"),
        *affine("attention/query", _LAYER + "attention.q_lin", KERNEL_TO_HEADS),
        *affine("attention/key", _LAYER + "attention.k_lin", KERNEL_TO_HEADS),
        *affine("attention/value", _LAYER + "attention.v_lin", KERNEL_TO_HEADS),
        *affine("attention/output", _LAYER + "attention.out_lin", KERNEL_FROM_HEADS),
        *norm("attention/norm", _LAYER + "sa_layer_norm"),
        *affine("feed_forward/intermediate", _LAYER + "ffn.lin1"),
        *affine("feed_forward/output", _LAYER + "ffn.lin2"),
        *norm("feed_forward/norm", _LAYER + "output_layer_norm"),
    ),
    heads={
        "pooler": (),  # only with the heads that bring it
        "mlm": (
            *affine("mlm/transform", "vocab_transform"),
            *norm("mlm/norm", "vocab_layer_norm"),
            Row("mlm/bias", "vocab_projector.bias"),
        ),
        "classifier": (*affine("pooler/dense", "pre_classifier"), *affine("classifier/dense", "classifier")),
        "tagger": affine("tagger/dense", "classifier"),
        "choice": (*affine("pooler/dense", "pre_classifier"), *affine("choice/dense", "classifier")),
        "span": affine("span/dense", "qa_outputs"),
    },
    settings=(
        Setting("vocab_size", "vocab_size"),
        Setting("embedding_width", "dim", 768),
        Setting("hidden_width", "dim", 768),
        Setting("layers", "n_layers", 6),
        Setting("heads", "n_heads", 12),
        Setting("ffn_width", "hidden_dim", 3072),
        Setting("max_length", "max_position_embeddings", 512),
        Setting("activation", "activation", "gelu"),
        Setting("dropout", "dropout", 0.1),
        Setting("attention_dropout", "attention_dropout", 0.1),
        Setting("head_dropout", "seq_classif_dropout", 0.2,
                load=lambda rate, settings: None if rate == settings.get("dropout", 0.1) else rate,
                export=lambda rate, config: config.dropout if rate is None else rate),
        Setting("init_std", "initializer_range", 0.02),
    ),
    fixed={
        "share": "none", "position_offset": 0, "segments": 0, "norm_eps": 1e-12, "pooler_activation": "relu",
    },
    only={"position_embedding_type": "absolute"},
    architectures=(
        ("DistilBertModel", ()),
        ("DistilBertForMaskedLM", ("mlm",)),
        ("DistilBertForSequenceClassification", ("pooler", "classifier")),
        ("DistilBertForTokenClassification", ("tagger",)),
        ("DistilBertForMultipleChoice", ("pooler", "choice")),
        ("DistilBertForQuestionAnswering", ("span",)),
    ),
    places=layer_places,
    plain=unshared,
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    special_ids={"pad_token_id": "pad_id"},
)
