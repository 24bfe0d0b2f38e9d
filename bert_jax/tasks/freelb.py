"""FreeLB: training on word embeddings that are perturbed against the model (Zhu et al. 2020)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bert_jax.errors import BertJaxError
from bert_jax.task import Batch, Losses, Objective, Params
from bert_jax.tasks.owners import Owners, owners

DRAW = 2  # what the step's key is folded with; the key itself is for dropout
SMALLEST = 1e-8  # of a norm that is divided by, as in the reference


@dataclasses.dataclass(frozen=True)
class FreeLB:
    """The gradient is the mean over ``steps`` gradients, each at word embeddings that a further step of ascent has moved, all
    with the same dropout (Zhu et al. 2020). An update costs as much as ``steps`` plain ones.

    Zhu et al.'s own settings for ALBERT-xxlarge on GLUE (zhuchen03/FreeLB, huggingface-transformers/launch/run_glue.sh), with
    learning rate and batch size; the defaults here are those of RTE::

               steps  step_size  magnitude  radius   learning rate  batch
        SST-2      2       0.1       0.6      0           1e-5        32
        MRPC       4       0.03      0        0           2e-5        16
        CoLA       3       0.04      0.05     0           1e-5        16
        STS-B      3       0.1       0.2      0           2e-5        16
        MNLI       3       0.04      0.08     0           3e-5       128
        QQP        3       0.2       0.32     0.7         5e-5       128
        RTE        3       0.1       0        0           3e-5        32
        QNLI       3       0.05      0.1      0           1e-5        32

    An example is a text or pair, or a question with all of its choices, and may share its row. Padding is never perturbed.

    Attributes:
      steps: K, gradients for each update.
      step_size: Frobenius norm of what an ascent adds to the perturbation of an example.
      magnitude: the perturbation begins uniform within magnitude / sqrt(tokens * E), tokens of the example; 0: at 0.
      radius: largest Frobenius norm of an example's perturbation; 0: there is none.
    """

    steps: int = 3
    step_size: float = 0.1
    magnitude: float = 0.0
    radius: float = 0.0

    def __post_init__(self):
        if self.steps < 1:
            raise BertJaxError(f"FreeLB.steps is {self.steps}: it must be at least 1")
        for field in ("step_size", "magnitude", "radius"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise BertJaxError(f"FreeLB.{field} is {getattr(self, field)}: it must be 0 or more")

    def gradient(
        self, objective: Objective, params: Params, batch: Batch, key: Key[Array, ""], width: int
    ) -> tuple[Params, Losses]:
        """See :meth:`bert_jax.task.Task.gradient`; gradients are float32, losses the means over all steps.

        ``objective`` takes ``perturbation`` float32 [*batch["attention_mask"].shape, ``width``] in its batch.
        """
        whose = owners(batch)

        def step(carry, _):
            perturbation, total = carry
            (by_params, by_perturbation), losses = jax.grad(
                lambda params, perturbation: objective(params, batch | {"perturbation": perturbation}, key),
                argnums=(0, 1), has_aux=True,
            )(params, perturbation)
            total = jax.tree.map(lambda sum, gradient: sum + gradient.astype(sum.dtype) / self.steps, total, by_params)
            return (self.ascended(perturbation, by_perturbation, whose), total), losses

        zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        (_, gradients), losses = jax.lax.scan(step, (self.begin(key, whose, width), zero), length=self.steps)
        return gradients, jax.tree.map(lambda each: each.mean(axis=0), losses)

    def begin(self, key: Key[Array, ""], whose: Owners, width: int) -> Float[Array, "B *rest L E"]:
        """The first perturbation."""
        shape = (*whose.mask.shape, width)
        if not self.magnitude:
            return jnp.zeros(shape, jnp.float32)
        draw = jax.random.uniform(jax.random.fold_in(key, DRAW), shape, jnp.float32, -1.0, 1.0)
        tokens = whose.sum(whose.mask.astype(jnp.float32))
        scale = self.magnitude / jnp.sqrt(jnp.maximum(tokens, 1.0) * width)
        return draw * (scale * whose.mask)[..., None]

    def ascended(
        self, perturbation: Float[Array, "B *rest L E"], gradient: Float[Array, "B *rest L E"], whose: Owners
    ) -> Float[Array, "B *rest L E"]:
        """The next perturbation: a step of ``step_size`` along the gradient of each example, then back into ``radius``."""
        gradient = gradient * whose.mask[..., None]
        moved = perturbation + self.step_size * gradient / _norms(gradient, whose)
        if self.radius:
            moved *= jnp.minimum(1.0, self.radius / _norms(moved, whose))
        return moved


def _norms(x: Float[Array, "B *rest L E"], whose: Owners) -> Float[Array, "B *rest L 1"]:
    """For each token that of its example."""
    return jnp.maximum(jnp.sqrt(whose.sum(jnp.square(x).sum(axis=-1))), SMALLEST)[..., None]
