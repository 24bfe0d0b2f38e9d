"""What a compiled program exchanges between devices, read from its text.

A collective inside a loop counts as often as the loop runs. XLA:TPU spreads an asynchronous collective over several
computations that share a channel, and writes a reduce-scatter as a fusion named after the all-reduce that it replaces.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from bert_jax.planning.hlo import computations, executions

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
          "s64": 8, "u64": 8}
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of the program.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute. dtype: of most of its bytes.
      bytes: of the whole that one group of devices ends up with or starts from, once. times: in one run of the program.
      groups: int [G, n] numbers of the devices that exchange, empty for a permute. name: of the operation in the model's code.
    """

    kind: str
    dtype: str
    bytes: int
    times: int
    groups: np.ndarray
    name: str

    @property
    def members(self) -> int:
        """Devices in a group."""
        return self.groups.shape[1] if self.groups.size else 2

    @property
    def sent(self) -> float:
        """Bytes that each device sends, once, when a ring does it (Thakur et al. 2005)."""
        share = (self.members - 1) / self.members
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)

    def crosses(self, slices: Sequence[int]) -> bool:
        """Whether a group has devices of several slices; ``slices`` says for every device which is its own."""
        return any(len({slices[device] for device in group}) > 1 for group in self.groups)


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective of a compiled program (``compiled.as_text()``) over ``devices``, those on one channel once.

    Raises:
      ValueError: a form of text that this cannot read.
    """
    program, entry = computations(text)
    times = executions(program, entry)
    found: dict[tuple, Collective] = {}
    scattered = set()  # all-reduces that are parts of a fused reduce-scatter
    for name, lines in program.items():
        for instruction, shape, opcode, rest in lines:
            kind = opcode.removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            fused = "all-reduce-scatter" in name
            size, dtype = _size(shape, opcode, rest)
            kind = "reduce-scatter" if fused else kind
            groups = _groups(rest, devices)
            if kind == "reduce-scatter" and not fused:  # its result is a share, its operand the whole
                size *= groups.shape[1]
            if groups.size and groups.shape[1] == 1:
                continue
            channel = re.search(r"channel_id=(\d+)", rest)
            operation = re.search(r'op_name="([^"]*)"', rest)
            one = Collective(kind, dtype, size, times[name], groups, operation[1] if operation else instruction)
            key = (channel[1], kind) if channel else (name, instruction)
            if fused and channel:
                scattered.add(channel[1])
            if key not in found or found[key].bytes < one.bytes:
                found[key] = one
    return [one for (channel, kind), one in found.items() if kind == "reduce-scatter" or channel not in scattered]


def summary(found: list[Collective], slices: Sequence[int]) -> list[dict]:
    """The same added up by kind, dtype, group size and whether slices are crossed; the largest first."""
    rows: dict[tuple, dict] = {}
    for one in found:
        key = (one.kind, one.dtype, one.members, one.crosses(slices))
        row = rows.setdefault(key, {"kind": one.kind, "dtype": one.dtype, "members": one.members, "crosses_slices": key[3],
                                    "count": 0, "bytes": 0, "sent": 0.0})
        row["count"] += one.times
        row["bytes"] += one.bytes * one.times
        row["sent"] += one.sent * one.times
    return sorted(rows.values(), key=lambda row: -row["sent"])


def _size(shape: str, opcode: str, rest: str) -> tuple[int, str]:
    """Bytes of the result, and the dtype of most of them; of a started collective only what it makes, not its operands."""
    parts = [(dtype, _BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n))
             for dtype, dims in _SHAPE.findall(shape)]
    if opcode.endswith("-start") and len(parts) > 1 and opcode != "all-reduce-start":
        operands = max(1, len(re.findall(r"%[\w.\-]+", rest.split("), ")[0])))
        parts = parts[operands : 2 * operands]
    by_dtype: collections.Counter = collections.Counter()
    for dtype, size in parts:
        by_dtype[dtype] += size
    return sum(by_dtype.values()), by_dtype.most_common(1)[0][0] if by_dtype else "token"


def _groups(rest: str, devices: int) -> np.ndarray:
    """The groups in any of XLA's notations: listed, as a transposed grid, or by the axes of a mesh."""
    if match := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d, ]+)\}", match[1])])
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        grid = np.arange(devices).reshape([int(n) for n in match[3].split(",")])
        if match[4]:
            grid = grid.transpose([int(n) for n in match[4].split(",")])
        return grid.reshape(int(match[1]), int(match[2]))
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? ?\{([^}]*)\}", rest):
        axes = [axis.split("=") for axis in match[1].replace("'", "").split(",")]
        grid = np.arange(devices).reshape([int(size) for _, size in axes])
        names = [name for name, _ in axes]
        over = [names.index(name) for name in match[2].replace("'", "").split(",") if name in names]
        if len(over) == match[2].count("'") // 2:
            return np.moveaxis(grid, over, range(-len(over), 0)).reshape(-1, math.prod(grid.shape[axis] for axis in over))
    if "replica_groups=" not in rest or re.search(r"replica_groups=\{\}", rest):
        return np.empty((0, 0), int) if "source_target_pairs" in rest else np.arange(devices)[None]
    raise ValueError(f"groups of devices in a form that is not known: {rest[rest.index('replica_groups'):][:120]}")
