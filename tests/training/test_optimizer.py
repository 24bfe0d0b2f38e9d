"""The two optimisers against PyTorch and against the papers written out in NumPy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import functional
from bert_jax.data.pairs import PairSpec
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining, Turn
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import AdamW, Lamb, make_optimizer, matrices, scale_by_trust_ratio, schedule

STEPS, WARMUP = 10, 2
SHAPES = {
    "attention": {"kernel": (3, 4, 5), "bias": (3, 5), "scale": (3, 4)},
    "embeddings": {"token": (7, 4)},
    "pooler": {"kernel": (4, 4), "bias": (4,)},
}
AXES = {
    "attention": {"kernel": ("layers", "model", None), "bias": ("layers", None), "scale": ("layers", "model")},
    "embeddings": {"token": ("vocab", "embedding")},
    "pooler": {"kernel": ("model", None), "bias": (None,)},
}
DECAYED = {"kernel", "token"}


def tree(seed: int, size: float = 1.0):
    rng = np.random.default_rng(seed)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731 (jax wants a function)
    return jax.tree.map(lambda shape: np.float32(size * rng.standard_normal(shape)), SHAPES, is_leaf=is_shape)


def ours(config, gradients, params, axes=AXES, steps=STEPS):
    optimizer = make_optimizer(config, steps, axes)
    state = optimizer.init(params)
    update = jax.jit(lambda g, s, p: (lambda u, t: (optax.apply_updates(p, u), t))(*optimizer.update(g, s, p)))
    for gradient in gradients:
        params, state = update(gradient, state, params)
    return jax.tree.map(np.asarray, params)


def numpy_rate(config, step: int) -> float:
    """Linear up from 0 to the peak at the end of warm-up, linear down to 0 at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    return config.learning_rate * (STEPS - step) / (STEPS - config.warmup_steps)


def clipped(gradient, limit):
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda g: g.astype(np.float64) * min(1.0, limit / norm), gradient)


def of_layer(params, part, name, layer):
    value = params[part][name]
    return np.float64(value if layer is None else value[layer])


def in_numpy(config, gradients, params):
    """Both algorithms on float64, parameter by parameter; stacked ones are taken apart into layers first."""
    units = {}
    for part, leaves in params.items():
        for name, value in leaves.items():
            stacked = AXES[part][name][0] == "layers"
            for layer in range(len(value)) if stacked else (None,):
                pick = functools.partial(of_layer, part=part, name=name, layer=layer)
                units[part, name, layer] = [pick(params), pick]
    moments = {unit: [0.0, 0.0] for unit in units}
    for step, gradient in enumerate(gradients):
        gradient = clipped(gradient, config.clip_norm)
        for unit, (weight, pick) in units.items():
            g = pick(gradient)
            m, v = moments[unit]
            m = config.beta1 * m + (1 - config.beta1) * g
            v = config.beta2 * v + (1 - config.beta2) * g * g
            moments[unit] = [m, v]
            if config.bias_correction:
                m, v = m / (1 - config.beta1 ** (step + 1)), v / (1 - config.beta2 ** (step + 1))
            update = m / (np.sqrt(v) + config.eps)
            decayed = unit[1] in DECAYED
            if decayed:
                update = update + config.weight_decay * weight
            if decayed and isinstance(config, Lamb):
                lengths = np.linalg.norm(weight), np.linalg.norm(update)
                update = update * (lengths[0] / lengths[1] if min(lengths) > 0 else 1.0)
            units[unit][0] = weight - numpy_rate(config, step) * update
    out = jax.tree.map(np.copy, params)
    for (part, name, layer), (weight, _) in units.items():
        out[part][name][() if layer is None else layer] = weight
    return out


@pytest.mark.parametrize("kind", [AdamW, Lamb])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("size", [0.1, 10.0], ids=["small", "clipped"])
def test_against_numpy(kind, bias_correction, size):
    config = kind(learning_rate=0.05, warmup_steps=WARMUP, weight_decay=0.1, bias_correction=bias_correction)
    gradients = [tree(seed, size) for seed in range(1, 7)]
    start = tree(0)
    found, expected = ours(config, gradients, start), in_numpy(config, gradients, start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, start)
    assert min(jax.tree.leaves(moved)) > 0.01


@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_stacked_layers_are_separate_layers(kind):
    """One trust ratio for a whole stack would be a silent mistake: layers alone must take the same steps."""
    config = kind(learning_rate=0.05, warmup_steps=1, weight_decay=0.1, clip_norm=1e9)
    gradients, start = [tree(seed) for seed in range(1, 4)], tree(0)
    start["attention"]["kernel"] *= np.float32([0.1, 1.0, 10.0])[:, None, None]  # ratios that differ by layer
    together = ours(config, gradients, start)["attention"]
    axes = {"attention": {name: names[1:] for name, names in AXES["attention"].items()}}
    for layer in range(3):
        pick = lambda t, k=layer: {"attention": {name: a[k] for name, a in t["attention"].items()}}  # noqa: E731
        alone = ours(config, [pick(g) for g in gradients], pick(start), axes)["attention"]
        for name in alone:
            np.testing.assert_allclose(together[name][layer], alone[name], rtol=1e-6, atol=1e-7)


