"""SMART: its terms and their gradients against PyTorch, what the ascent finds, the moving average, every kind of task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.tasks.base import without_anchors
from bert_jax.tasks.owners import owners
from bert_jax.tasks.smart import Smart, distance
from tests.tasks.tiny_tasks import ENCODER, KINDS, TOKENIZER, gradient_of, make_batch, make_task, scattered, updated

KEY = jax.random.key(9)  # (with 7 one example's first gradient is tiny: divided by its largest value, so is what rounding did)
WITHOUT = {"dropout": 0.0, "attention_dropout": 0.0}
TERMS = ("smoothness_loss", "proximity_loss")


def anchored(task):
    """Parameters whose moving average is somewhere else."""
    params = scattered(api.init(task.config.encoder, KEY), 0.2)
    return params | ({"anchor": {"smart": scattered(params, 0.05, seed=1)}} if task.config.tricks[0].proximity else {})


@pytest.mark.parametrize("apart", [1.0, 1e-5])
def test_distance_is_that_of_float64(apart):
    rng = np.random.default_rng(0)
    one, change = np.float32(rng.standard_normal((64, 5))), rng.standard_normal((64, 5))
    other = np.float32(one + apart * change)
    p, q = (np.exp(np.float64(x)) / np.exp(np.float64(x)).sum(-1, keepdims=True) for x in (one, other))
    exact = (p * np.log(p / q) + q * np.log(q / p)).sum(-1)
    found = np.array(distance(one, other))
    assert (found >= 0).all()
    # Logits that are 1e-5 apart differ by a hundred roundings; sum(p log p - p log q) would be off by more than it is.
    np.testing.assert_allclose(found, exact, rtol=1e-5 if apart == 1 else 0.3)
    np.testing.assert_allclose(found.mean(), exact.mean(), rtol=1e-5 if apart == 1 else 0.02)
    np.testing.assert_array_equal(distance(one, one), 0)
    np.testing.assert_allclose(distance(one[:, :1], other[:, :1]), np.square(one - other)[:, 0])
    without = one.copy()
    without[:, -1] = np.finfo(np.float32).min  # a choice that a question does not have
    slope = jax.grad(lambda x: distance(x, without + np.float32(0.1)).sum())(without)
    assert np.isfinite(distance(without, without)).all() and np.isfinite(slope).all()


def reference(torch, model, average, batch, noise, trick, regression):
    """Both terms, as the paper writes them, from scratch: sum of KL(p, q) + KL(q, p), or of squares, over the examples."""
    ids, mask = torch.tensor(batch["input_ids"]).long(), torch.tensor(batch["attention_mask"])

    def logits(model, delta):
        embedded = model.bert.embeddings.word_embeddings(ids) + delta
        return model(
            inputs_embeds=embedded, attention_mask=mask.long(), token_type_ids=torch.tensor(batch["segment_ids"]).long()
        ).logits

    def apart(one, other):
        if regression:
            return (one - other).square().sum()
        p, q = one.log_softmax(-1), other.log_softmax(-1)
        return (p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()

    clean = logits(model, 0)
    noise = torch.tensor(np.array(noise)).to(clean.dtype) * mask[..., None]
    for _ in range(trick.steps):
        noise = noise.detach().requires_grad_()
        (slope,) = torch.autograd.grad(apart(clean.detach(), logits(model, noise)), noise)
        slope = slope * mask[..., None]
        if trick.ascent == "projected":
            largest = slope.abs().flatten(1).max(dim=1).values[:, None, None]
            noise = (noise + trick.step_size * slope / largest).clamp(-trick.radius, trick.radius)
        else:
            moved = noise + trick.step_size * slope
            noise = moved / (moved.abs().max(-1, keepdim=True)[0] + 1e-30) * trick.radius
    smooth = apart(clean, logits(model, noise.detach()))
    with torch.no_grad():
        there = logits(average, 0)
    return smooth / len(ids), apart(clean, there) / len(ids)


@pytest.mark.parametrize("trick, kind", [
    (Smart(3.0, 0.7, radius=0.05, noise=0.02, step_size=0.03, steps=2), "Classification"),
    (Smart(1.0, 1.0, radius=0.1, noise=0.02, step_size=0.5, ascent="normalised"), "Classification"),
    (Smart(5.0, 1.0, radius=0.05, noise=0.02, step_size=0.03), "Regression"),
], ids=["projected", "normalised", "regression"])
def test_terms_and_gradients_are_those_of_torch(tmp_path, trick, kind):
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers (the torch extra)")
    task = make_task(kind, (trick,), **WITHOUT)
    params, batch = anchored(task), make_batch(task)
    models = []
    for name, tree in (("model", without_anchors(params)), ("average", params["anchor"]["smart"])):
        hf.export(tree, task.config.encoder, TOKENIZER, tmp_path / name)
        model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / name, attn_implementation="eager")
        models.append(model.eval().double())  # what is divided by its largest value multiplies what rounding does
    noise = trick.begin(KEY, (*batch["attention_mask"].shape, ENCODER.embedding_width))
    smooth, near = reference(torch, *models, batch, noise, trick, kind == "Regression")
    (trick.smoothness * smooth + trick.proximity * near).backward()

    def loss(params):
        losses = task.loss(params, batch, KEY)
        return sum(losses.terms[name].value for name in TERMS), losses

    gradients, losses = jax.jit(jax.grad(loss, has_aux=True))(params)
    for name, factor, value in zip(TERMS, (trick.smoothness, trick.proximity), (smooth, near), strict=True):
        assert value.item() > 1e-3
        np.testing.assert_allclose(losses.metrics[name].value, value.item(), rtol=1e-5)
        np.testing.assert_allclose(losses.terms[name].value, factor * value.item(), rtol=1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["anchor"]))
    ours = hf.to_tensors(without_anchors(gradients), task.config.encoder)
    parameters = dict(models[0].named_parameters())
    assert ours.keys() == parameters.keys()
    for name, parameter in parameters.items():
        gradient = parameter.grad.numpy()
        if name.endswith("word_embeddings.weight"):  # PyTorch never trains the padding piece; google-research/bert does
            gradient[TOKENIZER.pad_id] = ours[name][TOKENIZER.pad_id]
        # Softmax ignores what is the same at every position: the gradient of these is zero but for rounding.
        tolerance = 1e-6 if name.endswith("key.bias") else 1e-5 * np.abs(gradient).max()
        np.testing.assert_allclose(ours[name], gradient, atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("ascent, radius", [("projected", 0.02), ("projected", 1e-5), ("normalised", 0.02)])
def test_ascent_moves_answers_further_within_its_bounds(ascent, radius):
    """Further than noise as large as what it finds, in each of 8 draws; padding stays."""
    trick = Smart(radius=radius, noise=radius, step_size=1e-3 if radius == 1e-5 else 1.0, ascent=ascent)
    start_only = dataclasses.replace(trick, step_size=1e-30)
    task = make_task("Tagging", (dataclasses.replace(trick, proximity=0.0),), **WITHOUT)
    params, batch = scattered(api.init(task.config.encoder, KEY), 0.2), make_batch(task)
    whose, mask = owners(batch), jnp.asarray(batch["attention_mask"])
    start = jnp.zeros((*mask.shape, ENCODER.embedding_width))

    def logits(params, perturbation):
        moved = batch | {"perturbation": perturbation}
        return task.compared(task._apply(params, moved, None), moved)

    clean, weights = logits(params, start)

    @jax.jit
    def both(key):
        found = trick.found(lambda *given: logits(*given)[0], params, clean, weights, start, whose, key)
        noise = trick.begin(key, start.shape) * mask[..., None]
        random = radius * jnp.sign(noise) if ascent == "projected" else start_only.ascended(noise, jnp.zeros_like(noise), whose)
        return found, *((distance(clean, logits(params, p)[0]) * weights).sum() for p in (found, random))

    for seed in range(8):
        found, worst, random = both(jax.random.key(seed))
        assert worst > random > 0
        assert np.abs(found).max() <= radius * (1 + 1e-6) and not np.any(np.array(found)[~np.array(mask)])
        largest = np.abs(found).max(axis=-1)[np.array(mask)]
        if ascent == "normalised":
            np.testing.assert_allclose(largest, radius, rtol=1e-5)
        else:
            assert largest.max() == np.float32(radius)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "Tagging")) for kind in KINDS])
def test_every_kind_of_task_has_the_terms(kind):
    """They are 0 where nothing differs, dropout is on but the same in all passes, and evaluation is without them."""
    trick = Smart(radius=1e-2, noise=1e-3, step_size=1.0)
    task = make_task(kind, (trick,), dropout=0.2)
    params, batch = anchored(task), make_batch(task)
    gradients, here = gradient_of(task, params, batch, KEY)
    near = params | {"anchor": {"smart": without_anchors(params)}}
    there = gradient_of(task, near, batch, KEY)[1].metrics
    assert abs(there["proximity_loss"].value) < 1e-12 < here.metrics["proximity_loss"].value  # of two programs, so not quite 0
    np.testing.assert_allclose(there["smoothness_loss"], here.metrics["smoothness_loss"], rtol=1e-4)
    assert here.metrics["smoothness_loss"].value > 0
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradients["embeddings"]))
    evaluated = jax.eval_shape(lambda: task.loss(params, batch, None))
    assert not {*TERMS} & {*evaluated.terms} and {*TERMS} <= {*here.terms}
    alone = make_task(kind, (dataclasses.replace(trick, smoothness=0.0),), dropout=0.2)
    assert {*TERMS} & {*jax.eval_shape(lambda: alone.loss(params, batch, KEY)).terms} == {"proximity_loss"}


@pytest.mark.slow
@pytest.mark.parametrize(("early", "steps"), [(2, 100), (None, 20)])
def test_average_over_three_updates(early, steps):
    """0.5 of itself for two updates, as many as are said or a tenth of the run, then 0.9; frozen to everything else, decay
    included, and not exported."""
    trick = Smart(radius=1e-2, average=0.9, early_average=0.5, early_updates=early)
    task = make_task(tricks=(trick,))
    history, metrics = updated(task, 3, steps=steps)
    average = without_anchors(history[0])
    jax.tree.map(np.testing.assert_array_equal, history[0]["anchor"]["smart"], average)
    for share, params in zip((0.5, 0.5, 0.9), history[1:], strict=True):
        average = jax.tree.map(lambda old, new: share * old + (1 - share) * new, average, without_anchors(params))  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params["anchor"]["smart"], average)
    assert np.abs(average["embeddings"]["token"] - history[-1]["embeddings"]["token"]).max() > 1e-3
    assert metrics["proximity_loss"].value > 0
    assert task.finished(history[-1]).keys() == api.init(task.config.encoder, KEY).keys()
    plain = make_task(tricks=(dataclasses.replace(trick, proximity=0.0),))
    assert "anchor" not in plain.init(KEY) and plain.follow(history[0], 0, None) is history[0]


@pytest.mark.slow
def test_eight_devices_are_one():
    """Steps of ascent are long, and nothing is cut by the radius: where a gradient is near 0 rounding would decide."""
    trick = Smart(radius=0.5, noise=1e-2, step_size=0.1, early_average=0.5)
    (*_, one), _ = updated(make_task(tricks=(trick,)))
    (*_, many), _ = updated(make_task(tricks=(trick,)), sizes=(2, 2, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=0), one, many)


def test_what_is_refused():
    for wrong, message in (({"steps": 0}, "has 0 steps"), ({"radius": 0.0}, "above 0"), ({"smoothness": -1.0}, "0 or more"),
                           ({"average": 1.0}, "below 1"), ({"smoothness": 0.0, "proximity": 0.0}, "leave it out")):
        with pytest.raises(BertJaxError, match=message):
            Smart(**wrong)
    with pytest.raises(BertJaxError, match="-1 early_updates"):
        Smart(early_updates=-1)
    with pytest.raises(BertJaxError, match="a tenth of the run's updates, and this update is of no run"):
        Smart().follow({}, {}, jnp.int32(0), None)
    with pytest.raises(BertJaxError, match="compute_dtype bfloat16, which rounds that away"):
        make_task(tricks=(Smart(),), compute_dtype="bfloat16")
    make_task(tricks=(Smart(radius=1e-2),), compute_dtype="bfloat16")
