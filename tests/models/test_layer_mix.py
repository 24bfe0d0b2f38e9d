"""Which layers the heads read: one, a learned mix of several, several side by side."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load, save
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig

BASE = EncoderConfig(
    vocab_size=32, embedding_width=16, hidden_width=16, layers=4, heads=2, ffn_width=32, max_length=12, dropout=0.0,
    attention_dropout=0.0, with_heads=("pooler", "classifier"), labels=("a", "b", "c"),
)
IDS = np.random.default_rng(0).integers(0, 32, (3, 7), np.int32)


def reading(*layers: int, **changes) -> EncoderConfig:
    return dataclasses.replace(BASE, read_layers=layers, **changes)


def random_params(config: EncoderConfig):
    """Far from the initialisation, so that layers differ and nothing is 0."""
    params = api.init(config, jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(structure, [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])


def first_layers(params, depth: int):
    return params | {part: jax.tree.map(lambda a: a[:depth], params[part]) for part in ("attention", "feed_forward")}


def run(params, config, **options):
    return api.apply(params, config, {"input_ids": IDS}, **options)


def scans(config):
    """Lengths of the scans over layers, and shapes of what they stack."""
    made = jax.make_jaxpr(lambda params: run(params, config)[:3])(api.init(config, jax.random.key(0)))
    found = [eqn for eqn in made.jaxpr.eqns if eqn.primitive.name == "scan"]
    return [
        (eqn.params["length"], [
            v.aval.shape for v, one in zip(eqn.outvars, eqn.params["jaxpr"].out_avals, strict=True)
            if v.aval.shape == (eqn.params["length"], *one.shape)  # else it is carried
        ]) for eqn in found
    ]


@pytest.mark.parametrize("layer", [1, 2, 4])
def test_one_layer_is_read_and_later_ones_do_not_run(layer):
    whole = random_params(BASE)
    states = run(whole, BASE, collect=("hidden_states",)).collected["hidden_states"]
    config = reading(layer)
    params = first_layers(whole, layer)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, api.init(config, jax.random.key(0)))
    np.testing.assert_allclose(run(params, config).hidden, states[layer], atol=1e-6)
    assert scans(config) == [(layer, [])] and scans(BASE) == [(4, [])]  # nor is anything stacked


def test_layers_side_by_side():
    config = reading(1, 2, 3, 4, combine="concatenate")
    params = random_params(config)
    found = run(params, config, collect=("hidden_states",))
    np.testing.assert_array_equal(found.hidden, jnp.concatenate(found.collected["hidden_states"][1:], axis=-1))
    assert params["pooler"]["dense"]["kernel"].shape == (64, 16) and "mix" not in params
    assert run(params, config).collected == {}


@pytest.mark.parametrize("index, layer", [(0, 0), (1, 2), (2, 3)])
def test_a_mix_of_which_one_layer_dominates_is_that_layer(index, layer):
    config = reading(0, 2, 3)
    params = random_params(config)
    params["mix"] = {"weights": jnp.zeros(3).at[index].set(100.0), "scale": jnp.float32(1)}
    found = run(params, config, collect=("hidden_states",))
    np.testing.assert_allclose(found.hidden, found.collected["hidden_states"][layer], atol=1e-6)
    even = params | {"mix": {"weights": jnp.zeros(3), "scale": jnp.float32(2)}}
    states = found.collected["hidden_states"]
    np.testing.assert_allclose(run(even, config).hidden, 2 * (states[0] + states[2] + states[3]) / 3, atol=1e-5)


def test_gradients_of_the_mix_are_differences():
    config = reading(1, 3, 4)
    params = random_params(config)
    towards = jax.random.normal(jax.random.key(3), (3, 7, 16))

    @jax.jit
    def loss(mix):
        return (run(params | {"mix": mix}, config).hidden * towards).sum()

    gradient, step = jax.grad(loss)(params["mix"]), 1e-2
    for name, count in (("weights", 3), ("scale", 1)):
        for index in range(count):
            def moved(sign, name=name, index=index):
                leaf = jnp.asarray(params["mix"][name])
                return params["mix"] | {name: leaf.reshape(-1).at[index].add(sign * step).reshape(leaf.shape)}

            difference = (loss(moved(1)) - loss(moved(-1))) / (2 * step)
            np.testing.assert_allclose(np.ravel(gradient[name])[index], difference, rtol=5e-3, atol=5e-3)
    assert np.abs(gradient["weights"]).min() > 0.01


@pytest.mark.parametrize("layers, combine", [((1, 2, 3, 4), "concatenate"), ((2,), "mix"), ((0, 2, 4), "mix")],
                         ids=["concatenated", "one", "mixed"])
def test_loss_and_gradients_are_those_of_torch(layers, combine, tmp_path):
    """A classification that reads what BertModel gives with output_hidden_states: Devlin et al. 2019, section 5.3, and ELMo."""
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers (the torch extra)")
    config, labels = reading(*layers, combine=combine), np.array([0, 2, 1])
    params, plain = random_params(config), dataclasses.replace(BASE, layers=max(layers), with_heads=(), labels=())
    encoder = ("embeddings", "attention", "feed_forward")
    hf.export(jax.device_get({part: params[part] for part in encoder}), plain, None, tmp_path / "hf")
    model = transformers.BertModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False, attn_implementation="eager")
    model = model.eval().double()
    own = {part: tree for part, tree in params.items() if part not in encoder}
    own = jax.tree.map(lambda leaf: torch.tensor(np.array(leaf, np.float64), requires_grad=True), own)
    states = model(input_ids=torch.tensor(IDS).long(), output_hidden_states=True).hidden_states
    read = torch.cat([states[layer] for layer in layers], dim=-1)
    if "mix" in own:
        shares = own["mix"]["weights"].softmax(0)
        read = own["mix"]["scale"] * sum(share * states[layer] for share, layer in zip(shares, layers, strict=True))
    pooled = torch.tanh(read[:, 0] @ own["pooler"]["dense"]["kernel"] + own["pooler"]["dense"]["bias"])
    logits = pooled @ own["classifier"]["dense"]["kernel"] + own["classifier"]["dense"]["bias"]
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    theirs.backward()

    @jax.jit
    def loss(params):
        found = jax.nn.log_softmax(run(params, config).logits["classifier"])
        return -jnp.take_along_axis(found, labels[:, None], axis=1).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    ours = hf.to_tensors({part: gradients[part] for part in encoder}, plain)
    wanted = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    pad = wanted["embeddings.word_embeddings.weight"]
    pad[0] = ours["embeddings.word_embeddings.weight"][0]  # PyTorch never trains the padding piece; google-research/bert does
    assert ours.keys() == wanted.keys()
    for part in own:
        for path, leaf in jax.tree.leaves_with_path(own[part]):
            name = part + jax.tree_util.keystr(path)
            ours[name] = dict(jax.tree.leaves_with_path(gradients[part]))[path]
            wanted[name] = leaf.grad.numpy()
    assert len(ours) == len(jax.tree.leaves(own)) + len(dict(model.named_parameters()))
    for name, gradient in wanted.items():
        # Softmax ignores what is the same at every position: the gradient of these is zero but for rounding.
        tolerance = 1e-6 if name.endswith("key.bias") else 1e-5 * np.abs(gradient).max()
        np.testing.assert_allclose(ours[name], gradient, atol=tolerance, rtol=0, err_msg=name)


SHARED = {"none": {}, "all": {"share": "all"}, "groups": {"share": "all", "groups": 2}, "attention": {"share": "attention"},
          "every-set": {"share": "all", "groups": 4}, "inner": {"share": "all", "layers": 2, "inner_layers": 2}}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("layer", [2, 3])
def test_the_plain_form_is_the_same_function(name, layer):
    whole = dataclasses.replace(BASE, **SHARED[name])
    config = dataclasses.replace(whole, read_layers=(layer,))
    params = random_params(config)
    states = run(params, dataclasses.replace(whole, read_layers=(layer,)), collect=("hidden_states",)).collected
    plain, plain_config = api.plain(params, config)
    assert plain_config.read_layers == () and plain_config.depth == layer
    np.testing.assert_allclose(run(plain, plain_config).hidden, states["hidden_states"][-1], atol=1e-6)
    if whole.share != "none":  # against the whole depth, whose later layers use the same parameters
        if jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, random_params(whole)):
            longer = run(params, whole, collect=("hidden_states",)).collected["hidden_states"]
            np.testing.assert_allclose(states["hidden_states"], longer[: layer + 1], atol=1e-6)


def test_files(tmp_path):
    one = reading(2)
    params = jax.device_get(random_params(one))
    hf.export(params, one, None, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_hidden_layers"] == 2
    again = hf.load(tmp_path / "hf")
    found, expected = (run(*pair).logits["classifier"] for pair in ((again.params, again.config), (params, one)))
    np.testing.assert_allclose(found, expected, atol=1e-6)

    for combine in ("mix", "concatenate"):
        several = reading(1, 4, combine=combine)
        params = jax.device_get(random_params(several))
        with pytest.raises(BertJaxError, match="have no form outside bert_jax"):
            hf.export(params, several, None, tmp_path / "refused")
        save(Model(params, several, None), tmp_path / combine, format="bert_jax")
        model = load(tmp_path / combine)
        assert model.config == several
        jax.tree.map(np.testing.assert_array_equal, model.params, params)


@pytest.mark.parametrize("layers", [(0,), (5,), (3, 2), (2, 2), (-1, 3)])
def test_layers_that_are_not_there(layers):
    with pytest.raises(BertJaxError, match="ascending numbers"):
        reading(*layers)


def test_axes_fit_the_tree():
    for config in (reading(1, 4), reading(1, 4, combine="concatenate"), reading(3), reading(1, 4, lora_rank=2)):
        shapes = jax.eval_shape(lambda config=config: api.init(config, jax.random.key(0)))
        axes = api.logical_axes(config)
        jax.tree.map(lambda leaf, names: np.testing.assert_equal(leaf.ndim, len(names)), shapes, axes,
                     is_leaf=lambda node: isinstance(node, jax.ShapeDtypeStruct))
