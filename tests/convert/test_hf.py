"""Round trips without torch, and every refusal of the Hugging Face reader and writer."""

import dataclasses
import json
import logging
import math
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax import tokenizers
from bert_jax.convert import hf
from bert_jax.convert.reading import NOTES, Origin
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcdef"])
TINY = EncoderConfig(
    vocab_size=TOKENIZER.vocab_size, embedding_width=6, hidden_width=6, layers=2, heads=2, ffn_width=10, max_length=9
)
TINY_ALBERT = dataclasses.replace(TINY, embedding_width=4, share="all", layers=4, groups=2, inner_layers=2)


def random_params(config: EncoderConfig, seed: int = 0) -> api.Params:
    noise = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape, np.float32), shapes)


def without_padding(params: api.Params, config: EncoderConfig) -> api.Params:
    """Rows that only pad the vocabulary are not part of the model."""
    params = jax.tree.map(np.asarray, params)
    params["embeddings"] = params["embeddings"] | {"token": params["embeddings"]["token"][: config.vocab_size]}
    if "mlm" in params:
        params["mlm"] = params["mlm"] | {"bias": params["mlm"]["bias"][: config.vocab_size]}
    return params


def assert_same_bits(found: api.Params, expected: api.Params) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == np.float32 and np.array_equal(a, b), jax.tree_util.keystr(path)


