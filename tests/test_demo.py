"""The demo's comparison with PyTorch; the whole of it runs in tests/test_readme.py."""

import jax
import pytest

from bert_jax import demo
from bert_jax.convert import hf
from bert_jax.data.store import TokenStore
from bert_jax.model import Model
from bert_jax.models import api


@pytest.mark.parametrize(("family", "packing"), [("bert", "null"), ("bert", "4"), ("albert", "null")])
def test_rows_that_hold_several_examples_are_compared_one_by_one(tiny_experiment, tiny_store, tmp_path, family, packing):
    pytest.importorskip("torch")
    experiment, store = tiny_experiment(family, f"task.examples.packing={packing}"), TokenStore(tiny_store)
    config = experiment.task.encoder
    model = Model(api.init(config, jax.random.key(0)), config, store.tokenizer)
    hf.export(model.params, model.config, model.tokenizer, tmp_path / "export")
    assert demo._compare_with_transformers(model, store, experiment, tmp_path / "export") < 1e-4
