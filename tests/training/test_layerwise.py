"""Learning rates that differ by layer, layers that wait, and parameters that stay as they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
from bert_jax.task import Losses, Ratio, plain_gradient
from bert_jax.training.optimizer import AdamW, Lamb, frozen, make_optimizer
from bert_jax.training.step import abstract_state, init_state, make_train_step

ENCODER = EncoderConfig(
    vocab_size=16, embedding_width=16, hidden_width=16, layers=3, heads=8, ffn_width=16, max_length=8, dropout=0.0,
    attention_dropout=0.0, with_heads=("pooler", "classifier"), labels=("a", "b"),
)
PART_OF = {"embeddings": "embeddings", "attention": "layers", "feed_forward": "layers"}


class Tiny:
    """As much of a task as an update asks for; ``anchor``: with copies of the encoder's parameters."""

    def __init__(self, encoder: EncoderConfig = ENCODER, anchor: bool = False):
        self.encoder, self.anchor = encoder, anchor

    def init(self, key):
        params = api.init(self.encoder, key)
        return params | ({"anchor": {"attention": params["attention"]}} if self.anchor else {})

    def logical_axes(self):
        axes = api.logical_axes(self.encoder)
        return axes | ({"anchor": {"attention": axes["attention"]}} if self.anchor else {})

    def corrupt(self, batch, key, step):
        return batch

    def loss(self, params, batch, key):
        found = api.apply(params, self.encoder, {"input_ids": batch["input_ids"]}, key=key)
        nats = optax.softmax_cross_entropy_with_integer_labels(found.logits["classifier"], batch["label"])
        loss = nats.sum()
        if self.anchor:
            far = jax.tree.map(lambda a, b: jnp.square(a - 2 * b).sum(), params["attention"], params["anchor"]["attention"])
            loss += sum(jax.tree.leaves(far))
        return Losses({"classifier": Ratio(loss, jnp.float32(len(nats)))}, {})

    gradient = staticmethod(plain_gradient)

    def follow(self, params, step, steps):
        return params


def batches(count: int):
    rng = np.random.default_rng(0)
    return [
        {"input_ids": rng.integers(0, 16, (8, 8), np.int32), "label": rng.integers(0, 2, 8, np.int32)} for _ in range(count)
    ]


def run(task, config, updates: int, sizes=None, accumulate: int = 1):
    """Parameters before the first and after every update, and the last state; on one device, or a mesh of ``sizes``."""
    mesh = make_mesh(MeshConfig(*(sizes or (1, 1, 1))), None if sizes else jax.devices()[:1])
    axes = task.logical_axes()
    optimizer = make_optimizer(config, 100, axes)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, optimizer, mesh)
        state = init_state(task, optimizer, abstract, jax.random.key(0), jax.device_get(task.init(jax.random.key(0))))
        step = make_train_step(
            task, optimizer, mesh, abstract, accumulate=accumulate, frozen=frozen(config, axes)
        )
        history = [jax.device_get(state.params)]
        for batch in batches(updates):
            state, _ = step(state, to_devices(batch, mesh))
            history.append(jax.device_get(state.params))
    return history, state


def paths(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_layer_decay_is_torch_with_a_group_for_every_layer():
    torch = pytest.importorskip("torch")
    rate, decay, depth = 0.01, 0.8, ENCODER.depth
    axes = api.logical_axes(ENCODER)
    start = jax.device_get(api.init(ENCODER, jax.random.key(0)))
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda a: np.float32(rng.standard_normal(a.shape)), start) for _ in range(3)]

    config = AdamW(rate, 0, weight_decay=0.1, clip_norm=1e9, bias_correction=True, layer_decay=decay)
    optimizer = make_optimizer(config, 1_000_000_000, axes)  # as good as constant
    params, state = start, optimizer.init(start)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    # Each group with the rate that google-research/electra gives it: embeddings are depth 0, layers from 1, heads depth + 2.
    groups, tensors = [], {}
    for name, value in paths(start).items():
        part = PART_OF.get(name.partition("/")[0], "heads")
        for index in range(depth) if part == "layers" else [None]:
            place = {"embeddings": 0, "heads": depth + 2}.get(part, (index or 0) + 1)
            tensors[name, index] = torch.tensor(value if index is None else value[index], requires_grad=True)
            groups.append({"params": [tensors[name, index]], "lr": rate * decay ** (depth + 2 - place),
                           "weight_decay": 0.0 if name.endswith(("bias", "scale")) else 0.1})
    theirs = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-6)
    for gradient in gradients:
        flat = paths(gradient)
        for (name, index), tensor in tensors.items():
            tensor.grad = torch.tensor(flat[name] if index is None else flat[name][index])
        theirs.step()
    found = paths(params)
    for (name, index), tensor in tensors.items():
        ours, before = (flat[name] if index is None else flat[name][index] for flat in (found, paths(start)))
        np.testing.assert_allclose(ours, tensor.detach().numpy(), atol=1e-5, rtol=0, err_msg=f"{name} {index}")
        assert np.abs(ours - before).max() > 1e-3