def edit_config(directory, **changes) -> None:
    content = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def edit_weights(directory, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.fixture
def bert(tmp_path):
    return hf.export(random_params(TINY), TINY, TOKENIZER, tmp_path / "bert")


@pytest.fixture
def albert(tmp_path):
    return hf.export(random_params(TINY_ALBERT), TINY_ALBERT, TOKENIZER, tmp_path / "albert")


@st.composite
def configs(draw) -> EncoderConfig:
    share = draw(st.sampled_from(["none", "attention", "feed_forward", "all"]))
    groups = draw(st.integers(1, 2)) if share != "none" else 1
    heads = draw(st.integers(1, 2))
    hidden_width = heads * draw(st.integers(1, 3))
    embedding_width = draw(st.sampled_from([hidden_width, 5]))
    has_albert_names = share == "all" or embedding_width != hidden_width
    owners = [(), ("pooler",), ("mlm",), ("mlm", "pooler"), ("pooler", "mlm", "pair"), ("pair", "mlm", "pooler")]
    return EncoderConfig(
        vocab_size=TOKENIZER.vocab_size,
        embedding_width=embedding_width,
        hidden_width=hidden_width,
        layers=groups * draw(st.integers(1, 2)),
        heads=heads,
        ffn_width=draw(st.integers(1, 7)),
        max_length=draw(st.integers(1, 5)),
        segments=draw(st.integers(1, 3)),
        activation=draw(st.sampled_from(["gelu", "gelu_new", "quick_gelu", "relu"])),
        share=share,
        groups=groups,
        inner_layers=draw(st.integers(1, 2)) if share != "none" else 1,
        dropout=draw(st.sampled_from([0.0, 0.1, 0.25])),
        attention_dropout=draw(st.sampled_from([0.0, 0.1, 0.3])),
        norm_eps=draw(st.sampled_from([1e-12, 1e-5])),
        init_std=draw(st.sampled_from([0.02, 0.5])),
        vocab_multiple=draw(st.sampled_from([1, 8])),
        with_heads=draw(st.sampled_from(owners if has_albert_names else [*owners, ("pooler", "pair")])),
        compute_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        remat=draw(st.sampled_from(["elementwise", "full"])),
        unroll=draw(st.booleans()),
    )


@settings(max_examples=25, deadline=None)
@given(config=configs(), seed=st.integers(0, 99))
def test_round_trip(config, seed, tmp_path_factory):
    params = random_params(config, seed)
    directory = hf.export(params, config, TOKENIZER, tmp_path_factory.mktemp("export") / "model")
    read, found, origin = hf.load(directory)
    assert found == config
    assert_same_bits(without_padding(read, config), without_padding(params, config))
    assert sorted(p.name for p in directory.parent.iterdir()) == ["model"]
    again = hf.export(read, found, TOKENIZER, directory.parent / "again", origin=origin)
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (directory / name).read_bytes()


def test_config_json_says_what_transformers_needs(bert, albert):
    written = json.loads((albert / "config.json").read_text())
    expected = {
        "architectures": ["AlbertForPreTraining"], "model_type": "albert", "vocab_size": 11, "embedding_size": 4,
        "hidden_size": 6, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2,
        "num_attention_heads": 2, "intermediate_size": 10, "max_position_embeddings": 9, "type_vocab_size": 2,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "classifier_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12, "initializer_range": 0.02, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
        "tie_word_embeddings": True, "dtype": "float32",
    }
    assert written == expected
    written = json.loads((bert / "config.json").read_text())
    assert written["architectures"] == ["BertForPreTraining"] and written["model_type"] == "bert"
    assert "embedding_size" not in written and NOTES not in written


def test_weights_are_float32_and_hold_no_tied_copies(bert):
    tensors = load_file(bert / "model.safetensors")
    assert {a.dtype for a in tensors.values()} == {np.dtype(np.float32)}
    assert tensors["bert.encoder.layer.1.intermediate.dense.weight"].shape == (10, 6)
    assert not any("decoder" in name for name in tensors)


def test_bare_encoder_has_no_prefix(tmp_path):
    config = dataclasses.replace(TINY, with_heads=("pooler",))
    directory = hf.export(random_params(config), config, TOKENIZER, tmp_path / "bare")
    assert "encoder.layer.0.attention.self.query.weight" in load_file(directory / "model.safetensors")
    assert hf.load(directory)[1] == config


def test_foreign_settings_travel_and_changes_win(bert, tmp_path):
    """What config.json said and we have no word for comes out again; what has changed is said anew, and nothing else."""
    edit_config(bert, id2label={"0": "x"}, torch_dtype="float32", dtype=..., transformers_version="4.8.2")
    edit_config(bert, hidden_act="gelu_fast")
    params, config, origin = hf.load(bert)
    hf.export(params, config, TOKENIZER, tmp_path / "same", origin=origin)
    before = json.loads((bert / "config.json").read_text())
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == before
    changed = dataclasses.replace(config, dropout=0.3, with_heads=("mlm",), activation="gelu")
    kept = {part: a for part, a in params.items() if part not in ("pooler", "pair")}
    hf.export(kept, changed, TOKENIZER, tmp_path / "changed", origin=origin, dtype="float16")
    expected = before | {"hidden_dropout_prob": 0.3, "architectures": ["BertForMaskedLM"], "hidden_act": "gelu",
                         "torch_dtype": "float16"}
    assert json.loads((tmp_path / "changed" / "config.json").read_text()) == expected
    assert hf.load(tmp_path / "changed")[1] == changed


def test_labels_of_another_head_do_not_travel(tmp_path):
    """transformers makes the two outputs of a span by num_labels: with three of a classifier the weights did not fit."""
    classifier = dataclasses.replace(TINY, with_heads=("pooler", "classifier"), labels=("no", "maybe", "yes"))
    source = hf.export(random_params(classifier), classifier, TOKENIZER, tmp_path / "classifier")
    edit_config(source, num_labels=3, problem_type="multi_label_classification", bert_jax_predictor={"length": 4})
    origin = hf.load(source).origin
    span = dataclasses.replace(TINY, with_heads=("span",))
    hf.export(random_params(span), span, TOKENIZER, tmp_path / "span", origin=origin)
    found = json.loads((tmp_path / "span" / "config.json").read_text())
    assert not found.keys() & {"id2label", "label2id", "num_labels", "problem_type", "bert_jax_predictor"}
    assert found["architectures"] == ["BertForQuestionAnswering"]
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "span")
    ours = load_file(tmp_path / "span" / "model.safetensors")["qa_outputs.weight"]
    assert np.array_equal(model.qa_outputs.weight.detach().numpy(), ours)


