"""XLNet of Hugging Face transformers (Yang et al. 2019): relative positions, no biases in attention, no transform in its head.

Its classifiers of sequences read the last token, where its tokenizer puts <cls>; our pooler reads the first, so they have no
form here. Neither has its segment memory (mems), which is no part of the weights.
"""

from bert_jax.convert.bert import layer_places, unshared
from bert_jax.convert.table import Family, Row, Setting, Transform, affine, norm

_ATTENTION = "transformer.layer.{layer}.rel_attn."
_FEED_FORWARD = "transformer.layer.{layer}.ff."

# Its kernels have axes of heads as ours; that of the output begins with the model's.
_MODEL_FIRST = Transform(lambda a: a.transpose(2, 0, 1), lambda a, _: a.transpose(1, 2, 0))
_ONE_TOKEN = Transform(lambda a: a.reshape(1, 1, -1), lambda a, shape: a.reshape(shape))

XLNET = Family(
    model_type="xlnet",
    base="transformer.",
    encoder=(
        Row("embeddings/token", "transformer.word_embedding.weight"),
        Row("embeddings/query", "transformer.mask_emb", _ONE_TOKEN),
        Row("attention/query/kernel", _ATTENTION + "q"),
        Row("attention/key/kernel", _ATTENTION + "k"),
        Row("attention/value/kernel", _ATTENTION + "v"),
        Row("attention/output/kernel", _ATTENTION + "o", _MODEL_FIRST),
        Row("attention/position/kernel", _ATTENTION + "r"),
        Row("attention/content/bias", _ATTENTION + "r_w_bias"),
        Row("attention/position/bias", _ATTENTION + "r_r_bias"),
        Row("attention/segment/bias", _ATTENTION + "r_s_bias"),
        Row("attention/segment/kernel", _ATTENTION + "seg_embed"),
        *norm("attention/norm", _ATTENTION + "layer_norm"),
        *affine("feed_forward/intermediate", _FEED_FORWARD + "layer_1"),
        *affine("feed_forward/output", _FEED_FORWARD + "layer_2"),
        *norm("feed_forward/norm", _FEED_FORWARD + "layer_norm"),
    ),
    heads={
        "mlm": (Row("mlm/bias", "lm_loss.bias"),),
        "tagger": affine("tagger/dense", "classifier"),
        "span": affine("span/dense", "qa_outputs"),
    },
    settings=(
        Setting("vocab_size", "vocab_size"),
        Setting("embedding_width", "d_model"),
        Setting("hidden_width", "d_model"),
        Setting("layers", "n_layer"),
        Setting("heads", "n_head"),
        Setting("ffn_width", "d_inner"),
        Setting("activation", "ff_activation", "gelu"),
        Setting("attention_dropout", "dropout", 0.1),  # one rate for both
        Setting("dropout", "dropout", 0.1),
        Setting("norm_eps", "layer_norm_eps", 1e-12),
        Setting("init_std", "initializer_range", 0.02),
    ),
    fixed={"share": "none", "positions": "relative", "position_offset": 0, "segments": 2, "mlm_transform": False},
    only={"attn_type": "bi", "bi_data": False, "clamp_len": -1, "untie_r": True},
    architectures=(
        ("XLNetModel", ()),
        ("XLNetLMHeadModel", ("mlm",)),
        ("XLNetForTokenClassification", ("tagger",)),
        ("XLNetForQuestionAnsweringSimple", ("span",)),
    ),
    places=layer_places,
    plain=unshared,
    tied={"lm_loss.weight": "transformer.word_embedding.weight"},
    special_ids={"pad_token_id": "pad_id"},
)
