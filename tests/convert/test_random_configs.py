"""Randomly drawn models of every family: out, in and out again gives the same bytes; old names and shards the same model.

Nothing here needs PyTorch. tests/convert/test_families.py says that the files mean to transformers what they mean to us.
"""

import functools
import json
import math
import pathlib
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bert_jax.convert import hf
from bert_jax.convert.reading import Imported, Origin
from bert_jax.convert.settings import FAMILIES
from bert_jax.convert.table import Family
from bert_jax.convert.tensors import DTYPES
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import HEADS
from bert_jax.tokenizers import Tokenizer
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcdef"])
BY_NAME = {family.model_type: family for family in FAMILIES}
# Every family with every set of heads that one of its classes is written for.
COMBINATIONS = [
    (family.model_type, heads)
    for family in FAMILIES for heads in dict.fromkeys(tuple(h for h in HEADS if h in has) for _, has in family.architectures)
]  # fmt: skip
RATES = st.floats(0, 0.99)
NUMBERS = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# What config.json of a real model holds besides, and what nobody has seen yet.
KEYS = st.sampled_from(["transformers_version", "use_cache", "finetuning_task", "_name_or_path", "output_past", "auto_map"])
FOREIGN = st.dictionaries(KEYS | st.text(max_size=8).map("their {}".format), JSON, max_size=5)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Drawn(NamedTuple):
    """A model of a family, before anything was written."""

    family: Family
    config: EncoderConfig
    dtype: str
    seed: int
    foreign: dict
    tokenizer: Tokenizer | None

    @property
    def params(self) -> api.Params:
        return random_params(self.config, self.dtype, self.seed)

    def write(self, folder: pathlib.Path) -> pathlib.Path:
        """A directory as somebody else may have left it: with settings of their own."""
        settings = {"model_type": self.family.model_type, "architectures": []}
        origin = Origin(self.family.model_type, settings, (), self.dtype)
        hf.export(self.params, self.config, self.tokenizer, folder, origin=origin, dtype=self.dtype)
        path = folder / "config.json"
        assert not self.foreign.keys() & json.loads(path.read_text("utf-8")).keys()
        content = json.loads(path.read_text("utf-8")) | self.foreign
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        return folder


@functools.lru_cache(maxsize=2)
def random_params(config: EncoderConfig, dtype: str, seed: int) -> api.Params:
    """Random in every place, and such as ``dtype`` holds."""
    noise = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape).astype(DTYPES[dtype]).astype(np.float32), shapes)
    params["embeddings"]["token"][config.vocab_size :] = 0  # rows that only pad the vocabulary
    if "mlm" in params:
        params["mlm"]["bias"][config.vocab_size :] = 0
    return params


@st.composite
def models(draw, combinations: list[tuple[str, tuple[str, ...]]] = COMBINATIONS) -> Drawn:
    name, with_heads = draw(st.sampled_from(combinations))
    family = BY_NAME[name]
    heads = draw(st.integers(1, 3))
    width = heads * (2 if name == "xlnet" else 1) * draw(st.integers(1, 4))
    shares = name == "albert"
    groups = draw(st.integers(1, 3)) if shares else 1
    activation = draw(st.sampled_from(["gelu", "gelu_new", "quick_gelu", "relu"]))
    other = "mlm" in with_heads and family.mlm_activation not in (None, activation)
    labelled = {"classifier", "tagger"} & set(with_heads)
    dropout, head_dropout = draw(RATES), draw(st.none() | RATES)
    if name in ("albert", "distilbert") and head_dropout == dropout:
        head_dropout = None  # their config.json has no word for the difference
    config = EncoderConfig(
        vocab_size=TOKENIZER.vocab_size,
        embedding_width=draw(st.sampled_from([width, 5])) if family.factorised else width,
        hidden_width=width,
        layers=groups * draw(st.integers(1, 3)),
        heads=heads,
        ffn_width=draw(st.integers(1, 9)),
        max_length=draw(st.integers(1, 9)),
        position_offset=draw(st.integers(1, 4)) if "roberta" in name else 0,
        segments={"distilbert": 0, "xlnet": 2}[name] if name in ("distilbert", "xlnet") else draw(st.integers(1, 3)),
        positions=family.fixed.get("positions", "absolute"),
        mlm_transform=family.fixed.get("mlm_transform", True),
        activation=activation,
        pooler_activation=family.fixed.get("pooler_activation", "tanh"),
        mlm_activation=family.mlm_activation if other else None,
        share="all" if shares else "none",
        groups=groups,
        inner_layers=draw(st.integers(1, 2)) if shares else 1,
        dropout=dropout,
        attention_dropout=draw(RATES),
        norm_eps=1e-12 if name == "distilbert" else draw(st.floats(1e-15, 1e-2)),
        init_std=draw(st.floats(0, 1)),
        vocab_multiple=draw(st.sampled_from([1, 8])),
        with_heads=with_heads,
        labels=tuple(draw(st.lists(st.text(max_size=6), min_size=1, max_size=4))) if labelled else (),
        head_dropout=head_dropout,
        compute_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        remat=draw(st.sampled_from(["elementwise", "full"])),
        unroll=draw(st.booleans()),
    )
    return Drawn(
        family, config, draw(st.sampled_from(list(DTYPES))), draw(st.integers(0, 99)), draw(FOREIGN),
        draw(st.sampled_from([None, TOKENIZER])),
    )


