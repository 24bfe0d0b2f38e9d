"""Classes that count for more, and examples that are hard: the loss of PyTorch, and of its authors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from bert_jax.tasks.classification import focal
from tests.tasks.tiny_tasks import make_task

torch = pytest.importorskip("torch", reason="the loss is compared with PyTorch's (the torch extra)")
LABELS = np.array([0, 0, 2, 1, 0, 2, -1, 0, 1, -1], np.int32)  # -1: rows that only fill a batch


def value_and_slope(task, logits):
    def loss(logits):
        found = api.Outputs(jnp.zeros(1), None, {"classifier": logits}, {})
        losses = task.losses(found, {"label": LABELS})
        return losses.terms["classifier_loss"].value, losses

    (value, losses), slope = jax.value_and_grad(loss, has_aux=True)(logits)
    return value, slope, losses


@pytest.fixture
def logits():
    return np.float32(2 * np.random.default_rng(0).standard_normal((len(LABELS), 3)))


@pytest.mark.parametrize("weights", [(), (0.5, 3.0, 1.7)])
def test_weighted_loss_is_that_of_torch(logits, weights):
    task = make_task(fields={"class_weights": weights})
    value, slope, losses = value_and_slope(task, logits)
    theirs = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights) if weights else None, ignore_index=-1)(
        theirs, torch.tensor(LABELS).long()
    )
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(slope, theirs.grad.numpy(), atol=1e-7)
    right = (logits.argmax(1) == LABELS)[LABELS >= 0].mean()  # which counts every example alike
    np.testing.assert_allclose(losses.metrics["classifier_accuracy"].value, right, rtol=1e-6)


def test_weighted_focal_loss_is_the_same_in_micro_batches_and_on_eight_devices():
    """Sums and weights of parts add up to those of the whole, though the parts' own means do not."""
    rng = np.random.default_rng(0)
    logits, labels = np.float32(rng.standard_normal((16, 3))), np.repeat([0, 2, 1, -1], [9, 4, 2, 1]).astype(np.int32)
    task = make_task(fields={"class_weights": (0.5, 3.0, 1.7), "focal": 2.0})

    @jax.jit
    def slope_and_ratio(logits, labels):
        def loss(logits):
            ratio = task.losses(api.Outputs(jnp.zeros(1), None, {"classifier": logits}, {}), {"label": labels})
            return ratio.terms["classifier_loss"].value, ratio.terms["classifier_loss"]
        return jax.grad(loss, has_aux=True)(logits)

    slope, whole = slope_and_ratio(logits, labels)
    parts = [slope_and_ratio(logits[half::2], labels[half::2])[1] for half in range(2)]
    np.testing.assert_allclose(sum(part.sum for part in parts) / sum(part.weight for part in parts), whole.value, rtol=1e-6)
    assert abs(sum(part.value for part in parts) / 2 - whole.value) > 1e-4
    rows = batch_sharding(make_mesh(MeshConfig(8, 1, 1), None))
    spread, ratio = slope_and_ratio(*jax.device_put((logits, labels), rows))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_allclose(spread, slope, atol=1e-7)
    np.testing.assert_allclose(ratio.value, whole.value, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weights", [(), (0.25, 0.75, 1.0)])
def test_focal_loss_is_its_formula(logits, gamma, weights):
    """-alpha_t (1 - p_t)^gamma log p_t in float64 (Lin et al. 2017), over the sum of alpha_t."""
    value, slope, _ = value_and_slope(make_task(fields={"class_weights": weights, "focal": gamma}), logits)
    theirs = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    there = LABELS >= 0
    log_p = theirs.log_softmax(-1)[there, LABELS[there]]
    alpha = torch.tensor(weights or (1.0, 1.0, 1.0), dtype=torch.float64)[LABELS[there]]
    loss = -(alpha * (1 - log_p.exp()) ** gamma * log_p).sum() / alpha.sum()
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(slope, theirs.grad.numpy(), atol=1e-6)


def test_focal_loss_of_what_is_certain_has_a_gradient():
    for gamma in (0.5, 2.0):
        assert float(focal(jnp.float32(0.0), gamma)) == 0
        assert np.isfinite(jax.grad(lambda x, g=gamma: focal(x, g))(0.0))
    np.testing.assert_allclose(focal(jnp.float32(50.0), 2.0), 50.0)
    np.testing.assert_allclose(focal(jnp.float32(1e-6), 2.0), 1e-18, rtol=1e-4)  # 1 - exp(-x) would be 9.5e-7 here


def test_balanced_weights_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    task = make_task(fields={"balanced": True}, count=30)
    labels = np.array([0] * 19 + [1] * 8 + [2] * 3, np.int32)
    task.training = task.training._replace(rows={"label": labels})
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(task.class_weights, expected, rtol=1e-6)
    other = make_task(fields={"balanced": True})  # no example of green
    with pytest.raises(BertJaxError, match="memory has no example of 'green'; set task.class_weights"):
        value_and_slope(other, np.zeros((len(LABELS), 3), np.float32))


def test_what_is_refused():
    config = make_task().config
    for wrong, message in (
        ({"class_weights": (1.0, 2.0)}, "has 2 values: one for each of red, blue, green"),
        ({"class_weights": (1.0, 2.0, 0.0)}, "above 0"), ({"class_weights": (1.0, 2.0, np.nan)}, "above 0"),
        ({"class_weights": (1.0, 2.0, 3.0), "balanced": True}, "leave it or task.class_weights out"),
        ({"focal": -1.0}, "0 or more"),
    ):
        with pytest.raises(BertJaxError, match=message):
            dataclasses.replace(config, **wrong)