def test_one_value_is_a_regression(tmp_path):
    """Else pipelines give the sigmoid of it."""
    config = dataclasses.replace(TINY, with_heads=("pooler", "classifier"), labels=("stars",))
    hf.export(random_params(config), config, TOKENIZER, tmp_path / "one")
    assert json.loads((tmp_path / "one" / "config.json").read_text())["problem_type"] == "regression"
    two = dataclasses.replace(config, labels=("no", "yes"))
    hf.export(random_params(two), two, TOKENIZER, tmp_path / "two")
    assert "problem_type" not in json.loads((tmp_path / "two" / "config.json").read_text())


def test_a_bert_is_given_segments_by_whatever_class_reads_its_tokenizer(tmp_path):
    """transformers' class without rules of its own leaves token_type_ids out, and pairs would be one segment."""
    transformers = pytest.importorskip("transformers", reason="AutoTokenizer needs transformers (the torch extra)")
    (tmp_path / "own").mkdir()
    content = json.loads(TOKENIZER._marked.to_str())
    content["added_tokens"].append({"id": TOKENIZER.vocab_size, "content": "[X]", "single_word": False, "lstrip": False,
                                    "rstrip": False, "normalized": False, "special": True})
    (tmp_path / "own" / "tokenizer.json").write_text(json.dumps(content))
    own = tokenizers.load(tmp_path / "own")
    config = dataclasses.replace(TINY, vocab_size=own.vocab_size)
    hf.export(random_params(config), config, own, tmp_path / "bert")
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")("a", "b")
    ids, segments = own.build(own.encode("a").ids, own.encode("b").ids)
    assert found["input_ids"] == ids.tolist() and found["token_type_ids"] == segments.tolist() == [0, 0, 0, 1, 1]


def test_a_length_beyond_the_positions_is_not_promised(tmp_path):
    """A tokenizer that was taken over says 512, and the model that was trained with it has fewer positions."""
    longer = WordPieceTokenizer([*SPECIALS, *"abcdef"], settings={"model_max_length": 512})
    hf.export(random_params(TINY), TINY, longer, tmp_path / "ours")
    said = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert said["model_max_length"] == TINY.max_length
    origin = hf.load(tmp_path / "ours").origin
    hf.export(random_params(TINY), TINY, longer, tmp_path / "theirs", origin=origin)  # what came from there stays as it was
    assert json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())["model_max_length"] == 512
    google = Origin("bert", {"model_type": "bert", "hidden_size": 6}, origin.heads, "float32")  # TensorFlow: a bare vocab.txt
    hf.export(random_params(TINY), TINY, TOKENIZER, tmp_path / "google", origin=google)
    assert json.loads((tmp_path / "google" / "tokenizer_config.json").read_text())["model_max_length"] == TINY.max_length


def test_an_encoder_of_sentences_lacks_the_head_that_its_base_had(bert, tmp_path, caplog):
    edit_config(bert, architectures=["BertForMaskedLM"])
    edit_weights(bert, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("cls.")])
    with pytest.raises(BertJaxError, match="lacks cls.predictions"):
        hf.load(bert)
    found = hf.plan(bert, of_sentences=True)
    assert found.config.with_heads == ("pooler",)
    assert "promises heads of which no tensor is there: left out: mlm" in caplog.text
    (bert / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]))
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 6}))  # then the mean, as there
    model = bert_jax.load(bert)
    assert model.sentence.pooling == ("mean",)
    bert_jax.save(model, tmp_path / "copy")  # which promises no more than it has
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["architectures"] == ["BertModel"]
    assert bert_jax.load(tmp_path / "copy").config.with_heads == ("pooler",)


