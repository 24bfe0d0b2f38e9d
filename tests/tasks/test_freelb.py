"""FreeLB: its gradient against a plain loop in PyTorch, its perturbations, every kind of task, meshes and micro-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax import functional
from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.tasks.freelb import FreeLB
from bert_jax.tasks.owners import owners
from tests.tasks.tiny_tasks import ENCODER, KINDS, TOKENIZER, gradient_of, make_batch, make_task, scattered, updated

KEY = jax.random.key(7)
WITHOUT = {"dropout": 0.0, "attention_dropout": 0.0}


def assert_close(one, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1e-3), rtol=0), one, other)


@pytest.mark.parametrize("steps", [1, 3])
def test_without_perturbation_it_is_the_plain_gradient(steps):
    """Three steps as well, with dropout: only with the same masks are their mean and one of them the same."""
    task, plain = make_task(tricks=(FreeLB(steps, step_size=0.0),), dropout=0.3), make_task(dropout=0.3)
    params, batch = scattered(api.init(task.config.encoder, KEY)), make_batch(task)
    ours, losses = gradient_of(task, params, batch)
    theirs, expected = gradient_of(plain, params, batch)
    assert_close(ours, theirs, 1e-6)
    np.testing.assert_allclose(losses.terms["classifier_loss"].value, expected.terms["classifier_loss"].value, rtol=1e-6)
    assert losses.metrics["tokens"].sum == expected.metrics["tokens"].sum


def reference(torch, model, batch, delta, trick):
    """The update of run_glue_freelb.py in zhuchen03/FreeLB, in our own words: the mean loss, and by names the gradients."""
    ids, mask = torch.tensor(batch["input_ids"]).long(), torch.tensor(batch["attention_mask"])
    delta, total = torch.tensor(np.array(delta)), 0.0
    for _ in range(trick.steps):
        delta = delta.detach().requires_grad_()
        embedded = model.bert.embeddings.word_embeddings(ids) + delta
        loss = model(
            inputs_embeds=embedded, attention_mask=mask.long(), token_type_ids=torch.tensor(batch["segment_ids"]).long(),
            labels=torch.tensor(batch["label"]).long(),
        ).loss / trick.steps
        loss.backward()
        total += loss.item()
        slope = delta.grad * mask[..., None]
        norm = slope.flatten(1).norm(dim=1).clamp(min=1e-8)[:, None, None]
        delta = delta.detach() + trick.step_size * slope / norm
        if trick.radius:
            norm = delta.flatten(1).norm(dim=1)[:, None, None]
            delta = torch.where(norm > trick.radius, delta * trick.radius / norm, delta)
    return total, {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def begun(task, trick, folder):
    """Parameters, a batch with padding, the first perturbation, and the same model in PyTorch."""
    transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers (the torch extra)")
    params, batch = scattered(api.init(task.config.encoder, KEY), 0.2), make_batch(task)
    assert not batch["attention_mask"].all()
    hf.export(params, task.config.encoder, TOKENIZER, folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    return params, batch, trick.begin(KEY, owners(batch), ENCODER.embedding_width), model


def assert_gradients(gradients, theirs, config):
    ours = hf.to_tensors(gradients, config)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        if name.endswith("word_embeddings.weight"):  # PyTorch never trains the padding piece; google-research/bert does
            gradient[TOKENIZER.pad_id] = ours[name][TOKENIZER.pad_id]
        # Softmax ignores what is the same at every position: the gradient of these is zero but for rounding (without dropout).
        tolerance = max(1e-5 * np.abs(gradient).max(), 1e-6 * name.endswith("key.bias"))
        np.testing.assert_allclose(ours[name], gradient, atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("trick", [FreeLB(3, 0.5, 0.8, 0.6), FreeLB(2, 0.7, 0.0, 0.0), FreeLB(4, 0.2, 1.5, 0.0)],
                         ids=["radius", "from-zero", "far"])
def test_gradients_are_those_of_a_loop_in_torch(tmp_path, trick):
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
    task = make_task(tricks=(trick,), **WITHOUT)
    params, batch, first, model = begun(task, trick, tmp_path / "hf")
    value, theirs = reference(torch, model.eval(), batch, first, trick)
    gradients, losses = gradient_of(task, params, batch, KEY)
    np.testing.assert_allclose(losses.terms["classifier_loss"].value, value, rtol=1e-5)
    plain = task.loss(params, batch, None).terms["classifier_loss"].value
    assert value > plain + 0.01  # it was perturbed, and for the worse
    assert_gradients(gradients, theirs, task.config.encoder)


@pytest.mark.slow
def test_gradients_with_dropout_are_those_of_a_loop_in_torch_with_the_same(tmp_path, monkeypatch):
    """What our step drops, recorded in the order in which it drops it, is what PyTorch drops in each of its steps."""
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
    trick, masks, drop = FreeLB(3, 0.5, 0.8, 0.6), [], functional.dropout
    task = make_task(tricks=(trick,), dropout=0.2, attention_dropout=0.3, head_dropout=0.4)
    params, batch, first, model = begun(task, trick, tmp_path / "hf")

    def recorded(x, rate, seed, first=0):
        masks.append(np.array(drop(jnp.ones(x.shape), rate, seed, first)))
        return drop(x, rate, seed, first)

    with monkeypatch.context() as patched, jax.disable_jit():
        patched.setattr(functional, "dropout", recorded)
        patched.setattr(jax, "checkpoint", lambda f, **_: f)  # which would trace what it is given
        gradients, losses = gradient_of(task, params, batch, KEY)
    each = len(masks) // trick.steps
    assert each == 1 + 3 * ENCODER.layers + 1 and all((mask == 0).any() for mask in masks)
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(mask, masks[number % each])
    left = iter(masks)
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x * torch.tensor(next(left)))
    value, theirs = reference(torch, model.train(), batch, first, trick)
    assert next(left, None) is None
    np.testing.assert_allclose(losses.terms["classifier_loss"].value, value, rtol=1e-5)
    assert_gradients(gradients, theirs, task.config.encoder)


@pytest.mark.parametrize("shape", [(6, 9), (6, 3, 9)], ids=["rows", "choices"])
def test_perturbations_keep_their_norm_and_leave_padding_alone(shape):
    rng, width, trick = np.random.default_rng(0), 16, FreeLB(3, 0.5, 0.4, 0.7)
    mask = np.arange(9) < rng.integers(1, 9, shape[:-1])[..., None]
    mask[0] = False  # an empty row
    whose = owners({"attention_mask": jnp.asarray(mask)})
    begun = np.array(trick.begin(KEY, whose, width))
    tokens = mask.reshape(6, -1).sum(1)
    bound = 0.4 / np.sqrt(np.maximum(tokens, 1) * width)
    inside = np.abs(begun).reshape(6, -1).max(1)
    assert (inside <= bound).all() and (inside[1:] > 0.8 * bound[1:]).all() and begun.std() > 0
    assert not begun[~mask].any() and not np.array_equal(begun[1, ..., 0, :], begun[2, ..., 0, :])
    gradient = np.float32(rng.standard_normal(begun.shape))
    moved = np.array(trick.ascended(begun, gradient, whose))
    norms = np.linalg.norm(moved.reshape(6, -1), axis=1)
    assert not moved[~mask].any() and (norms <= 0.7 * (1 + 1e-6)).all() and norms[0] == 0
    free = np.array(FreeLB(3, 0.5).ascended(begun, gradient, whose)) - begun
    np.testing.assert_allclose(np.linalg.norm(free.reshape(6, -1), axis=1)[1:], 0.5, rtol=1e-5)
    real = (gradient * mask[..., None]).reshape(6, -1)
    along = (free.reshape(6, -1) * real).sum(1)[1:]
    np.testing.assert_allclose(along, 0.5 * np.linalg.norm(real, axis=1)[1:], rtol=1e-5)
    far = np.array(trick.ascended(100 * begun, gradient, whose)).reshape(6, -1)
    np.testing.assert_allclose(np.linalg.norm(far, axis=1)[1:], 0.7, rtol=1e-5)
    np.testing.assert_array_equal(trick.ascended(begun, 0 * gradient, whose), begun)  # nowhere to go


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_task_is_worse_off(kind):
    """A step of ascent raises the loss of each kind: the perturbation reaches its model, the right way round."""
    task, plain = (make_task(kind, tricks, **WITHOUT) for tricks in ((FreeLB(2, 0.1),), ()))
    params, batch = scattered(api.init(task.config.encoder, KEY)), make_batch(task)
    (name,) = task.loss(params, batch, None).terms
    gradients, losses = gradient_of(task, params, batch)
    before = plain.loss(params, batch, KEY).terms[name].value
    assert losses.terms[name].value > before + 1e-4  # the mean of the clean step and the perturbed one
    other, _ = gradient_of(plain, params, batch)
    assert jax.tree.structure(gradients) == jax.tree.structure(other)
    assert np.abs(gradients["embeddings"]["token"] - other["embeddings"]["token"]).max() > 1e-6


def test_a_question_and_its_choices_are_one_example():
    task = make_task("Choice", (FreeLB(2, 0.1, 0.0),), **WITHOUT)
    params, batch, seen = scattered(api.init(task.config.encoder, KEY)), make_batch(task), []

    def objective(params, batch, key):
        losses = task.loss(params, batch, key)
        jax.debug.callback(lambda p: seen.append(np.array(p)), batch["perturbation"])
        return losses.terms["choice_loss"].value, losses

    jax.block_until_ready(task.gradient(objective, params, batch, KEY)[0])
    jax.effects_barrier()
    assert {p.shape for p in seen} == {(*batch["attention_mask"].shape, 16)}
    last = max(seen, key=lambda p: np.abs(p).max())
    np.testing.assert_allclose(np.linalg.norm(last.reshape(8, -1), axis=1), 0.1, rtol=1e-4)
    assert not last[~batch["attention_mask"]].any()


@pytest.mark.slow
def test_micro_batches_are_one_update():
    """Without dropout, whose masks differ between micro-batches; the first draw of a perturbation does too, so it is 0."""
    (*_, one), _ = updated(make_task("Choice", (FreeLB(2, 0.3, 0.0, 0.2),), **WITHOUT))
    (*_, other), _ = updated(make_task("Choice", (FreeLB(2, 0.3, 0.0, 0.2),), **WITHOUT), accumulate=2)
    (*_, plain), _ = updated(make_task("Choice", **WITHOUT))
    for path, values in jax.tree_util.tree_leaves_with_path(one):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name.startswith("choice") and name.endswith("bias"):  # no choice depends on it: Adam makes much of its rounding
            continue
        same = functools.reduce(lambda tree, key: tree[key.key], path, other)
        np.testing.assert_allclose(values, same, atol=2e-5, rtol=0, err_msg=name)
    assert np.abs(one["embeddings"]["token"] - plain["embeddings"]["token"]).max() > 1e-3


@pytest.mark.slow
def test_draws_and_dropout_are_the_same_on_eight_devices():
    trick = FreeLB(2, 0.3, 0.5, 0.4)
    (*_, one), _ = updated(make_task(tricks=(trick,)))
    (*_, many), _ = updated(make_task(tricks=(trick,)), sizes=(2, 2, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), one, many)


def test_evaluation_is_not_perturbed():
    task, plain = make_task(tricks=(FreeLB(2, 0.3, 0.5),)), make_task()
    params, batch = scattered(api.init(task.config.encoder, KEY)), make_batch(task)
    jax.tree.map(np.testing.assert_array_equal, task.loss(params, batch, None), plain.loss(params, batch, None))


def test_what_is_refused():
    for wrong, message in (({"steps": 0}, "at least 1"), ({"step_size": -1.0}, "0 or more"), ({"radius": np.inf}, "0 or more"),
                           ({"magnitude": np.nan}, "0 or more")):
        with pytest.raises(BertJaxError, match=message):
            FreeLB(**wrong)
    with pytest.raises(BertJaxError, match="one twice: FreeLB, FreeLB"):
        make_task(tricks=(FreeLB(), FreeLB(2)))
