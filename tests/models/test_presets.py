"""Parameter counts of the published sizes, exactly."""

import dataclasses

import jax
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import PRESETS, EncoderConfig, preset

# Encoder with pooler. ALBERT: the released sizes with 30,000 pieces; BERT: as loaded by transformers' BertModel.
ENCODER_WITH_POOLER = {
    "albert-base-v1": 11_683_584, "albert-large-v1": 17_683_968,
    "albert-xlarge-v1": 58_724_864, "albert-xxlarge-v1": 222_595_584,
    "albert-base-v2": 11_683_584, "albert-large-v2": 17_683_968,
    "albert-xlarge-v2": 58_724_864, "albert-xxlarge-v2": 222_595_584,
    "bert-tiny": 4_385_920, "bert-mini": 11_170_560, "bert-small": 28_763_648, "bert-medium": 41_373_184,
    "bert-base": 109_482_240, "bert-large": 335_141_888,
    "bert-base-cased": 108_310_272, "bert-large-cased": 333_579_264,
    "bert-base-multilingual-cased": 177_853_440, "bert-base-multilingual-uncased": 167_356_416,
    "bert-base-chinese": 102_267_648,
}  # fmt: skip
# With the heads of pre-training: BertForPreTraining; AlbertForMaskedLM (which has no pooler).
WITH_HEADS = {
    ("bert-base", ("pooler", "mlm", "pair")): 110_106_428,
    ("bert-large", ("pooler", "mlm", "pair")): 336_226_108,
    ("albert-base-v2", ("mlm",)): 11_221_680,
}


def test_every_preset_has_a_published_count():
    assert ENCODER_WITH_POOLER.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_encoder_with_pooler(name):
    config = preset(name, with_heads=("pooler",))
    assert api.count_parameters(config) == ENCODER_WITH_POOLER[name]


@pytest.mark.parametrize("name, heads", WITH_HEADS)
def test_with_pretraining_heads(name, heads):
    assert api.count_parameters(preset(name, with_heads=heads)) == WITH_HEADS[name, heads]


def test_count_leaves_out_vocabulary_padding():
    padded = preset("bert-tiny", vocab_multiple=128)
    assert padded.padded_vocab_size == 30_592 == 239 * 128
    shapes = jax.eval_shape(lambda: api.init(padded, jax.random.key(0)))
    assert shapes["embeddings"]["token"].shape == (30_592, 128) and shapes["mlm"]["bias"].shape == (30_592,)
    assert api.count_parameters(padded) == api.count_parameters(preset("bert-tiny"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers": 0}, "encoder.layers is 0: it must be at least 1"),
        ({"heads": 5}, "encoder.hidden_width 768 is not a multiple of heads 5"),
        ({"share": "all", "groups": 5}, "encoder.layers 12 is not a multiple of groups 5"),
        ({"groups": 2}, "need shared parameters"),
        ({"inner_layers": 2}, "need shared parameters"),
        ({"with_heads": ("mlm", "pair")}, "'pair' without 'pooler'"),
        ({"dropout": 1.0}, r"encoder.dropout is 1.0: it must be in \[0, 1\)"),
        ({"attention_dropout": -0.1}, "encoder.attention_dropout is -0.1"),
    ],
)
def test_impossible_encoders_are_refused(changes, message):
    with pytest.raises(BertJaxError, match=message):
        dataclasses.replace(EncoderConfig(), **changes)


def test_unknown_preset():
    with pytest.raises(BertJaxError, match="no preset 'bert-huge'; choose from bert-tiny, "):
        preset("bert-huge")


def test_shared_index_follows_groups_and_inner_layers():
    # transformers' AlbertTransformer: layer i of 6 uses group int(i / (6 / 3)); inner layers run in order inside.
    config = EncoderConfig(layers=6, share="all", groups=3, inner_layers=2)
    groups = [int(i / (6 / 3)) for i in range(6)]
    assert list(config.shared_index) == [2 * group + inner for group in groups for inner in range(2)]
    assert config.depth == 12 and config.copies("attention") == config.copies("feed_forward") == 6
    partly = dataclasses.replace(config, share="attention")
    assert (partly.copies("attention"), partly.copies("feed_forward")) == (6, 12)
