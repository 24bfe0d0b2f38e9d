"""The two optimisers of the papers, as optax transformations that know about stacked layers.

Layers are stacked along a leading axis called ``layers``. LAMB's trust ratio is a ratio of norms *per parameter matrix*, so
it is taken per layer here; a plain ``optax.lamb`` on stacked parameters would silently take one ratio for all layers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_jax.errors import BertJaxError

LAYERS = ("attention", "feed_forward", "lora")  # parts of the parameters that are stacked layers of the encoder
ENCODER = ("embeddings", "attention", "feed_forward")


@dataclasses.dataclass(frozen=True)
class AdamW:
    """BERT's Adam with decoupled weight decay (google-research/bert optimization.py): no bias correction, eps 1e-6.

    Attributes:
      learning_rate: at the end of warm-up. warmup_steps: linear from 0. The rate then falls linearly to 0 at the last step.
      weight_decay: not applied to biases and layer norms, see :func:`matrices`. clip_norm: of the global gradient norm.
      bias_correction: what fine-tuning wants on (Mosbach et al. 2021).
      layer_decay: what the learning rate is multiplied by from the heads down, as in google-research/electra (optimization.py,
        _get_layer_lrs): layer_decay ** (L + 2 - l) for layer l of 1 to L, so that the top layer has its square already,
        ** (L + 2) for the embeddings, 1 for all else. ELECTRA: 0.8 (base), 0.9 (large); Sun et al. 2019: 0.95, but the top
        layer whole. None: one rate for all.
      unfreeze_every: updates until one more layer is trained, from the top (gradual unfreezing; Howard and Ruder 2018, whose
        step is an epoch): first the heads alone, at last the embeddings. Layers that wait have moments already, and
        count for ``clip_norm``. None: all from the first update on.
      freeze_encoder: only heads are trained (feature-based; Devlin et al. 2019, section 5.3).
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    clip_norm: float = 1.0
    bias_correction: bool = False
    layer_decay: float | None = None
    unfreeze_every: int | None = None
    freeze_encoder: bool = False

    def __post_init__(self):
        _check(self)


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
    layer_decay: float | None = None
    unfreeze_every: int | None = None
    freeze_encoder: bool = False

    def __post_init__(self):
        _check(self)


def _check(config: AdamW | Lamb) -> None:
    if not 0 < config.learning_rate < math.inf:
        raise BertJaxError(f"optimizer.learning_rate is {config.learning_rate}: it must be above 0, and finite")
    for name, value, fits, least in (
        ("eps", config.eps, config.eps > 0, "above 0"), ("beta1", config.beta1, 0 <= config.beta1 < 1, "from 0 to below 1"),
        ("beta2", config.beta2, 0 <= config.beta2 < 1, "from 0 to below 1"),
        ("weight_decay", config.weight_decay, 0 <= config.weight_decay < math.inf, "at least 0, and finite"),
        ("warmup_steps", config.warmup_steps, config.warmup_steps >= 0, "at least 0"),
    ):
        if not fits:
            raise BertJaxError(f"optimizer.{name} is {value}: {least}")
    if not config.clip_norm > 0:
        raise BertJaxError(f"optimizer.clip_norm is {config.clip_norm}: above 0; Infinity clips nothing")
    if config.layer_decay is not None and not 0 < config.layer_decay <= 1:
        raise BertJaxError(f"optimizer.layer_decay is {config.layer_decay}: above 0, and at most 1")
    if config.unfreeze_every is not None and config.unfreeze_every < 1:
        raise BertJaxError(f"optimizer.unfreeze_every is {config.unfreeze_every}: at least 1 update")
    if config.freeze_encoder and (config.layer_decay is not None or config.unfreeze_every is not None):
        raise BertJaxError("optimizer.freeze_encoder trains no layers: leave layer_decay and unfreeze_every out")


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
    """The whole update: clip, Adam moments, decay, trust ratio (LAMB), learning rate, and what differs between layers.

    What is :func:`frozen` has no moments, no part in the clipped norm and updates of 0.

    Args:
      steps: updates in the run, for the schedule.
      axes: logical axes of the parameters, which say what is stacked.
    """
    decayed = matrices(axes)
    chain = [
        clip_by_global_norm(config.clip_norm),
        scale_by_adam(config.beta1, config.beta2, config.eps, config.bias_correction),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
    ]
    if isinstance(config, Lamb):
        chain.append(scale_by_trust_ratio(decayed, axes))
    chain.append(optax.scale_by_learning_rate(schedule(config, steps)))
    if config.layer_decay is not None or config.unfreeze_every is not None:
        chain.append(scale_by_layer(config.layer_decay or 1.0, config.unfreeze_every, axes))
    still = frozen(config, axes)
    if not any(jax.tree.leaves(still)):
        return optax.chain(*chain)
    moving = jax.tree.map(lambda is_frozen: not is_frozen, still)
    return optax.chain(optax.masked(optax.chain(*chain), moving), optax.masked(optax.set_to_zero(), still))


