"""Loading from anywhere and saving to any form: the same model comes back, and what is wrong is said in one line."""

import dataclasses
import errno
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax.config import to_json
from bert_jax.convert.reading import Origin
from bert_jax.embedding.settings import Prompt, SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, mean_over_tokens
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcdef"])
CONFIG = EncoderConfig(
    vocab_size=11, embedding_width=8, hidden_width=8, layers=2, heads=2, ffn_width=12, max_length=9, vocab_multiple=8,
    with_heads=("pooler", "mlm", "pair"),
)
SENTENCE = SentenceSettings(pooling=("cls",), normalize=True, max_length=7, prompts=(Prompt("query", "ab "),))


def random_params(config: EncoderConfig) -> api.Params:
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape, np.float32), shapes)
    params["embeddings"]["token"][config.vocab_size :] = 0
    if "mlm" in params:
        params["mlm"]["bias"][config.vocab_size :] = 0
    return params


@pytest.fixture
def model() -> Model:
    return Model(random_params(CONFIG), CONFIG, TOKENIZER)


def assert_same(found: Model, expected: Model) -> None:
    assert found.config == expected.config and found.tokenizer.hash == expected.tokenizer.hash
    assert jax.tree.structure(found.params) == jax.tree.structure(expected.params)
    for (path, a), b in zip(jax.tree.leaves_with_path(found.params), jax.tree.leaves(expected.params), strict=True):
        assert np.array_equal(a, b), jax.tree_util.keystr(path)


@pytest.mark.parametrize("format", ["bert_jax", "hf", "sentence-transformers"])
def test_every_form_gives_the_model_back(model, format, tmp_path):
    model = model._replace(sentence=None if format == "hf" else SENTENCE)
    bert_jax.save(model, tmp_path / "a", format=format)
    found = bert_jax.load(tmp_path / "a")
    assert_same(found, model)
    assert found.sentence == model.sentence
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    bert_jax.save(found, tmp_path / "b", format="bert_jax")  # where it came from goes with it
    assert bert_jax.load(tmp_path / "b").origin == found.origin
    assert (found.origin is None) == (format == "bert_jax")


def test_what_a_form_cannot_hold_or_was_not_told_is_said(model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "bert_jax"):
        bert_jax.save(model._replace(sentence=SENTENCE), tmp_path / "a")
        bert_jax.save(model, tmp_path / "b", format="sentence-transformers")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "pooling and prompts of its sentence embeddings are left out", "how it makes sentence embeddings was never said",
    ]  # fmt: skip


def test_a_detour_changes_nothing(model, tmp_path):
    """Hugging Face -> work directory -> Hugging Face: the same bytes."""
    bert_jax.save(model, tmp_path / "a", dtype="float16")
    settings = json.loads((tmp_path / "a" / "config.json").read_text()) | {"from_elsewhere": [1, {"x": None}]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    bert_jax.save(bert_jax.load(tmp_path / "a"), tmp_path / "b", format="bert_jax")
    bert_jax.save(bert_jax.load(tmp_path / "b"), tmp_path / "c")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "c" / file.name).read_bytes() == file.read_bytes(), file.name


