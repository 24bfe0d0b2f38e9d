"""What a run carries from update to update."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from bert_jax.task import Params


class TrainState(NamedTuple):
    """Everything that an update reads and writes: updates done (int32), parameters, optimiser state, and the data of the random
    key that a run has throughout (uint32). (As a constant of the program it would make every seed compile anew.)"""

    step: Array
    params: Params
    optimizer: Any
    key: Array


def key_data(seed: int | Sequence[int]) -> np.ndarray:
    """``TrainState.key`` of a seed, or of several, one a row."""
    if isinstance(seed, int):
        return np.asarray(jax.random.key_data(jax.random.key(seed)))
    return np.stack([key_data(one) for one in seed])
