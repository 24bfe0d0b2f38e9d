"""Answers from all devices of this process: each holds all parameters, and the rows of a batch are split over them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from bert_jax.models.api import Params, sharding_rules
from bert_jax.parallel.mesh import AXES, RULES, batch_sharding, replicated

Made = TypeVar("Made")


class Replicas(NamedTuple):
    """``mesh`` [data, 1, 1] of the devices; None: one alone, for which all of this is trivial."""

    mesh: Mesh | None = None

    @property
    def count(self) -> int:
        return self.mesh.size if self.mesh else 1

    def rows(self, of_each: int, there: int) -> int:
        """Rows of a batch: ``of_each`` device, but no more than the power of two from which ``there`` rows are enough; always
        a multiple of the number of devices."""
        needed = 1 << max(there - 1, 0).bit_length()
        return min(of_each, -(-needed // self.count)) * self.count

    def hold(self, params: Params) -> Params:
        """``params`` on every device; those that are there already are not copied."""
        return jax.device_put(params, replicated(self.mesh) if self.mesh else None)

    def run(self, compute: Callable[[Params, Any], Made], params: Params, batch: Any) -> Made:
        """``compute(params, batch)``, which is compiled for all devices. ``batch``: arrays of which rows are the first axis."""
        if self.mesh is None:
            return compute(params, batch)
        with jax.set_mesh(self.mesh), sharding_rules(RULES):
            return compute(params, jax.device_put(batch, batch_sharding(self.mesh)))


def replicas() -> Replicas:
    """Of all accelerators of this process. Devices of a processor share its cores, and one of them has all: there it is one."""
    devices = jax.local_devices()
    return over(devices if devices[0].platform != "cpu" else devices[:1])


def over(devices: Sequence[jax.Device]) -> Replicas:
    """Of these. They need not talk to each other, so that any order of them will do."""
    if len(devices) == 1:
        return Replicas()
    return Replicas(Mesh(np.array(devices).reshape(-1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES)))
