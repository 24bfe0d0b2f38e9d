"""The two optimisers of the papers, as optax transformations that know about stacked layers.

Layers are stacked along a leading axis called ``layers``. LAMB's trust ratio is a ratio of norms *per parameter matrix*, so
it is taken per layer here; a plain ``optax.lamb`` on stacked parameters would silently take one ratio for all layers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.errors import BertJaxError


@dataclasses.dataclass(frozen=True)
class AdamW:
    """BERT's Adam with decoupled weight decay (google-research/bert optimization.py): no bias correction, eps 1e-6.

    Attributes:
      learning_rate: at the end of warm-up. warmup_steps: linear from 0. The rate then falls linearly to 0 at the last step.
      weight_decay: not applied to biases and layer norms. clip_norm: of the global gradient norm.
      bias_correction: what fine-tuning wants on (Mosbach et al. 2021).
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    clip_norm: float = 1.0
    bias_correction: bool = False


@dataclasses.dataclass(frozen=True)
class Lamb:
    """LAMB (You et al. 2020, algorithm 2). Biases and layer norms take neither decay nor trust ratio.

    The fields are those of :class:`AdamW`; the defaults are ALBERT's (batch 4,096, 125,000 steps), but for
    ``bias_correction``, which the paper has and ALBERT's code has not.
    """

    learning_rate: float = 1.76e-3
    warmup_steps: int = 3_125
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    clip_norm: float = 1.0
    bias_correction: bool = True


def schedule(config: AdamW | Lamb, steps: int) -> optax.Schedule:
    """Learning rate at update 0, 1, ...: linear up over the warm-up, linear down to 0 at ``steps``.

    Raises:
      BertJaxError: the warm-up is not shorter than the run.
    """
    if config.warmup_steps >= steps:
        raise BertJaxError(f"optimizer.warmup_steps {config.warmup_steps} is not below train.steps {steps}")
    return optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
            optax.schedules.linear_schedule(config.learning_rate, 0.0, steps - config.warmup_steps),
        ],
        [config.warmup_steps],
    )


def make_optimizer(config: AdamW | Lamb, steps: int, axes: Any) -> optax.GradientTransformation:
    """The whole update: clip, Adam moments, decay, trust ratio (LAMB), learning rate.

    Args:
      steps: updates in the run, for the schedule.
      axes: logical axes of the parameters, which say what is stacked.
    """
    decayed = matrices(axes)
    chain = [
        optax.clip_by_global_norm(config.clip_norm),
        scale_by_adam(config.beta1, config.beta2, config.eps, config.bias_correction),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    ]
    if isinstance(config, Lamb):
        chain.append(scale_by_trust_ratio(decayed, axes))
    return optax.chain(*chain, optax.scale_by_learning_rate(schedule(config, steps)))


def scale_by_adam(beta1: float, beta2: float, eps: float, bias_correction: bool) -> optax.GradientTransformation:
    """optax's Adam, or the same without bias correction (which optax does not offer): m / (sqrt(v) + eps)."""
    corrected = optax.scale_by_adam(beta1, beta2, eps)
    if bias_correction:
        return corrected

    def update(gradients, state, params=None):
        mu = optax.tree.update_moment(gradients, state.mu, beta1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, beta2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(corrected.init, update)


def scale_by_trust_ratio(included: Any, axes: Any) -> optax.GradientTransformation:
    """Multiplies each included update by ||w|| / ||u||, norms per layer where layers are stacked; 1 where either is 0."""

    def scale(update, weight, names, include):
        if not include:
            return update
        over = tuple(range(1, weight.ndim)) if names[0] == "layers" else None
        weight_norm = jnp.sqrt(jnp.sum(jnp.square(weight), axis=over, keepdims=True))
        update_norm = jnp.sqrt(jnp.sum(jnp.square(update), axis=over, keepdims=True))
        usable = (weight_norm > 0) & (update_norm > 0)
        return update * jnp.where(usable, weight_norm / jnp.where(usable, update_norm, 1.0), 1.0)

    def apply(updates, params):
        # ``axes`` has tuples for leaves: map it along the structure of the parameters.
        leaves, structure = jax.tree.flatten(updates)
        columns = (structure.flatten_up_to(tree) for tree in (params, axes, included))
        return jax.tree.unflatten(structure, [scale(*row) for row in zip(leaves, *columns, strict=True)])

    return optax.stateless(apply)


def matrices(tree: Any) -> Any:
    """For parameters, or anything with their names (tuples of axes included): True for matrices and tables, which take
    weight decay, False for biases and layer-norm scales."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in ("bias", "scale"), tree, is_leaf=lambda x: isinstance(x, tuple)
    )