@pytest.mark.parametrize(("family", "architecture"), [
    ("distilbert", "DistilBertForSequenceClassification"), ("distilbert", "DistilBertForMultipleChoice"),
    ("electra", "ElectraForSequenceClassification"),
])
def test_an_encoder_of_sentences_has_no_pooler_of_a_head_that_is_not_there(tmp_path, family, architecture):
    """What these families have of a pooler belongs to the head."""
    size = {"hidden_width": 6, "embedding_width": 6, "ffn_width": 8, "heads": 2, "layers": 2, "max_length": 16}
    config = EncoderConfig(vocab_size=TOKENIZER.vocab_size, segments=0 if family == "distilbert" else 2, with_heads=(),
                           **size)
    origin = Origin(family, {"model_type": family}, (), "float32")
    hf.export(random_params(config), config, TOKENIZER, tmp_path / "encoder", origin=origin)
    edit_config(tmp_path / "encoder", architectures=[architecture])
    assert hf.plan(tmp_path / "encoder", of_sentences=True).config.with_heads == ()


def test_no_activation_of_electra_s_choice_is_another_model(tmp_path):
    config = EncoderConfig(vocab_size=TOKENIZER.vocab_size, hidden_width=6, embedding_width=6, ffn_width=8, heads=2, layers=2,
                           max_length=16, with_heads=("pooler", "choice"), pooler_activation="gelu")
    origin = Origin("electra", {"model_type": "electra"}, ("pooler", "choice"), "float32")
    hf.export(random_params(config), config, TOKENIZER, tmp_path / "choice", origin=origin)
    assert hf.load(tmp_path / "choice").config.with_heads == ("pooler", "choice")
    edit_config(tmp_path / "choice", summary_activation=None)
    with pytest.raises(BertJaxError, match="summary_activation is None, only 'gelu' can be read"):
        hf.load(tmp_path / "choice")


def test_what_lies_beside_a_checkpoint_is_not_taken_for_it(bert):
    """Indexes of FAISS, and the model.json of TensorFlow.js."""
    for name in ("a.index", "b.index"):
        (bert / name).write_bytes(b"")
    (bert / "model.json").write_text(json.dumps({"format": "graph-model"}))
    assert bert_jax.load(bert).config.hidden_width == 6


def test_a_wrapper_may_be_called_as_another_family_s_base(bert):
    edit_weights(bert, lambda tensors: [
        tensors.update({f"transformer.{name.removeprefix('bert.')}": tensors.pop(name)})
        for name in list(tensors) if name.startswith("bert.")
    ])
    assert hf.load(bert).config.layers == 2


def test_jax_arrays_and_numpy_arrays_export_alike(tmp_path):
    params = random_params(TINY)
    a = hf.export(params, TINY, TOKENIZER, tmp_path / "a")
    b = hf.export(jax.tree.map(jax.numpy.asarray, params), TINY, TOKENIZER, tmp_path / "b")
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_real_tokenizers_survive(data_dir, tmp_path):
    transformers = pytest.importorskip("transformers", reason="AutoTokenizer needs transformers (the torch extra)")
    text = "A man's photo-graph of 9,000 cafés; [MASK] it!"
    for name, base in (("bert-base-uncased-vocab.txt", TINY), ("albert-base-v2-spiece.model", TINY_ALBERT)):
        tokenizer = tokenizers.load(data_dir / "vocab" / name)
        config = dataclasses.replace(base, vocab_size=tokenizer.vocab_size)
        directory = hf.export(random_params(config), config, tokenizer, tmp_path / name)
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text, special=True).ids.tolist()
        assert tokenizers.load(directory).hash == tokenizer.hash


# Reading