@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_layers_wait_for_their_turn(kind):
    config = kind(0.01, 0, unfreeze_every=2)
    history, _ = run(Tiny(), config, 10)
    for number, (before, after) in enumerate(zip(history, history[1:], strict=False)):
        moved = jax.tree.map(lambda a, b: a != b, before, after)
        layers = [
            any(bool(leaf[layer].any()) for part in ("attention", "feed_forward") for leaf in jax.tree.leaves(moved[part]))
            for layer in range(3)
        ]
        assert layers == [number >= 6, number >= 4, number >= 2], number
        assert any(leaf.any() for leaf in jax.tree.leaves(moved["embeddings"])) == (number >= 8), number
        assert moved["classifier"]["dense"]["kernel"].all() and moved["pooler"]["dense"]["kernel"].any()


def test_what_is_frozen_has_no_moments_and_does_not_move():
    history, state = run(Tiny(), AdamW(0.01, 0, freeze_encoder=True), 3)
    for name, value in paths(history[-1]).items():
        still = name.partition("/")[0] in PART_OF
        assert np.array_equal(paths(history[0])[name], value) == still, name
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    heads = [x for part in ("pooler", "classifier") for x in jax.tree.leaves(history[0][part])]
    assert sorted(x.shape for x in moments) == sorted(x.shape for x in heads * 2)


def test_anchors_stay_and_the_rest_moves_as_without_moments_of_theirs():
    history, state = run(Tiny(anchor=True), AdamW(0.01, 0), 2)
    jax.tree.map(np.testing.assert_array_equal, history[0]["anchor"], history[-1]["anchor"])
    assert not np.array_equal(history[0]["attention"]["query"]["kernel"], history[-1]["attention"]["query"]["kernel"])
    count = sum(len(jax.tree.leaves(tree)) for part, tree in history[0].items() if part != "anchor")
    assert sum(x.ndim > 0 for x in jax.tree.leaves(state.optimizer)) == 2 * count


@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_nothing_asked_for_changes_nothing(kind):
    """The state of the optimiser as it was before there were such options: checkpoints from then continue."""
    axes = api.logical_axes(ENCODER)
    params = api.init(ENCODER, jax.random.key(0))
    state = make_optimizer(kind(), 100_000, axes).init(params)
    names = [type(part).__name__ for part in state]
    expected = ["EmptyState", "ScaleByAdamState", "MaskedState", *["EmptyState"] * (kind is Lamb), "ScaleByScheduleState"]
    assert names == expected and state[1].mu.keys() == params.keys()
    assert not any(jax.tree.leaves(frozen(kind(), axes)))


LORA = dataclasses.replace(ENCODER, lora_rank=8)


@pytest.mark.slow
@pytest.mark.parametrize("encoder, config", [
    (ENCODER, AdamW(0.01, 0, layer_decay=0.8)), (ENCODER, Lamb(0.01, 0, layer_decay=0.8, unfreeze_every=1)),
    (LORA, AdamW(0.01, 0, layer_decay=0.9)), (LORA, Lamb(0.01, 0)),
], ids=["decay", "decay-waiting-lamb", "lora-decay", "lora-lamb"])
def test_eight_devices_are_one(encoder, config):
    one, _ = run(Tiny(encoder), config, 3)
    many, state = run(Tiny(encoder), config, 3, (2, 2, 2), accumulate=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), one[-1], many[-1])
    params, compared = paths(state.params), 0
    for name, moment in paths(state.optimizer).items():
        owner = next((o for o in params if name.endswith("/" + o)), None)
        if owner and "mu" in name:
            assert moment.sharding == params[owner].sharding, name
            compared += 1
    assert compared >= 4


def test_what_is_refused():
    from bert_jax.training.experiment import Experiment
    from tests.tiny_albert import get_config

    for wrong, message in (({"layer_decay": 1.5}, "above 0, and at most 1"), ({"unfreeze_every": 0}, "at least 1 update"),
                           ({"freeze_encoder": True, "layer_decay": 0.9}, "trains no layers"),
                           ({"learning_rate": 0.0}, "learning_rate is 0.0: it must be above 0, and finite"),
                           ({"learning_rate": -1e-4}, "it must be above 0"), ({"learning_rate": float("inf")}, "and finite")):
        for kind in (AdamW, Lamb):
            with pytest.raises(BertJaxError, match=message):
                kind(**wrong)
    albert = get_config()
    for option in ({"layer_decay": 0.9}, {"unfreeze_every": 3}):
        with pytest.raises(BertJaxError, match="cannot have different learning rates"):
            dataclasses.replace(albert, optimizer=AdamW(**option))
    task = dataclasses.replace(albert.task, encoder=dataclasses.replace(albert.task.encoder, lora_rank=2))
    with pytest.raises(BertJaxError, match="choose one"):
        Experiment(task, AdamW(freeze_encoder=True))