def test_dtypes(model, tmp_path):
    for dtype in ("float32", "bfloat16", "float16"):
        bert_jax.save(model, tmp_path / dtype, dtype=dtype)
        assert {a.dtype.name for a in load_file(tmp_path / dtype / "model.safetensors").values()} == {dtype}
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == dtype
        bert_jax.save(model, tmp_path / f"own-{dtype}", format="bert_jax", dtype=dtype)
        assert_same(bert_jax.load(tmp_path / f"own-{dtype}"), bert_jax.load(tmp_path / dtype))
    for format, file in (("hf", "model"), ("bert_jax", "params")):
        bert_jax.save(model, tmp_path / f"short-{format}", format=format, dtype="bf16")
        assert {a.dtype.name for a in load_file(tmp_path / f"short-{format}" / f"{file}.safetensors").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "short-hf" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(BertJaxError, match="unknown format 'onyx'"):
        bert_jax.save(model, tmp_path / "x", format="onyx")
    for dtype in ("fp16", "int8", ""):
        for format in ("hf", "bert_jax", "sentence-transformers", "onnx"):
            with pytest.raises(BertJaxError, match=f"dtype is '{dtype}': weights are written in float32, float16 or bfloat16"):
                bert_jax.save(model, tmp_path / "x", format=format, dtype=dtype)
    assert not (tmp_path / "x").exists()


def test_without_a_tokenizer(model, tmp_path, caplog):
    bert_jax.save(model._replace(tokenizer=None), tmp_path / "bare")
    with caplog.at_level(logging.WARNING, "bert_jax"):
        found = bert_jax.load(tmp_path / "bare")
    assert found.tokenizer is None and "no tokenizer lies beside the weights" in caplog.text
    with pytest.raises(BertJaxError, match="sentence-transformers needs a tokenizer"):
        bert_jax.save(found, tmp_path / "st", format="sentence-transformers")
    TOKENIZER.save(tmp_path / "tokenizer")
    assert bert_jax.load(tmp_path / "bare", tokenizer=tmp_path / "tokenizer").tokenizer.hash == TOKENIZER.hash
    bert_jax.save(found, tmp_path / "native", format="bert_jax")
    assert bert_jax.load(tmp_path / "native").tokenizer is None


def test_a_vocabulary_larger_than_the_token_table(model, tmp_path):
    bert_jax.save(model, tmp_path / "a")
    WordPieceTokenizer([*SPECIALS, *"abcdefgh"]).save(tmp_path / "a")
    with pytest.raises(BertJaxError, match="tokenizer has 13 pieces, its token table 11 rows"):
        bert_jax.load(tmp_path / "a")


def test_new_heads_only_when_allowed(model, tmp_path, caplog):
    bert_jax.save(model, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    bias = tensors.pop("cls.seq_relationship.bias")
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(BertJaxError, match=r"lacks cls.seq_relationship.bias, .* convert --allow-missing .* new heads"):
        bert_jax.load(tmp_path / "a")
    with caplog.at_level(logging.WARNING, "bert_jax"):
        found = bert_jax.load(tmp_path / "a", allow_missing=True)
    assert "lacks cls.seq_relationship.bias: new, untrained pair" in caplog.text
    assert found.params["pair"]["dense"]["bias"].shape == bias.shape and not found.params["pair"]["dense"]["bias"].any()
    assert np.array_equal(found.params["mlm"]["bias"], model.params["mlm"]["bias"])
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(BertJaxError, match="lacks bert.encoder.layer.1.output.dense.bias, cls.seq"):
        bert_jax.load(tmp_path / "a", allow_missing=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(model, tmp_path, value):
    bert_jax.save(model, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["bert.pooler.dense.weight"][3, 1] = value
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    with pytest.raises(BertJaxError, match="bert.pooler.dense.weight holds NaN or infinity"):
        bert_jax.load(tmp_path / "a")


def test_paths_that_are_nothing(tmp_path, model):
    bert_jax.save(model, tmp_path / "a")
    for path, message in (
        (tmp_path, "is no checkpoint: it has no experiment.json"),
        (tmp_path / "absent", "there is no such file or directory, and it is no hub id"),
        (tmp_path / "a" / "config.json", f"a/config.json is a file: name its folder, {tmp_path / 'a'}$"),
        ("runs/some/where", "there is no such file or directory, and it is no hub id"),
        ("../no-such-folder", "there is no such file or directory, and it is no hub id"),
    ):
        with pytest.raises(BertJaxError, match=message):
            bert_jax.load(path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text(json.dumps({"task": {"encoder": to_json(CONFIG)}}))
    for step, message in (("@7", "no checkpoint has been saved yet"), ("@last", "after @ comes a step number"),
                          ("#generator", "no part 'generator': it trained no generator")):
        with pytest.raises(BertJaxError, match=message):
            bert_jax.load(f"{tmp_path / 'run'}{step}")


def test_a_target_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("x")
    for format in ("bert_jax", "hf", "sentence-transformers"):
        with pytest.raises(BertJaxError, match=r"cannot write .*file/out: "):
            bert_jax.save(model, tmp_path / "file" / "out", format=format)


def test_a_read_only_file_system(model, tmp_path, monkeypatch):
    """Simulated, since root may write anywhere."""

    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    for format in ("bert_jax", "hf", "sentence-transformers"):
        with pytest.raises(BertJaxError, match=r"cannot write .*out: Read-only file system"):
            bert_jax.save(model, tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []


def test_damaged_directories_of_our_own(model, tmp_path):
    bert_jax.save(model, tmp_path / "a", format="bert_jax")
    text = (tmp_path / "a" / "model.json").read_text()
    for damaged, message in (("{", "is not JSON"), ("{}", "encoder: expected an object"),
                             (text.replace("hidden_width", "hiden_width"), "did you mean 'hidden_width'")):
        (tmp_path / "a" / "model.json").write_text(damaged)
        with pytest.raises(BertJaxError, match=message):
            bert_jax.load(tmp_path / "a")
    (tmp_path / "a" / "model.json").write_text(text)
    (tmp_path / "a" / "model.json").write_text(text.replace('"ffn_width": 12', '"ffn_width": 13'))
    with pytest.raises(BertJaxError, match=r"feed_forward/intermediate/bias is \[2, 12\], its model.json says \[2, 13\]"):
        bert_jax.load(tmp_path / "a")
    (tmp_path / "a" / "params.safetensors").unlink()
    with pytest.raises(BertJaxError, match="params.safetensors is damaged or no safetensors file"):
        bert_jax.load(tmp_path / "a")


def test_a_model_keeps_its_family(tmp_path):
    """An ELECTRA encoder as wide as its embeddings computes what a BERT computes, and is still written as an ELECTRA."""
    config = dataclasses.replace(CONFIG, with_heads=(), vocab_multiple=1)
    model = Model(random_params(config), config, TOKENIZER)
    electra = Origin("electra", {"model_type": "electra", "embedding_size": 8}, (), "float32")
    for origin, family in ((None, "bert"), (electra, "electra")):
        bert_jax.save(model._replace(origin=origin), tmp_path / family)
        assert json.loads((tmp_path / family / "config.json").read_text())["model_type"] == family
        assert_same(bert_jax.load(tmp_path / family), model)
    config = dataclasses.replace(config, position_offset=2, segments=1)
    model = Model(random_params(config), config, TOKENIZER)
    roberta = Origin("roberta", {"model_type": "roberta", "type_vocab_size": 1}, (), "float32")
    bert_jax.save(model._replace(origin=roberta), tmp_path / "roberta")  # though it counts from another id than its tokenizer's
    assert_same(bert_jax.load(tmp_path / "roberta"), model)


# The hub


@pytest.fixture
def hub_cache(tmp_path, monkeypatch, model) -> pathlib.Path:
    """The cache of huggingface_hub with the model ``someone/small`` in it, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="hub ids need huggingface_hub (the hub extra)")
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = cache / "models--someone--small" / "snapshots" / ("0" * 40)
    bert_jax.save(model, snapshot)
    (cache / "models--someone--small" / "refs").mkdir()
    (cache / "models--someone--small" / "refs" / "main").write_text("0" * 40)
    return cache


def test_a_hub_id_from_the_cache(hub_cache, model):
    assert_same(bert_jax.load("someone/small"), model)
    assert_same(bert_jax.load("someone/small@main"), model)
    assert bert_jax.inspect("someone/small").config == model.config


def test_a_hub_id_without_a_network(hub_cache):
    with pytest.raises(BertJaxError, match="someone/other: there is no such directory here, and the hub could") as error:
        bert_jax.load("someone/other")
    assert "\n" not in str(error.value)


def test_a_hub_id_without_the_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(BertJaxError, match=r"pip install 'bert_jax\[hub\]'"):
        bert_jax.load("someone/small")


@pytest.mark.parametrize(("positions", "longest"), [("absolute", 16), ("relative", int(1e30))])
def test_without_settings_vectors_are_of_as_many_tokens_as_there_are_positions(positions, longest):
    """XLNet's have no end."""
    config = EncoderConfig(vocab_size=8, embedding_width=8, hidden_width=8, layers=1, heads=2, ffn_width=8, max_length=16,
                           positions=positions, with_heads=())
    assert mean_over_tokens(Model({}, config, None)).max_length == longest