def test_trust_ratio_of_nothing_is_one():
    updates = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.zeros((2, 3))}}
    params = {"a": {"kernel": jnp.zeros((2, 3))}, "b": {"kernel": jnp.ones((2, 3))}}
    axes = jax.tree.map(lambda _: ("layers", None), params)
    include = jax.tree.map(lambda _: True, params)
    transform = scale_by_trust_ratio(include, axes)
    found, _ = transform.update(updates, transform.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found, updates)


@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_biases_and_norms_do_not_decay(kind):
    config = kind(learning_rate=0.1, warmup_steps=1, weight_decay=0.5)
    still = jax.tree.map(np.zeros_like, tree(0))
    start = tree(0)
    found = ours(config, [still] * 3, start)
    for part, leaves in found.items():
        for name, value in leaves.items():
            same = (value == start[part][name]).all()
            assert same == (name not in DECAYED), (part, name)


@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_a_clip_that_would_stop_everything_is_refused(kind):
    """0 means "no clipping" elsewhere (max_grad_norm of transformers)."""
    for limit in (0, -1.0):
        with pytest.raises(BertJaxError, match="clip_norm is .*: above 0; Infinity clips nothing"):
            kind(clip_norm=limit)
    kind(clip_norm=math.inf)


def test_what_decays_in_a_real_model():
    """Only biases and layer-norm scales are spared, under every name that the models give them."""
    config = EncoderConfig(vocab_size=11, embedding_width=4, hidden_width=8, layers=2, heads=2, ffn_width=8, max_length=4)
    params = jax.jit(lambda key: api.init(config, key))(jax.random.key(0))
    params = jax.tree.map(lambda p: np.asarray(p) + 1, params)
    optimizer = make_optimizer(AdamW(warmup_steps=0, weight_decay=0.5), 10, api.logical_axes(config))
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    for path, update in jax.tree.leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert bool(np.any(update)) == (not name.endswith(("/bias", "/scale"))), name


@pytest.mark.parametrize("kind", [AdamW, Lamb])
def test_schedule(kind):
    config = kind(learning_rate=0.2, warmup_steps=4)
    rate = schedule(config, 10)
    found = [float(rate(step)) for step in range(12)]
    expected = [0, 0.05, 0.1, 0.15, 0.2, 0.2 * 5 / 6, 0.2 * 4 / 6, 0.1, 0.2 * 2 / 6, 0.2 / 6, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert float(schedule(kind(learning_rate=0.2, warmup_steps=0), 10)(0)) == pytest.approx(0.2)
    for warmup in (10, 11):
        with pytest.raises(BertJaxError, match=f"warmup_steps {warmup} is not below train.steps 10"):
            schedule(kind(warmup_steps=warmup), 10)


ENCODERS = {
    "bert": EncoderConfig(
        vocab_size=31, embedding_width=16, hidden_width=16, layers=2, heads=2, ffn_width=24, max_length=12
    ),
}
ENCODERS["albert"] = dataclasses.replace(ENCODERS["bert"], embedding_width=8, share="all", activation="gelu_new")


@pytest.mark.parametrize("family", ENCODERS)
def test_three_steps_as_in_pytorch(family, tmp_path):
    """The whole model of transformers under torch.optim.AdamW with BERT's two parameter groups, clipped at 1."""
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers (the torch extra)")
    from bert_jax.convert import hf
    from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

    encoder = ENCODERS[family]
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(encoder, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: np.float32((path[-1].key == "scale") + 0.2 * noise.standard_normal(x.shape)), shapes
    )
    batches = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        batches.append({
            "input_ids": rng.integers(5, 31, (4, 12)), "attention_mask": np.arange(12) < np.array([[12], [7], [9], [12]]),
            "segment_ids": rng.integers(0, 2, (4, 12)), "masked_positions": np.array([[1, 4, 6]] * 4),
            "labels": rng.integers(5, 31, (4, 3)), "pair": rng.integers(0, 2, 4),
        })
    steps, rate, decay = 10, 1e-2, 0.1
    config = AdamW(learning_rate=rate, warmup_steps=1, weight_decay=decay, eps=1e-6, bias_correction=True)

    def loss(params, batch):
        names = ("input_ids", "attention_mask", "segment_ids", "masked_positions")
        outputs = api.apply(params, encoder, {name: batch[name] for name in names})
        mlm, pair = (functional.score_labels(*args)[0].mean() for args in
                     ((outputs.logits["mlm"], batch["labels"]), (outputs.logits["pair"], batch["pair"])))
        return mlm + pair

    hf.export(params, encoder, WordPieceTokenizer([*SPECIALS, *"abcdefghijklmnopqrstuvwxyz"]), tmp_path / "exported")
    model = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "exported", attn_implementation="eager").eval()
    spared = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name]
    rest = [p for p in model.parameters() if not any(p is q for q in spared)]
    theirs = torch.optim.AdamW(
        [{"params": rest, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}], eps=config.eps
    )
    optimizer = make_optimizer(config, steps, api.logical_axes(encoder))
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, batch):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, optax.global_norm(gradients)

    start = hf.to_tensors(params, encoder)
    for step, batch in enumerate(batches):
        labels = np.full((4, 12), -100)
        np.put_along_axis(labels, batch["masked_positions"], batch["labels"], axis=1)
        pair = "sentence_order_label" if family == "albert" else "next_sentence_label"
        theirs.zero_grad()
        their_loss = model(
            input_ids=torch.tensor(batch["input_ids"]), attention_mask=torch.tensor(batch["attention_mask"]).long(),
            token_type_ids=torch.tensor(batch["segment_ids"]), labels=torch.tensor(labels),
            **{pair: torch.tensor(batch["pair"])},
        ).loss
        their_loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in theirs.param_groups:
            group["lr"] = float(schedule(config, steps)(step))
        theirs.step()
        params, state, our_loss, our_norm = update(params, state, batch)
        np.testing.assert_allclose(our_loss, their_loss.item(), rtol=1e-5)
        np.testing.assert_allclose(our_norm, norm.item(), rtol=1e-5)
        assert step > 0 or our_norm > 1.0, "the gradient must be large enough to be clipped"
    found = hf.to_tensors(params, encoder)
    moved = []
    for name, parameter in model.named_parameters():
        if ".key.bias" in name:  # its gradient is zero but for rounding, and Adam divides rounding by rounding
            continue
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), atol=1e-5, rtol=0, err_msg=name)
        moved.append(np.abs(found[name] - start[name]).max())
    assert min(moved) > 1e-4


