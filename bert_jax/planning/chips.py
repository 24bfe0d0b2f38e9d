"""Devices to plan for: TPU slices by their topology (no TPU needed), fake CPU devices, the GPUs of this machine."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from bert_jax.errors import BertJaxError

SLICE_LINK = 6.25e9  # bytes a second and chip between slices: 50 Gbit/s, published for v5p, assumed where nothing is


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of what jax calls a device.

    Attributes:
      flops: bfloat16 operations a second. bandwidth: bytes a second of its memory. link: bytes a second that it can send around
        a ring: over the two links of one axis of a TPU slice, or into the NVLink of its box. network: bytes a second that it
        can send to another slice.
    """

    flops: float
    bandwidth: float
    link: float
    network: float = SLICE_LINK


def _torus(published: float, axes: int) -> float:
    """Bytes a second around a ring along one of the axes, from the bandwidth that is published: all links, both directions."""
    return published / 2 / axes


# Cloud TPU's pages (docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p-training and v6e) give peaks and memory bandwidth; links
# as "bidirectional bandwidth per chip" from v5e on, for v3 and v4 as all-reduce bandwidth of a pod, which is half of that for
# v5e and v6e (340 TB/s for 1,024 chips, 1.1 PB/s for 4,096). v2 and the GPUs (NVIDIA's data sheets, dense bf16) are from
# memory. jax counts the two cores of a v2 or v3 chip as devices, so their figures are halves.
TPUS = {
    "v2": Chip(46e12 / 2, 700e9 / 2, _torus(496e9, 2) / 2),
    "v3": Chip(123e12 / 2, 900e9 / 2, _torus(2 * 340e12 / 1024, 2) / 2),
    "v4": Chip(275e12, 1200e9, _torus(2 * 1.1e15 / 4096, 3)),
    "v5e": Chip(197e12, 819e9, _torus(400e9, 2), 6.4e12 / 8 / 256),
    "v5p": Chip(459e12, 2765e9, _torus(1200e9, 3)),
    "v6e": Chip(918e12, 1638e9, _torus(800e9, 2)),
}
GPUS = {
    "A100": Chip(312e12, 2039e9, 600e9 / 2),
    "H100": Chip(989e12, 3350e9, 900e9 / 2),
    "H200": Chip(989e12, 4800e9, 900e9 / 2),
    "L4": Chip(121e12, 300e9, 64e9 / 2),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
      name: as in ``v5e:4x4``. devices: of jax, real or described. chip: None where no peaks are known (CPUs).
      limit: bytes that XLA may use on one device, None where it does not say. options: of its compiler.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    limit: int | None
    options: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    @property
    def platform(self) -> str:
        """``tpu``, ``gpu`` or ``cpu``."""
        return self.devices[0].platform


def target(name: str) -> Target:
    """The devices that ``name`` means.

    ``v5e:4x4`` is a TPU slice by its topology, ``v5e:4x4*2`` two of them joined by the data centre's network, ``v5e-16``
    or ``v5litepod-16`` the slice that Cloud TPU gives for an accelerator type; ``cpu:8`` eight devices on this machine's
    processor; ``gpu`` the GPUs of this machine.

    Raises:
      BertJaxError: no such devices, or TPUs without the libtpu package.
    """
    if match := re.fullmatch(r"cpu(?::(\d+))?", name):
        return Target(name, _cpus(int(match[1] or 1)), None, None)
    if name == "gpu":
        return _gpus()
    match = re.fullmatch(r"(v\w+?)(?::(\d+x\d+(?:x\d+)?)|-(\d+))(?:\*(\d+))?", name)
    version = {"v5litepod": "v5e", "v5lite": "v5e"}.get(match[1], match[1]) if match else None
    if version not in TPUS:
        raise BertJaxError(
            f"--topology {name}: give a TPU slice as in v5e:4x4, v5e-16 or v5e:4x4*2 ({', '.join(TPUS)}), cpu:8, or gpu"
        )
    topology = match[2] or _topology(version, int(match[3]), name)
    return _tpus(name, version, topology, int(match[4] or 1))


def _cpus(count: int) -> tuple[Any, ...]:
    """Needs a process whose jax has not started yet, or has as many devices already."""
    with contextlib.suppress(RuntimeError):  # jax has started
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise BertJaxError(f"--topology cpu:{count}: jax has started with {len(devices)} CPU device(s) in this process")
    return tuple(devices[:count])


def _gpus() -> Target:
    try:
        devices = jax.devices("gpu")
    except RuntimeError:
        raise BertJaxError("--topology gpu: jax sees no GPU here: pip install 'bert_jax[cuda]', look at nvidia-smi") from None
    kind = devices[0].device_kind
    chip = next((chip for name, chip in GPUS.items() if re.search(rf"\b{name}\b", kind)), None)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return Target(f"{len(devices)} x {kind}", tuple(devices), chip, limit)


def _tpus(name: str, version: str, topology: str, slices: int) -> Target:
    # Read when libtpu is loaded: no question to a metadata server that is not there, no lock against other processes, since no
    # chip is used. They are not for a process that trains on TPUs.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any: it asks the server otherwise
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    shape: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if version == "v4":
        shape["chip_config_name"] = "megacore"  # both cores as one device, as jax runs on it
    if version in ("v4", "v5p") and topology.count("x") == 1:
        raise BertJaxError(f"--topology {name}: {version} slices have three dimensions, as in {version}:2x2x1")
    with _without_cpu_flags():
        try:
            devices = topologies.get_topology_desc(f"{version}:{topology}", platform="tpu", **shape).devices
        except Exception as error:  # jaxlib and libtpu raise several types
            text = " ".join(str(error).split())
            if "libtpu" in text and ("open" in text or "load" in text or "None" in text) or "plugin" in text.lower():
                raise BertJaxError(f"--topology {name}: XLA's TPU compiler is missing: pip install 'bert_jax[plan]'") from error
            raise BertJaxError(f"--topology {name}: libtpu knows no such slice: {text[:200]}") from error
        # v5p and v6e look embeddings up on SparseCores. What libtpu 0.0.52 gives back of such a program jax 0.10.2 cannot read
        # (RET_CHECK failure: async-update instruction should have 1 operands but sees 3): plans leave that to the TensorCore.
        options = {"xla_tpu_offload_gather_to_sparsecore": False} if version in ("v5p", "v6e") else {}
        return Target(name, tuple(devices), TPUS[version], _tpu_limit(devices[0]), options)


@contextlib.contextmanager
def _without_cpu_flags() -> Iterator[None]:
    """While libtpu is loaded and compiles for the first time: then it reads ``XLA_FLAGS``, and ends the process at one that its
    XLA does not have; none of a processor's means anything to it."""
    flags = os.environ.get("XLA_FLAGS")
    if flags is not None:
        os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags.split() if not flag.startswith("--xla_cpu_"))
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags


