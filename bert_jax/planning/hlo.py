"""The text of a program that XLA has compiled: its instructions, and how often each of them runs."""

import collections
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
# What runs other computations one by one, instead of having them as its parts.
_RUNS = ("while", "conditional", "call", "async-start")
_NO_WORK = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "copy-start", "copy-done",
            "async-update", "async-done", "reshape", *_RUNS}


class Instruction(NamedTuple):
    """A line of a computation: the name and shape of its result, what it does, and the rest, its operands first."""

    name: str
    shape: str
    opcode: str
    rest: str


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation of ``compiled.as_text()``, and the name of the one that is the program.

    Raises:
      ValueError: none is.
    """
    found: dict[str, list[Instruction]] = {}
    entry = current = None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = found.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(Instruction(*match.groups()))
    if entry is None:
        raise ValueError("the text of the compiled program has no entry")
    return found, entry


def executions(program: dict[str, list[Instruction]], entry: str) -> dict[str, int]:
    """How often each computation of a ``program`` runs: a loop's body as often as its counter says, all else as its caller."""
    times = collections.Counter({entry: 1})
    edges = {name: [] for name in program}
    for name, lines in program.items():
        for _, _, opcode, rest in lines:
            factor = _trips(rest, program) if opcode == "while" else 1
            for several, one in _CALLED.findall(rest):
                edges[name] += [(called.strip().lstrip("%"), factor) for called in (several or one).split(",")]
    order, seen = [], set()

    def visit(name):
        if name not in seen and name in edges:
            seen.add(name)
            for called, _ in edges[name]:
                visit(called)
            order.append(name)

    visit(entry)
    for name in reversed(order):
        for called, factor in edges[name]:
            times[called] += times[name] * factor
    return times


def _trips(rest: str, program: dict[str, list[Instruction]]) -> int:
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    limits = [int(value[0]) for _, shape, opcode, arguments in program[condition[1]]
              if opcode == "constant" and shape.startswith("s32[]") and (value := re.findall(r"^(\d+)\)", arguments))]
    return max(limits, default=1)


def estimated_cycles(text: str) -> tuple[int, int, int]:
    """What XLA:TPU itself expects a compiled program to take, as it notes beside most of what it has fused or copies.

    Returns:
      The sum of its cycles, that of a loop's body as often as the loop runs; the number of instructions (likewise) that it says
      something of; and of those that do work and of which it says nothing.
    """
    program, entry = computations(text)
    times = executions(program, entry)
    inside = {  # computations that are parts of an instruction, which stands for them
        called for lines in program.values() for one in lines if one.opcode not in _RUNS
        for several, single in _CALLED.findall(one.rest) for called in re.split(r",\s*%?", several.lstrip("%") or single)
    }
    cycles = said = silent = 0
    for name, lines in program.items():
        for one in lines if times[name] and name not in inside else ():
            if found := re.search(r'"estimated_cycles":"(\d+)"', one.rest):
                cycles += int(found[1]) * times[name]
                said += times[name]
            elif one.opcode not in _NO_WORK:
                silent += times[name]
    return cycles, said, silent
