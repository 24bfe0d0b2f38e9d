"""The device mesh ``(data, fsdp, tensor)`` and the one table that says which logical axis lies on which mesh axis."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
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
    ("lookup", "data"),  # rows of embeddings that have just been looked up, while fsdp still splits their width
    ("batch", ("data", "fsdp")),
    ("act_heads", "tensor"),
    ("act_ffn", "tensor"),
    ("act_vocab", "tensor"),
)

VOCAB_MULTIPLE = 1024
"""What messages advise. Eight shards of whole registers of 128: XLA:TPU scatters the gradient of the token table while it
reduces it only if every share is whole (with 30,592 rows it reduced all of it onto every chip, with 30,720 it did not)."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, which takes all devices that are left.

    Devices of several TPU slices, or of GPU hosts without a common NVLink, are joined by a network that is slower by an
    order of magnitude. Only ``data`` may cross it: it exchanges gradients once per update, the other two talk in every layer.

    Attributes:
      data: replicas of the parameters, batch split over them; a multiple of the number of slices.
      fsdp: shards of parameters and optimiser state; the batch is split over these too.
      tensor: shards of heads, feed-forward width and vocabulary.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all). Inside a slice neighbours in the mesh are neighbours on the chip network;
    slices, found on the devices, follow each other along ``data``.

    Raises:
      BertJaxError: the sizes do not multiply to the number of devices, fsdp or tensor would have to cross slices, or the
        slices differ in size.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise BertJaxError(f"mesh {sizes}: sizes are positive, and at most one is -1 (all that is left)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(len(devices) // known, 1)
    if math.prod(sizes) != len(devices):
        wanted = " x ".join(f"{name}={size}" for name, size in zip(AXES, dataclasses.astuple(config), strict=True))
        count = len(_slices(devices))
        fitting = _nearest(len(devices), sizes, lambda found: found[0] % count == 0)
        advice = f": {_as_settings(fitting)} would do" if fitting else ""
        raise BertJaxError(f"mesh {wanted} does not fit {len(devices)} device(s){advice}")
    return Mesh(arrange(tuple(sizes), devices), AXES, axis_types=(AxisType.Auto,) * 3)


def arrange(sizes: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """``devices`` as an array [data, fsdp, tensor] that suits the network between them.

    (``jax.make_mesh`` knows no slices, and splits no dimension of the chip network but on v5e: it refuses v6e:4x4 as 8x2x1.)

    Raises:
      BertJaxError: fsdp or tensor would have to cross slices, or the slices differ in size.
    """
    slices = _slices(devices)
    if len({len(members) for members in slices}) > 1:
        counts = ", ".join(str(len(members)) for members in slices)
        raise BertJaxError(f"the slices have different numbers of devices ({counts}): use slices of one size")
    data, *inside = sizes
    if data % len(slices):
        crossing = " and ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES[1:], inside, strict=True) if size > 1)
        fitting = _nearest(len(devices), sizes, lambda found: found[0] % len(slices) == 0)
        raise BertJaxError(
            f"{crossing} would have to cross the slow network between {len(slices)} slices of {len(slices[0])} device(s), "
            f"where only data may: {_as_settings(fitting)} would do"
        )
    shape = (data // len(slices), *inside)
    blocks = [mesh_utils.create_device_mesh(shape, members, allow_split_physical_axes=True) for members in slices]
    return np.concatenate(blocks)


def parameter_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every parameter, from its logical axes.

    Raises:
      BertJaxError: dimensions that their mesh axis does not divide, by name, with the nearest mesh that would do.
    """
    rules = dict(RULES)
    found: dict[tuple[str, int], str] = {}  # (logical axis, size) -> the first parameter that has it

    def one(path, names, shape):
        spec = [rules.get(name) for name in names]
        for name, axis, size in zip(names, spec, shape.shape, strict=True):
            if axis is not None:
                found.setdefault((name, size), jax.tree_util.keystr(path, simple=True, separator="/"))
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree_util.tree_map_with_path(one, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))
    unfit = [f"{name} {size} ({where}) is not a multiple of mesh.{rules[name]}={mesh.shape[rules[name]]}"
             for (name, size), where in found.items() if size % mesh.shape[rules[name]]]
    if unfit:
        raise BertJaxError(f"{', '.join(unfit)}: {_advice(found, rules, mesh)} would do")
    return shardings


def check_rows(name: str, rows: int, mesh: Mesh) -> None:
    """Refuses a number of rows, called ``name``, that cannot be split evenly over data and fsdp.

    Raises:
      BertJaxError: with the nearest numbers, and the nearest mesh, that would do.
    """
    shards = batch_shards(mesh)
    if rows % shards == 0:
        return
    below, above = rows // shards * shards, -(-rows // shards) * shards
    numbers = f"{below} or {above}" if below else str(above)
    slices = len(_slices(mesh.devices.flat))
    fitting = _nearest(
        mesh.size, tuple(mesh.shape.values()), lambda found: rows % (found[0] * found[1]) == 0 and found[0] % slices == 0
    )
    raise BertJaxError(
        f"{name} is {rows}: it must be a multiple of {shards}, mesh.data={mesh.shape['data']} x "
        f"mesh.fsdp={mesh.shape['fsdp']}: {numbers} would do" + (f", or {_as_settings(fitting)}" if fitting else "")
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Which rows of a batch this process has to provide: int64, ascending, each once.

    They follow from where its devices lie in the mesh: processes that only differ along ``tensor`` need the same rows.
    """
    pieces = {index[0].indices(batch_size)[:2] for index in sharding.addressable_devices_indices_map((batch_size,)).values()}
    return np.concatenate([np.arange(*piece, dtype=np.int64) for piece in sorted(pieces)])


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch, split over data and fsdp, of which ``batch`` has the rows that ``local_rows`` gives this process."""
    sharding, shards = batch_sharding(mesh), batch_shards(mesh)
    share = len(local_rows(sharding, shards))  # how many of the shards this process holds

    def place(rows: np.ndarray) -> Any:
        size = len(rows) // share * shards
        numbers = local_rows(sharding, size)

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            first, beyond, _ = index[0].indices(size)
            return rows[slice(*np.searchsorted(numbers, (first, beyond)))]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, of_device)

    return {name: place(rows) for name, rows in batch.items()}


def on_host(tree: Any, wanted: bool = True) -> Any:
    """Its arrays, all of each, in the memory of this process. Where they lie on devices of several processes, all of these have
    to ask at once, and those that do not want them are given None for each."""

    def reachable(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray | None:
        if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
            array = multihost_utils.process_allgather(array, tiled=True)
        return array if wanted else None

    return jax.device_get(jax.tree.map(reachable, tree))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """Devices by the fast network that joins them; what knows no slices (CPUs, a single TPU slice) is one."""
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return [slices[index] for index in sorted(slices)]


def _nearest(
    total: int, sizes: Sequence[int], fits: Callable[[tuple[int, int, int]], bool]
) -> tuple[int, int, int] | None:
    """The mesh of ``total`` devices that fits and differs least from ``sizes`` in ratios; among equals the one nearest in
    tensor, then the one whose shards of the state are nearest in size."""
    divisors = [size for size in range(1, total + 1) if total % size == 0]
    meshes = [(total // (fsdp * tensor), fsdp, tensor) for tensor in divisors for fsdp in divisors
              if total % (fsdp * tensor) == 0]

    def distance(found):
        steps = [abs(math.log2(ours / asked)) for ours, asked in zip(found, sizes, strict=True)]
        state = abs(math.log2(found[1] * found[2] / (sizes[1] * sizes[2])))
        return round(sum(steps), 6), round(steps[2], 6), state

    return min(filter(fits, meshes), key=distance, default=None)


def _advice(found: dict[tuple[str, int], str], rules: dict[str, Any], mesh: Mesh) -> str:
    """The settings nearest to ``mesh`` under which every dimension divides; a vocabulary can be padded to any mesh."""
    slices = len(_slices(mesh.devices.flat))

    def fits(sizes):
        by_axis = dict(zip(AXES, sizes, strict=True))
        divides = all(size % by_axis[rules[name]] == 0 for name, size in found if name != "vocab")
        return divides and by_axis["data"] % slices == 0

    asked = tuple(mesh.shape.values())
    sizes = _nearest(mesh.size, asked, fits)  # there is always one: data alone
    advice = [] if sizes == asked else [_as_settings(sizes)]
    if any(size % sizes[2] for name, size in found if name == "vocab"):
        advice.append(f"task.encoder.vocab_multiple={math.lcm(VOCAB_MULTIPLE, sizes[2])}")
    return " with ".join(advice)


def _as_settings(sizes: tuple[int, ...]) -> str:
    return " ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
