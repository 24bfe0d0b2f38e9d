"""LoRA: the maps of queries and values, and of low rank beside them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load, save
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from tests.training.test_layerwise import Tiny, run

BASE = EncoderConfig(
    vocab_size=32, embedding_width=16, hidden_width=16, layers=2, heads=2, ffn_width=24, max_length=12, dropout=0.0,
    attention_dropout=0.0, with_heads=("pooler", "classifier"), labels=("a", "b"), lora_rank=3, lora_alpha=5.0,
)
IDS = np.random.default_rng(0).integers(0, 32, (6, 9), np.int32)
KINDS = {
    "private": BASE, "albert": dataclasses.replace(BASE, share="all", embedding_width=8),
    "groups": dataclasses.replace(BASE, share="attention", layers=4, groups=2),
    "unrolled": dataclasses.replace(BASE, unroll=True),
    "relative": dataclasses.replace(BASE, positions="relative", mlm_transform=False),
}


def random_params(config: EncoderConfig):
    params = api.init(config, jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(structure, [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])


def logits(params, config):
    return api.apply(params, config, {"input_ids": IDS}).logits["classifier"]


@pytest.mark.parametrize("name", KINDS)
def test_merged_is_the_same_function(name):
    config = KINDS[name]
    params = random_params(config)
    merged, plain = api.merged(params, config)
    assert not plain.lora_rank and "lora" not in merged
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, api.init(plain, jax.random.key(0)))
    found = logits(params, config)
    np.testing.assert_allclose(logits(merged, plain), found, atol=1e-5)
    without = {part: tree for part, tree in params.items() if part != "lora"}
    assert np.abs(logits(without, plain) - found).max() > 1e-2  # it does something


@pytest.mark.parametrize("name", KINDS)
def test_it_begins_as_nothing(name):
    config = KINDS[name]
    params, plain = api.init(config, jax.random.key(0)), dataclasses.replace(config, lora_rank=0)
    alike = api.init(plain, jax.random.key(0))  # and draws nothing that others would have had
    jax.tree.map(np.testing.assert_array_equal, {part: params[part] for part in alike}, alike)
    np.testing.assert_array_equal(logits(params, config), logits(alike, plain))
    down = params["lora"]["query"]["down"]
    assert down.shape == (config.copies("attention"), 16, 3) and 0.2 < np.abs(down).max() <= 0.25


def test_gradients_are_those_of_the_whole_map_by_the_chain_rule():
    params = random_params(BASE)
    merged, plain = api.merged(params, BASE)
    of_factors = jax.grad(lambda p: jnp.square(logits(p, BASE)).sum())(params)["lora"]
    of_maps = jax.grad(lambda p: jnp.square(logits(p, plain)).sum())(merged)["attention"]
    factor = BASE.lora_alpha / BASE.lora_rank
    for name in ("query", "value"):
        whole, low = of_maps[name]["kernel"], params["lora"][name]
        down = factor * np.einsum("ldnh,lrnh->ldr", whole, low["up"])
        up = factor * np.einsum("ldr,ldnh->lrnh", low["down"], whole)
        np.testing.assert_allclose(of_factors[name]["down"], down, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(of_factors[name]["up"], up, atol=1e-5, rtol=1e-4)
        assert np.abs(down).max() > 1e-3


def test_against_peft(tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    params = jax.device_get(random_params(BASE))
    base = {part: tree for part, tree in params.items() if part != "lora"}
    hf.export(base, dataclasses.replace(BASE, lora_rank=0), None, tmp_path / "hf")
    theirs = peft.get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval(),
        peft.LoraConfig(r=3, lora_alpha=5, target_modules=["query", "value"], task_type="SEQ_CLS"),
    )
    layers = {}
    for name, module in theirs.named_modules():
        if name.endswith(("self.query", "self.value")):
            layers[int(name.split(".layer.")[1].split(".")[0]), name.rpartition(".")[2]] = module
    assert len(layers) == 4
    for (layer, name), module in layers.items():
        low = params["lora"][name]
        module.lora_A.default.weight.data = torch.tensor(low["down"][layer].T.copy())
        module.lora_B.default.weight.data = torch.tensor(low["up"][layer].reshape(3, -1).T.copy())
    expected = theirs.eval()(torch.tensor(IDS, dtype=torch.int64), attention_mask=torch.ones(IDS.shape)).logits
    np.testing.assert_allclose(logits(params, BASE), expected.detach().numpy(), atol=1e-5)
    expected.square().sum().backward()
    gradients = jax.grad(lambda p: jnp.square(logits(p, BASE)).sum())(params)["lora"]
    for (layer, name), module in layers.items():
        down, up = module.lora_A.default.weight.grad.numpy().T, module.lora_B.default.weight.grad.numpy().T
        np.testing.assert_allclose(gradients[name]["down"][layer], down, atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(gradients[name]["up"][layer].reshape(3, -1), up, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["private", "albert"])
def test_only_factors_and_heads_are_trained(name):
    from bert_jax.training.optimizer import AdamW

    task = Tiny(dataclasses.replace(KINDS[name], vocab_size=16))
    history, state = run(task, AdamW(0.01, 0), 2)
    for part, tree in history[0].items():
        same = jax.tree.leaves(jax.tree.map(np.array_equal, tree, history[-1][part]))
        assert all(same) if part in ("embeddings", "attention", "feed_forward") else not any(same), part
    trained = [leaf for part in ("lora", "pooler", "classifier") for leaf in jax.tree.leaves(history[0][part])]
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert sorted(m.shape for m in moments) == sorted(t.shape for t in trained * 2)


def test_no_gradient_of_a_frozen_matrix_is_computed():
    """No product in the gradient, whatever is nested in it, has the shape of a matrix of the encoder."""
    from bert_jax.training.optimizer import AdamW, frozen

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield eqn.outvars[0].aval.shape
            for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                    yield from products(getattr(value, "jaxpr", value))

    def shapes(config):
        still = frozen(AdamW(), api.logical_axes(config))

        def loss(params):
            held = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, still)
            return jnp.square(logits(held, config)).sum()

        return set(products(jax.make_jaxpr(jax.grad(loss))(api.init(config, jax.random.key(0))).jaxpr))

    matrices = {(16, 24), (24, 16)}  # those of the feed-forward blocks, and their transposes
    assert matrices & shapes(dataclasses.replace(BASE, lora_rank=0))
    found = shapes(BASE)
    assert not matrices & found and {(16, 3), (3, 16)} & found


def test_files(tmp_path):
    params = jax.device_get(random_params(BASE))
    model = Model(params, BASE, None)
    save(model, tmp_path / "own", format="bert_jax")
    again = load(tmp_path / "own")
    assert again.config == BASE
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    save(model, tmp_path / "hf")
    merged = load(tmp_path / "hf")
    assert merged.config == dataclasses.replace(BASE, lora_rank=0, lora_alpha=EncoderConfig.lora_alpha)
    np.testing.assert_allclose(logits(merged.params, merged.config), logits(params, BASE), atol=1e-5)


def test_what_is_refused():
    for wrong in ({"lora_rank": -1}, {"lora_rank": 17}, {"lora_alpha": 0.0}):
        with pytest.raises(BertJaxError, match="lora_"):
            dataclasses.replace(BASE, **wrong)