@pytest.mark.parametrize(("field", "value"), [
    ("eps", 0.0), ("beta1", 1.0), ("beta2", 98.0), ("beta2", -0.1), ("weight_decay", -0.01), ("warmup_steps", -1),
])
def test_values_that_can_only_be_mistakes_are_refused(field, value):
    for kind in (AdamW, Lamb):
        with pytest.raises(BertJaxError, match=f"optimizer.{field} is {value}: "):
            kind(**{"learning_rate": 1e-3, field: value})


def test_what_xlnet_adds_to_queries_decays():
    config = EncoderConfig(vocab_size=8, embedding_width=8, hidden_width=8, layers=1, heads=2, ffn_width=8, max_length=8,
                           positions="relative", with_heads=())
    decayed = matrices(api.logical_axes(config))["attention"]
    assert all(decayed[part]["bias"] for part in ("content", "position", "segment")) and not decayed["norm"]["bias"]


ENCODER = dict(vocab_size=64, embedding_width=8, hidden_width=8, layers=1, heads=2, ffn_width=8, max_length=16)


def test_lamb_moves_nothing_that_has_no_gradient():
    """Its steps are as long as the weights: what rests for a turn, or for ever, would be moved or shrink by whole steps."""
    def checked(encoder, objectives, turns=(), optimizer=None):
        task = Pretraining(EncoderConfig(**ENCODER | encoder), objectives, PairSpec(length=16, pairs="none"), turns)
        Experiment(task, optimizer or Lamb()).check_beginning()

    relative = {"positions": "relative", "with_heads": ("mlm",)}
    with pytest.raises(BertJaxError, match="no objective trains the query vector of task.encoder.positions relative, and LAMB"):
        checked(relative, (MaskedLM(),))
    checked(relative, (MaskedLM(),), optimizer=Lamb(weight_decay=0.0))
    checked(relative, (MaskedLM(),), optimizer=AdamW())
    pairs = Turn("pairs", (MaskedLM(), NextSentence()), PairSpec(length=16, pairs="nsp"))
    both = {"with_heads": ("pooler", "mlm", "pair")}
    with pytest.raises(BertJaxError, match="not every turn trains pair, pooler, and LAMB would go on moving them"):
        checked(both, (MaskedLM(),), (pairs,))
    checked(both, (MaskedLM(),), (pairs,), AdamW())
    checked({"with_heads": ("mlm",)}, (MaskedLM(),), (Turn("more", (MaskedLM(rate=0.3),), PairSpec(length=16, pairs="none")),))