def assert_is(found: Imported, drawn: Drawn) -> None:
    """The drawn model, bit for bit."""
    assert found.config == drawn.config
    expected = drawn.params
    assert jax.tree.structure(found.params) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found.params), jax.tree.leaves(expected), strict=True):
        assert a.dtype == np.float32 and np.array_equal(a, b), jax.tree_util.keystr(path)


def check_round_trip(drawn: Drawn, folder: pathlib.Path) -> None:
    first = drawn.write(folder / "first")
    settings = json.loads((first / "config.json").read_text("utf-8"))
    assert settings["model_type"] == drawn.family.model_type
    assert settings["architectures"] == [drawn.family.architecture(drawn.config.with_heads)]
    found = hf.load(first)
    assert_is(found, drawn)
    assert (found.origin.family, found.origin.dtype) == (drawn.family.model_type, drawn.dtype)
    second = hf.export(found.params, found.config, drawn.tokenizer, folder / "second", origin=found.origin)
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    for path in first.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("family", "heads"), COMBINATIONS, ids=[f"{family}-{'-'.join(heads) or 'bare'}" for family, heads in COMBINATIONS]
)
def test_out_in_and_out_again(family, heads, tmp_path_factory):
    @settings(quick, max_examples=2)  # the first is the simplest, the second may be anything
    @given(drawn=models([(family, heads)]))
    def check(drawn):
        check_round_trip(drawn, tmp_path_factory.mktemp("random"))

    check()


def renamed(name: str, drawn: Drawn, based: bool, wrapper: str, gamma: bool) -> str:
    """A tensor's name as files of other years and programs have it."""
    if gamma and re.search(r"layer_?norm", name, re.IGNORECASE):
        name = re.sub(r"\.weight$", ".gamma", re.sub(r"\.bias$", ".beta", name))
    base = drawn.family.base
    if re.search("(?<!LMHead)Model$", drawn.family.architecture(drawn.config.with_heads)):
        return wrapper + (base if based else "") + name  # every tensor of this class belongs to the encoder
    return wrapper + (name if based else name.removeprefix(base))


@quick
@given(drawn=models(), based=st.booleans(), wrapper=st.sampled_from(["", "module.", "model.", "0.auto_model."]),
       gamma=st.booleans())
def test_names_of_other_years(drawn, based, wrapper, gamma, tmp_path_factory):
    folder = drawn.write(tmp_path_factory.mktemp("random") / "model")
    tensors = {
        renamed(name, drawn, based, wrapper, gamma): a for name, a in load_file(folder / "model.safetensors").items()
    }
    assert any(name.startswith(wrapper + drawn.family.base) for name in tensors) == based
    assert any(re.search(r"layer_?norm\.gamma$", name, re.IGNORECASE) for name in tensors) == gamma  # XLNet: layer_norm
    save_file(tensors, folder / "model.safetensors")
    assert_is(hf.load(folder), drawn)


@quick
@given(drawn=models(), shards=st.integers(1, 4), order=st.randoms(use_true_random=False))
def test_shards(drawn, shards, order, tmp_path_factory):
    folder = drawn.write(tmp_path_factory.mktemp("random") / "model")
    tensors = load_file(folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    order.shuffle(names)
    places, size = {}, math.ceil(len(names) / shards)
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names[i * size : (i + 1) * size]}, folder / file)
        places |= dict.fromkeys(names[i * size : (i + 1) * size], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    found = hf.load(folder)
    assert_is(found, drawn)
    again = hf.export(found.params, found.config, None, folder.parent / "again", origin=found.origin)
    assert (again / "model.safetensors").read_bytes() == whole