def test_half_precision_is_read_and_written_exactly(bert, tmp_path):
    for dtype in (np.float16, jax.numpy.bfloat16):
        edit_weights(bert, lambda t, dtype=dtype: t.update({k: a.astype(dtype) for k, a in t.items()}))
        params, config, origin = hf.load(bert)
        tensors = load_file(bert / "model.safetensors")
        word = tensors["bert.embeddings.word_embeddings.weight"]
        assert word.dtype == dtype and params["embeddings"]["token"].dtype == np.float32
        assert np.array_equal(params["embeddings"]["token"], word.astype(np.float32))
        assert origin.dtype == np.dtype(dtype).name
        again = load_file(hf.export(params, config, None, tmp_path / origin.dtype, origin=origin) / "model.safetensors")
        assert again.keys() == tensors.keys()
        assert all(again[k].dtype == dtype and again[k].tobytes() == a.tobytes() for k, a in tensors.items())


def test_integer_weights_are_refused(bert):
    edit_weights(bert, lambda t: t.update({"bert.pooler.dense.bias": np.zeros(6, np.int8)}))
    with pytest.raises(BertJaxError, match="bert.pooler.dense.bias holds int8"):
        hf.load(bert)


def test_missing_misshapen_and_left_out_tensors(bert, caplog):
    edit_weights(bert, lambda t: t.update({"classifier.weight": np.zeros((3, 6), np.float32),
                                           "bert.embeddings.position_ids": np.arange(9)[None]}))
    with caplog.at_level(logging.WARNING, "bert_jax"):
        config = hf.load(bert)[1]
    assert config == TINY
    assert [r.getMessage().partition("left out: ")[2] for r in caplog.records] == ["classifier.weight"]

    edit_config(bert, num_hidden_layers=3)
    with pytest.raises(BertJaxError, match=r"lacks bert.encoder.layer.2.attention.self.query.weight, .* and 12 more"):
        hf.load(bert)
    edit_config(bert, num_hidden_layers=2, max_position_embeddings=12)
    with pytest.raises(BertJaxError, match=r"position_embeddings.weight has shape \[9, 6\].* says \[12, 6\]"):
        hf.load(bert)


def test_heads_follow_the_file(bert):
    edit_config(bert, architectures=["BertModel"])
    edit_weights(bert, lambda t: [t.pop(name) for name in list(t) if name.startswith("cls.")])
    params, config, _ = hf.load(bert)
    assert config.with_heads == ("pooler",) and set(params) == {"embeddings", "attention", "feed_forward", "pooler"}


def test_untied_decoder_is_refused_and_a_tied_copy_read(bert):
    tied = load_file(bert / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    edit_weights(bert, lambda t: t.update({"cls.predictions.decoder.weight": tied.copy()}))
    assert hf.load(bert)[1] == TINY
    edit_weights(bert, lambda t: t.update({"cls.predictions.decoder.weight": tied + 1}))
    with pytest.raises(BertJaxError, match="cls.predictions.decoder.weight differs"):
        hf.load(bert)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "mobilebert"}, "model_type is 'mobilebert'; those that are read are bert, albert, electra, roberta"),
        ({"model_type": "roberta"}, "model.safetensors holds a bert, its config.json describes a roberta"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': .1.}, only {} can be read"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"hidden_act": "silu"}, "'silu' is not one of gelu, gelu_new, quick_gelu, relu"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "six"}, "expected int, got 'six'"),
        ({"num_attention_heads": 4}, "config.json: encoder.hidden_width 6 is not a multiple of heads 4"),
        ({"bert_jax": {"vocab_multipel": 8}}, "did you mean 'vocab_multiple'"),
    ],
)
def test_settings_that_make_another_model(bert, changes, message):
    edit_config(bert, **changes)
    with pytest.raises(BertJaxError, match=message) as error:
        hf.load(bert)
    assert "\n" not in str(error.value) and str(bert) in str(error.value)


