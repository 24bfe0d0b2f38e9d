"""What the kernels for GPUs and those for TPUs have in common: softmax in base 2, and dropout by a hash of the place."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from bert_jax import functional

LOG2E = math.log2(math.e)
HIDDEN = np.float32(-1e30)  # instead of a bias of minus infinity: finite in base 2 as well


def keeps(place: UInt32[Array, "..."], first: UInt32[Array, ""], second: UInt32[Array, ""], rate: float) -> Array:
    """Where dropout keeps, by the two words of its row's seed: the mask of :func:`bert_jax.functional.dropout`."""
    return functional.mix(place ^ first, second) < np.uint32(functional.keep_threshold(rate))


def drop(x: Array, mask: Array | None) -> Array:
    """``x`` where ``mask`` keeps, not scaled."""
    return x if mask is None else jnp.where(mask, x, 0.0)


def scale_of_kept(words: Any, rate: float) -> float:
    """What is kept is multiplied with this; ``words``: of the seed, None: there is no dropout."""
    return 1.0 if words is None else 2**32 / functional.keep_threshold(rate)