def frozen(config: AdamW | Lamb, axes: Any) -> Any:
    """For parameters with these axes: True where training leaves them as they are. Those are copies under ``anchor``, and the
    encoder, with LoRA or ``freeze_encoder``."""
    still = {"anchor"}
    if config.freeze_encoder or "lora" in axes:
        still |= set(ENCODER)
    return _by_part(axes, lambda part: part in still)


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """As optax's, by one factor for all gradients instead of a division for each: XLA multiplies where a gradient is used,
    while quotients it stores first, a write and three reads more of all parameters (27 instead of 42 ms for the update of
    MiniLM-L6 on two cores; benchmarks/NOTES.md)."""

    def clip(gradients, params=None):
        norm = optax.global_norm(gradients)
        factor = jnp.where(norm > limit, limit / norm, 1.0)
        return jax.tree.map(lambda gradient: gradient * factor, gradients)

    return optax.stateless(clip)


def scale_by_layer(decay: float, unfreeze_every: int | None, axes: Any) -> optax.GradientTransformation:
    """Multiplies updates by ``decay`` once for each layer between them and the heads, and once more, and by 0 while their layer
    waits; see :class:`AdamW`. Layers are stacked along the first axis of their parameters."""
    kinds = _by_part(axes, lambda part: "embeddings" if part == "embeddings" else "layers" if part in LAYERS else "heads")

    def update(updates, state, params=None):
        leaves, structure, columns = _aligned(updates, kinds)
        stacks = [leaf for leaf, kind in zip(leaves, *columns, strict=True) if kind == "layers" and _is_there(leaf)]
        depth = len(stacks[0]) if stacks else 0

        def scale(leaf, kind):
            if kind == "heads" or not _is_there(leaf):
                return leaf
            below = jnp.arange(depth, 0, -1) if kind == "layers" else jnp.array([depth + 1])  # the heads, from the top: 1
            factors = jnp.float32(decay) ** (below + 1)
            if unfreeze_every:
                factors *= state.count >= below * unfreeze_every
            return leaf * factors.reshape(-1, *(1,) * (leaf.ndim - 1))

        scaled = [scale(*row) for row in zip(leaves, *columns, strict=True)]
        return jax.tree.unflatten(structure, scaled), optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)


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
        if not include or not _is_there(update):
            return update
        over = tuple(range(1, weight.ndim)) if names[0] == "layers" else None
        weight_norm = jnp.sqrt(jnp.sum(jnp.square(weight), axis=over, keepdims=True))
        update_norm = jnp.sqrt(jnp.sum(jnp.square(update), axis=over, keepdims=True))
        usable = (weight_norm > 0) & (update_norm > 0)
        return update * jnp.where(usable, weight_norm / jnp.where(usable, update_norm, 1.0), 1.0)

    def apply(updates, params):
        leaves, structure, columns = _aligned(updates, params, axes, included)
        return jax.tree.unflatten(structure, [scale(*row) for row in zip(leaves, *columns, strict=True)])

    return optax.stateless(apply)


def _is_there(leaf: Any) -> bool:
    """Whether a leaf of updates has not been masked."""
    return not isinstance(leaf, optax.MaskedNode)


def _aligned(updates: Any, *trees: Any) -> tuple[list[Any], Any, list[list[Any]]]:
    """Leaves and structure of updates, masked ones included, and what other trees have in the same places, such as axes, whose
    tuples would be taken for more branches."""
    leaves, structure = jax.tree.flatten(updates, is_leaf=lambda leaf: not _is_there(leaf))
    return leaves, structure, [structure.flatten_up_to(tree) for tree in trees]


def _by_part(axes: Any, value: Callable[[str], Any]) -> Any:
    """The tree of ``axes`` with ``value(first name of the path)`` for leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: value(path[0].key), axes, is_leaf=lambda x: isinstance(x, tuple)
    )


def matrices(tree: Any) -> Any:
    """For parameters, or anything with their names (tuples of axes included): True for matrices and tables, which take
    weight decay, False for biases, layer-norm scales and the weights of a mix of layers. What XLNet adds to queries is decayed,
    though called a bias (include_in_weight_decay of model_utils.py, zihangdai/xlnet)."""

    def decays(path, _) -> bool:
        *_, parent, name = ("", *(key.key for key in path))
        return name not in ("bias", "scale", "weights") or (name == "bias" and parent in ("content", "position", "segment"))

    return jax.tree_util.tree_map_with_path(decays, tree, is_leaf=lambda x: isinstance(x, tuple))