def test_silent_settings_have_the_defaults_of_transformers(bert, albert):
    for directory, activation, dropout in ((bert, "gelu", 0.1), (albert, "gelu_new", 0.0)):
        edit_config(directory, hidden_act=..., hidden_dropout_prob=..., layer_norm_eps=..., type_vocab_size=...)
        config = hf.load(directory)[1]
        assert (config.activation, config.dropout, config.norm_eps) == (activation, dropout, 1e-12)
    edit_config(albert, hidden_act="gelu_pytorch_tanh")
    assert hf.load(albert)[1].activation == "gelu_new"


def test_copies_that_differ_are_read_unshared(tmp_path, caplog):
    config = dataclasses.replace(TINY, share="attention", vocab_multiple=8)
    directory = hf.export(random_params(config), config, TOKENIZER, tmp_path / "model")
    edit_weights(directory, lambda t: t["bert.encoder.layer.1.attention.self.key.bias"].__iadd__(1))
    with caplog.at_level(logging.WARNING, "bert_jax"):
        params, read, _ = hf.load(directory)
    assert read == dataclasses.replace(config, share="none")
    assert "does not share" in caplog.text and len(caplog.records) == 1
    key = params["attention"]["key"]["bias"]
    assert np.array_equal(key[0] + 1, key[1])