def _tpu_limit(device: Any) -> int | None:
    """The memory that XLA leaves to a program, from its own refusal of one that is far too large."""
    struct = jax.ShapeDtypeStruct((2**36,), jnp.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(jnp.sin).lower(struct).compile()
    except jax.errors.JaxRuntimeError as error:
        if match := re.search(r"available HBM \(([\d.]+)G\)", str(error)):
            return int(float(match[1]) * 2**30)
    return None


def _topology(version: str, size: int, name: str) -> str:
    """The slice of an accelerator type: v5e and v6e count chips in two dimensions, the others cores in two or three."""
    flat = version in ("v2", "v3", "v5e", "v6e")
    chips = size if version in ("v5e", "v6e") else size // 2
    power = math.log2(chips) if chips > 0 else -1
    if power < 0 or power % 1 or (version not in ("v5e", "v6e") and size < 8):
        shape = f"{version}:{'4x4' if flat else '2x2x4'}"
        raise BertJaxError(f"--topology {name}: no slice has this size; give its shape, as in {shape}")
    dimensions, power = 2 if flat else 3, int(power)
    shape = [2 ** ((power + i) // dimensions) for i in range(dimensions)]
    if not flat and chips == 4:
        shape = [2, 2, 1]
    return "x".join(map(str, shape))
