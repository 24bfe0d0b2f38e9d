"""The device mesh ``(data, fsdp, tensor)`` and the one table that says which logical axis lies on which mesh axis."""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bert_jax.errors import BertJaxError

AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axis (or several). Parameters first, then activations. An axis that is not here is replicated.
RULES: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("vocab", "tensor"),
    ("embedding", "fsdp"),
    ("model", "fsdp"),
    ("heads", "tensor"),
    ("ffn", "tensor"),
    ("batch", ("data", "fsdp")),
    ("act_heads", "tensor"),
    ("act_ffn", "tensor"),
    ("act_vocab", "tensor"),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, which takes all devices that are left.

    Attributes:
      data: replicas of the parameters, batch split over them.
      fsdp: shards of parameters and optimiser state; the batch is split over these too.
      tensor: shards of heads, feed-forward width and vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all).

    Raises:
      BertJaxError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise BertJaxError(f"mesh {sizes}: sizes are positive, and at most one is -1 (all that is left)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        wanted = " x ".join(f"{name}={size}" for name, size in zip(AXES, sizes, strict=True))
        raise BertJaxError(f"mesh {wanted} does not fit {len(devices)} device(s): set mesh.data=-1 to take what is left")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def parameter_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every parameter, from its logical axes.

    Raises:
      BertJaxError: a dimension that the mesh axis does not divide, by name.
    """
    rules = dict(RULES)

    def one(path, names, shape):
        spec = [rules.get(name) for name in names]
        for name, axis, size in zip(names, spec, shape.shape, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise BertJaxError(
                    f"{where}: axis {name!r} of {size} is not a multiple of mesh.{axis}={mesh.shape[axis]}"
                    + ("; set encoder.vocab_multiple" if name == "vocab" else "")
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(one, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
