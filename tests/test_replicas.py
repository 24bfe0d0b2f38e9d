"""Answers from several devices are those of one: every row once, shared evenly, and no device waits for another."""

import dataclasses
import importlib
import re

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import predicting
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.models import api
from bert_jax.parallel.mesh import RULES, batch_sharding, replicated
from bert_jax.planning.chips import target
from bert_jax.replicas import Replicas, over, replicas
from bert_jax.tasks.answering import Answering
from bert_jax.tasks.base import finetuned_encoder

WORDS = "cat dog bird mat road tree red".split()
TALK = "all-reduce|all-gather|all-to-all|collective-permute"
USERS = ("bert_jax.tasks.answering", "bert_jax.predicting", "bert_jax.embedding.sentence")


@pytest.fixture
def spread(monkeypatch):
    """``spread()``: from now on three devices answer. Returns of each computation how many had a part, and of how many."""

    def begin() -> list[tuple[int, int]]:
        split = []

        class Watched(Replicas):
            def run(self, compute, params, batch):
                made = super().run(compute, params, batch)
                for leaf in jax.tree.leaves(made):
                    split.append((len(leaf.sharding.device_set), len(leaf) // len(leaf.addressable_shards[0].data)))
                return made

        for name in USERS:
            monkeypatch.setattr(importlib.import_module(name), "replicas", lambda: Watched(*over(jax.devices()[:3])))
        return split

    return begin


def model_with(checkpoint, labels, *heads, **changes):
    start = bert_jax.load(checkpoint)
    config = dataclasses.replace(finetuned_encoder(start.config, labels, heads, init_std=0.5), **changes)
    return bert_jax.Model(jax.tree.map(np.asarray, api.init(config, jax.random.key(1))), config, start.tokenizer)


def texts(count):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 28))) for _ in range(count)]


KINDS = {
    "classes": (("red", "blue"), ("pooler", "classifier"), lambda: texts(150)),
    "tags": (("N", "V"), ("tagger",), lambda: texts(20)),
    "answers": ((), ("span",), lambda: [("cat dog", text * 3) for text in texts(20)]),  # several windows each
    "choices": ((), ("pooler", "choice"), lambda: [("cat dog", *texts(9)[k : k + 3]) for k in range(6)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_predictions(tiny_checkpoint, spread, kind):
    labels, heads, rows = KINDS[kind]
    model = model_with(tiny_checkpoint, labels, *heads)
    wanted = list(bert_jax.predict(model, rows(), batch_size=2))
    split = spread()
    found = list(bert_jax.predict(model, rows(), batch_size=2))
    assert len(found) == len(rows())
    for one, other in zip(found, wanted, strict=True):
        assert one == {k: pytest.approx(v, abs=1e-4) if isinstance(v, float) else v for k, v in other.items()}
    assert split and set(split) == {(3, 3)}


def test_evaluations(tiny_checkpoint, spread):
    model = model_with(tiny_checkpoint, ("red", "blue"), "pooler", "classifier")
    predictor = predicting.of_model(model).predictor
    encoded = predictor.encode([(text,) for text in texts(50)])

    def outputs():
        answering = Answering(predictor, 4)
        return answering.outputs(model.params, encoded, answering.shapes(encoded))

    wanted = outputs()
    split = spread()
    found = outputs()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)
    assert set(split) == {(3, 3)}


@pytest.fixture(params=(64, None), ids=("shared", "alone"))
def row(request, monkeypatch):
    """Texts share rows of 64 tokens, which they would not by themselves in an encoder so narrow, or they do not."""
    for name in ("bert_jax.tasks.answering", "bert_jax.embedding.sentence"):
        monkeypatch.setattr(importlib.import_module(name), "cheapest_row", lambda *_: request.param)
    return request.param


@pytest.mark.parametrize("kind", ("classes", "tags"))
def test_predictions_of_texts_that_share_rows(tiny_checkpoint, spread, kind, row):
    test_predictions(tiny_checkpoint, spread, kind)


@pytest.mark.parametrize("batch_size", (1, 8))
def test_vectors(tiny_checkpoint, spread, batch_size, row):
    model = bert_jax.load(tiny_checkpoint)._replace(sentence=SentenceSettings(("mean", "max")))
    rows = [*texts(40), "", "cat " * 60]
    wanted = bert_jax.embed(model, rows)
    split = spread()
    np.testing.assert_allclose(bert_jax.embed(model, rows, batch_size=batch_size), wanted, atol=1e-5)
    assert set(split) == {(3, 3)}


def test_devices_do_not_talk(tiny_checkpoint):
    model, devices = model_with(tiny_checkpoint, ("red", "blue"), "pooler", "classifier"), over(jax.devices())
    predictor, programs = predicting.of_model(model).predictor, []

    def compiled(params, batch):
        programs.append(predictor.run.lower(params, batch).compile().as_text())

    batch = {name: np.ones((16, 8), np.int32) for name in ("input_ids", "attention_mask")}
    devices.run(compiled, devices.hold(model.params), batch)
    assert "s32[2,8]" in programs[0] and not re.search(TALK, programs[0])


@pytest.mark.tpu_compile
def test_devices_of_a_tpu_do_not_talk_and_each_has_its_rows_in_the_kernel(tiny_checkpoint):
    pytest.importorskip("libtpu", reason="needs libtpu")
    model = model_with(
        tiny_checkpoint, ("red", "blue"), "pooler", "classifier", hidden_width=128, embedding_width=128, heads=2, ffn_width=256,
        compute_dtype="bfloat16", attention="fused", max_length=128,
    )
    devices, predictor = over(list(target("v5e:2x4").devices)), predicting.of_model(model).predictor
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(devices.mesh)), model.params)
    batch = {name: jax.ShapeDtypeStruct((64, 128), np.int32, sharding=batch_sharding(devices.mesh))
             for name in ("input_ids", "attention_mask")}
    with jax.set_mesh(devices.mesh), api.sharding_rules(RULES):
        program = predictor.run.trace(params, batch).lower(lowering_platforms=("tpu",)).compile().as_text()
    assert "tpu_custom_call" in program and "[8,128" in program and not re.search(TALK, program)


def test_rows_of_a_batch():
    assert [Replicas().rows(64, there) for there in (1, 2, 3, 33, 64, 65, 1000)] == [1, 2, 4, 64, 64, 64, 64]
    assert [over(jax.devices()).rows(64, there) for there in (1, 9, 40, 500, 513, 10_000)] == [8, 16, 64, 512, 512, 512]
    assert [over(jax.devices()[:3]).rows(64, there) for there in (1, 3, 9, 10_000)] == [3, 6, 18, 192]


def test_a_processor_is_one_device():
    """Its devices share its cores."""
    assert len(jax.devices()) == 8 and replicas() == Replicas() and replicas().count == 1