def test_albert_with_a_map_between_equal_widths_is_refused(tmp_path):
    config = dataclasses.replace(TINY, share="all")
    directory = hf.export(random_params(config), config, TOKENIZER, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    assert np.array_equal(tensors["albert.encoder.embedding_hidden_mapping_in.weight"], np.eye(6))
    edit_weights(directory, lambda t: t["albert.encoder.embedding_hidden_mapping_in.bias"].__iadd__(1))
    with pytest.raises(BertJaxError, match="embedding_hidden_mapping_in.bias changes embeddings"):
        hf.load(directory)


def test_absent_and_damaged_files(bert, tmp_path):
    with pytest.raises(BertJaxError, match="config.json cannot be read: No such file"):
        hf.load(tmp_path / "nothing")
    weights = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(BertJaxError, match="damaged or no safetensors"):
        hf.load(bert)
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    with pytest.raises(BertJaxError, match="pytorch_model.bin is damaged or no PyTorch checkpoint"):
        hf.load(bert)
    (bert / "pytorch_model.bin").rename(bert / "tf_model.h5")
    with pytest.raises(BertJaxError, match="holds no model.safetensors and no pytorch_model.bin; tf_model.h5 is not read"):
        hf.load(bert)
    (bert / "config.json").write_text("{")
    with pytest.raises(BertJaxError, match="is not JSON"):
        hf.load(bert)


# Writing


def test_export_refuses_a_directory_in_use(bert):
    before = sorted(p.name for p in bert.iterdir())
    with pytest.raises(BertJaxError, match="not an empty directory"):
        hf.export(random_params(TINY), TINY, TOKENIZER, bert)
    with pytest.raises(BertJaxError, match="not an empty directory"):
        hf.export(random_params(TINY), TINY, TOKENIZER, bert / "config.json")
    assert sorted(p.name for p in bert.iterdir()) == before


def test_export_names_the_dtypes(tmp_path):
    hf.export(random_params(TINY), TINY, TOKENIZER, tmp_path / "short", dtype="bf16")
    assert hf.load(tmp_path / "short").origin.dtype == "bfloat16"
    with pytest.raises(BertJaxError, match="dtype is 'half': weights are written in float32, float16 or bfloat16") as error:
        hf.export(random_params(TINY), TINY, TOKENIZER, tmp_path / "half", dtype="half")
    assert "\n" not in str(error.value) and [p.name for p in tmp_path.iterdir()] == ["short"]


def test_export_into_an_empty_directory_and_new_parents(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "new" / "deeper"):
        assert hf.export(random_params(TINY), TINY, TOKENIZER, place) == place
        assert hf.load(place)[1] == TINY


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        (tmp_path / ".model.partial-x").touch()
        raise OSError(28, "No space left on device")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(WordPieceTokenizer, "save", full)
    with pytest.raises(BertJaxError, match="cannot write .*No space left"):
        hf.export(random_params(TINY), TINY, TOKENIZER, tmp_path / "there" / "model")
    assert list((tmp_path / "there").iterdir()) == []


def test_parameters_and_tokenizer_must_fit(tmp_path, caplog):
    other = dataclasses.replace(TINY, ffn_width=11)
    with pytest.raises(BertJaxError, match=r"feed_forward/intermediate/bias is \[2, 10\] .* has \[2, 11\]"):
        hf.export(random_params(TINY), other, TOKENIZER, tmp_path / "a")
    headless = dataclasses.replace(TINY, with_heads=())
    with pytest.raises(BertJaxError, match="mlm/bias is absent"):
        hf.export(random_params(headless), TINY, TOKENIZER, tmp_path / "a")
    small = dataclasses.replace(TINY, vocab_size=10)
    with pytest.raises(BertJaxError, match="tokenizer has 11 pieces but the token table 10"):
        hf.export(random_params(small), small, TOKENIZER, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    large = dataclasses.replace(TINY, vocab_size=12)
    with caplog.at_level(logging.WARNING, "bert_jax"):
        hf.export(random_params(large), large, TOKENIZER, tmp_path / "a")
    assert "12 rows for 11 pieces" in caplog.text


def test_albert_has_no_class_for_the_pair_head_alone(tmp_path):
    config = dataclasses.replace(TINY_ALBERT, with_heads=("pooler", "pair"))
    with pytest.raises(BertJaxError, match="no albert class has exactly the heads pooler, pair"):
        hf.export(random_params(config), config, TOKENIZER, tmp_path / "a")


@pytest.mark.parametrize("config", (TINY, TINY_ALBERT, dataclasses.replace(TINY_ALBERT, share="attention")))
def test_to_tensors_has_as_many_values_as_the_plain_form(config):
    tensors = hf.to_tensors(random_params(config), config)
    plain = dataclasses.replace(config, share="none", layers=config.depth, groups=1, inner_layers=1)
    expected = api.count_parameters(config if config.share == "all" else plain)
    assert sum(math.prod(a.shape) for a in tensors.values()) == expected


@pytest.mark.parametrize("junk", ["x", [], {}, [1], {"a": 1}, -1, 0, 1.5, True, None, 10**30])
def test_settings_of_another_kind_give_one_line(bert, junk):
    """Whatever stands in config.json: it is read, or refused in one line; it never fails in another way."""
    before = (bert / "config.json").read_text()
    keys = {*json.loads(before), "bert_jax", "pruned_heads", "id2label", "num_labels", "classifier_dropout"}
    for kind in ("bert", "roberta"):
        for key in sorted(keys):
            (bert / "config.json").write_text(json.dumps(json.loads(before) | {"model_type": kind, key: junk}))
            try:
                hf.plan(bert)
                hf.load(bert, allow_missing=True)
            except BertJaxError as error:
                assert "\n" not in str(error), (kind, key)


def test_transformers_cuts_to_what_the_model_can_read(tiny_checkpoint, tmp_path):
    """A model made here says its length; one that came from elsewhere goes on saying what it said, or nothing."""
    transformers = pytest.importorskip("transformers", reason="AutoTokenizer needs transformers (the torch extra)")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint)
    assert len(tokenizer("the cat " * 50, truncation=True)["input_ids"]) == 32
    file = tiny_checkpoint / "tokenizer_config.json"
    foreign = shutil.copytree(tiny_checkpoint, tmp_path / "foreign")
    settings = json.loads(file.read_text())
    for said in ({"model_max_length": 20}, {}):
        (foreign / file.name).write_text(json.dumps({k: v for k, v in settings.items() if k != "model_max_length"} | said))
        model = bert_jax.load(foreign)
        bert_jax.save(model, tmp_path / str(len(said)))
        written = json.loads((tmp_path / str(len(said)) / file.name).read_text())
        assert written.get("model_max_length") == said.get("model_max_length")
