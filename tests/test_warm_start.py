"""What a run takes over from the checkpoint that it starts from, and chains of runs."""

import dataclasses
import functools
import logging
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import config as configuration
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classification, ClassificationTask
from bert_jax.tasks.tables import Table
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from bert_jax.warm_start import reinitialised, warm_start
from tests.tasks.tiny_tasks import finetune

ENCODER = EncoderConfig(
    vocab_size=32, embedding_width=16, hidden_width=16, layers=3, heads=2, ffn_width=32, max_length=12, dropout=0.0,
    attention_dropout=0.0, with_heads=("pooler", "classifier"), labels=("a", "b", "c"),
)
IDS = np.random.default_rng(0).integers(0, 32, (3, 7), np.int32)


close = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # one compiled program rounds otherwise than another


def model_of(config: EncoderConfig) -> Model:
    params = api.init(config, jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return Model(jax.device_get(jax.tree.unflatten(structure, moved)), config, None)


def started(model: Model, **changes):
    encoder = dataclasses.replace(ENCODER, **changes)
    params = warm_start(model, "there", encoder, lambda key: api.init(encoder, key), jax.random.key(0), None)
    shapes = jax.eval_shape(lambda: api.init(encoder, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    return params, encoder


def states(params, config):
    return api.apply(params, config, {"input_ids": IDS}, collect=("hidden_states",)).collected["hidden_states"]


@pytest.mark.parametrize("labels", [("a", "b"), ("x", "y", "z")], ids=["number", "names"])
def test_other_labels_get_a_fresh_head(labels, caplog):
    model = model_of(ENCODER)
    with caplog.at_level(logging.WARNING):
        params, encoder = started(model, labels=labels)
    assert caplog.messages == [
        f"the head classifier of there tells a, b, c apart, not {', '.join(labels)}: a fresh one takes its place"
    ]
    fresh = api.init(encoder, jax.random.key(0))["classifier"]
    jax.tree.map(close, params["classifier"], fresh)
    jax.tree.map(np.testing.assert_array_equal, params["pooler"], model.params["pooler"])


def test_the_same_labels_keep_their_head(caplog):
    model = model_of(ENCODER)
    params, _ = started(model)
    assert not caplog.messages
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_fewer_layers_are_the_first_ones(caplog):
    model = model_of(ENCODER)
    params, encoder = started(model, read_layers=(2,))
    np.testing.assert_allclose(states(params, encoder), states(model.params, ENCODER)[:3], atol=1e-6)
    params, _ = started(model, read_layers=(1, 2), combine="concatenate")
    assert caplog.messages == ["the head pooler of there reads states of another width: a fresh one takes its place"]
    assert params["pooler"]["dense"]["kernel"].shape == (32, 16)
    mixed, _ = started(model, read_layers=(1, 3))
    assert not mixed["mix"]["weights"].any() and len(caplog.messages) == 1
    with pytest.raises(BertJaxError, match="there has 2 layers, task.encoder.read_layers needs 3: --set .*read_layers='.2.'"):
        started(model_of(dataclasses.replace(ENCODER, read_layers=(2,))))


def test_the_longest_sequence_is_no_size_of_relative_positions():
    model = model_of(dataclasses.replace(ENCODER, positions="relative"))
    params, _ = started(model, positions="relative", max_length=40)
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def test_the_settings_of_a_refusal_can_be_pasted():
    model = model_of(dataclasses.replace(ENCODER, mlm_activation="relu", mlm_transform=False, positions="relative"))
    with pytest.raises(BertJaxError, match="to start from it: ") as refusal:
        started(model)
    words = shlex.split(str(refusal.value).partition("it: ")[2])
    assert words[::2] == ["--set"] * 3
    data = Table("x.tsv", ("text",), "label")
    experiment = Experiment(Classification(ENCODER, "x", data, data, lengths=(12,)), AdamW(), TrainConfig())
    encoder = configuration.override(experiment, words[1::2]).task.encoder
    assert (encoder.mlm_activation, encoder.mlm_transform, encoder.positions) == ("relu", False, "relative")


@pytest.mark.parametrize(("there", "here"), [((1, 2), (0, 1, 2)), ((1, 2), (0, 2)), ((1, 3), (1, 2))], ids=str)
def test_a_mix_of_other_layers_begins_anew(there, here, caplog):
    """Its weights are those of layers, whatever their number."""
    model = model_of(dataclasses.replace(ENCODER, read_layers=there))
    params, encoder = started(model, read_layers=here)
    named = [", ".join(map(str, layers)) for layers in (there, here)]
    assert caplog.messages == [f"the mix of there is of the layers {named[0]}, not {named[1]}: a fresh one takes its place"]
    assert not params["mix"]["weights"].any() and params["mix"]["scale"] == 1
    jax.tree.map(np.testing.assert_array_equal, params["classifier"], model.params["classifier"])
    api.apply(params, encoder, {"input_ids": IDS})


def test_a_mix_goes_on_where_the_layers_are_the_same(caplog):
    model = model_of(dataclasses.replace(ENCODER, read_layers=(0, 2)))
    params, _ = started(model, read_layers=(0, 2))
    jax.tree.map(np.testing.assert_array_equal, params, model.params)
    assert not caplog.messages
    for changes in ({"read_layers": (0, 2), "combine": "concatenate"}, {"read_layers": (2,)}):
        caplog.clear()
        params, _ = started(model, **changes)
        assert "mix" not in params and "there has a head mix that is not trained here and left out" in caplog.messages


def test_lora_goes_on_or_is_merged():
    adapted = model_of(dataclasses.replace(ENCODER, lora_rank=2))
    same, encoder = started(adapted, lora_rank=2)
    jax.tree.map(np.testing.assert_array_equal, same, adapted.params)
    for changes in ({}, {"lora_rank": 3}, {"lora_rank": 2, "lora_alpha": 1.0}):
        params, encoder = started(adapted, **changes)
        np.testing.assert_allclose(states(params, encoder), states(adapted.params, adapted.config), atol=1e-5)
    begun, encoder = started(model_of(ENCODER), lora_rank=2)
    np.testing.assert_allclose(states(begun, encoder), states(model_of(ENCODER).params, ENCODER), atol=1e-6)


def test_top_layers_begin_anew():
    params = model_of(ENCODER).params
    assert reinitialised(params, 0, ENCODER, None, None) is params
    init = lambda key: api.init(ENCODER, key)  # noqa: E731 (one expression)
    found, fresh = reinitialised(params, 2, ENCODER, init, jax.random.key(5)), init(jax.random.key(5))
    for part in ("attention", "feed_forward"):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), found[part], params[part])
        jax.tree.map(lambda a, b: close(a[1:], b[1:]), found[part], fresh[part])
    jax.tree.map(close, found["pooler"], fresh["pooler"])
    for part in ("embeddings", "classifier"):
        jax.tree.map(np.testing.assert_array_equal, found[part], params[part])


def table(folder, name, labels):
    rng = np.random.default_rng(0)
    rows = [f"the {word} sat\t{labels[word < 'cat']}" for word in rng.choice(["bird", "cat", "dog"], 40)]
    (folder / name).write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return Table(str(folder / name), ("text",), "label")


@pytest.mark.slow
def test_a_chain_of_runs(tmp_path, monkeypatch, tiny_store, tiny_experiment, caplog):
    """Pre-training, further pre-training, an intermediate task, the task itself: each from the one before."""
    from bert_jax.parallel.mesh import make_mesh
    from bert_jax.training.pretrain import pretrain

    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    short = ["train.steps=2", "train.eval_every=2", "train.save_every=2", "optimizer.warmup_steps=1"]
    pretrain(tiny_experiment("bert", *short), tiny_store, tmp_path / "first")
    further = pretrain(tiny_experiment("bert", *short, f"task.init={tmp_path}/first"), tiny_store, tmp_path / "further")

    encoder, settings = load(tmp_path / "further").config, TrainConfig(2, 8, eval_every=2, save_every=2, eval_batches=None)
    config = Classification(
        finetuned_encoder(encoder, ("no", "yes"), lora_rank=2), str(tmp_path / "further"),
        *[table(tmp_path, "a.tsv", ("no", "yes"))] * 2, lengths=(16,),
    )
    begun = ClassificationTask(config).start(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, begun["attention"], jax.device_get(further.params["attention"]))
    finetune(Experiment(config, AdamW(1e-2, 1), settings), tmp_path / "intermediate")
    middle = load(tmp_path / "intermediate")
    assert middle.config.lora_rank == 2 and np.any(middle.params["lora"]["query"]["up"])

    config = dataclasses.replace(
        config, encoder=finetuned_encoder(encoder, ("low", "high")), init=str(tmp_path / "intermediate"), reinitialise=1,
        data=table(tmp_path, "b.tsv", ("low", "high")), heldout=table(tmp_path, "b.tsv", ("low", "high")),
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        begun = ClassificationTask(config).start(jax.random.key(0))
    assert caplog.messages == [
        f"the head classifier of {tmp_path}/intermediate tells no, yes apart, not low, high: a fresh one takes its place"
    ]
    merged, _ = api.merged(middle.params, middle.config)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), begun["attention"], merged["attention"])
    assert not np.array_equal(begun["attention"]["key"]["kernel"][1], merged["attention"]["key"]["kernel"][1])
    finetune(Experiment(config, AdamW(1e-2, 1, layer_decay=0.9), settings), tmp_path / "last")
    for fields, message in (
        ({"combine": "concatenate", "read_layers": (2,)}, "task.encoder.combine=concatenate has nothing to combine"),
        ({"combine": "concatenate"}, "name two or more layers in task.encoder.read_layers"),
        ({"lora_alpha": 16.0}, "task.encoder.lora_alpha does nothing without task.encoder.lora_rank"),
    ):
        idle = Experiment(dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **fields)))  # of a folder
        with pytest.raises(BertJaxError, match=message):
            finetune(idle, tmp_path / "idle")
    with pytest.raises(BertJaxError, match="task.reinitialise is 3: from 0 to the 2 layers"):
        dataclasses.replace(config, reinitialise=3)
