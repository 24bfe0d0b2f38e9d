"""Contestants in processes of their own, which take turns: a noisy machine meets all alike.

A benchmark calls :func:`contest` in its own process, and in those of the contestants, ``python FILE --worker NAME ...``,
:func:`answer`. Everybody follows everybody else equally often, after a rest: what one leaves behind (threads that still spin, a
warm processor) is no one contestant's share. Ratios are taken round by round.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REST = 0.5  # seconds before a turn; threads of OpenMP's runtimes spin for 0.2 after their work


class Times(NamedTuple):
    """Seconds of the first turn (compilation included) and of each later one, and what the contestant said of itself.

    `processor` has those of the later turns that cores spent on it, and on processes that it started and that have ended.
    """

    first: float
    turns: list[float]
    said: dict
    processor: list[float]


def answer(run: Callable[[int], None], count: int, say: Callable[[], dict] = dict) -> None:
    """What a contestant does: ``run(count)`` once, then ``run(n)`` for every line ``n`` on standard input, with the seconds.
    ``say``: what it says of itself, asked after the first run, which compiles whatever it needs within its own seconds."""
    began = time.perf_counter()
    run(count)
    first = time.perf_counter() - began
    print(json.dumps({"first": first, "said": say()}), flush=True)
    for line in sys.stdin:
        began, before = time.perf_counter(), sum(os.times()[:4])
        run(int(line))
        seconds = {"seconds": time.perf_counter() - began, "processor": sum(os.times()[:4]) - before}
        print(json.dumps(seconds), flush=True)


def python_of(environment: str) -> Path:
    """The interpreter of a peer that needs an environment of its own, which ``make peers`` puts beside that of this process."""
    here = Path(sys.prefix)
    return here.with_name(f"{here.name}-{environment}") / "bin/python"


def contest(
    file: str, names: Sequence[str], arguments: Sequence[str], rounds: int, count: int, label: str = "",
    pythons: Mapping[str, Path] = MappingProxyType({}),
) -> dict[str, Times]:
    """Starts everybody, lets them take ``rounds`` turns of ``count`` each, and says on standard error how far it is.
    ``pythons``: name -> interpreter, where that is not the one that this runs in.

    Raises:
      SystemExit: a contestant did not start; its own error stands above.
    """
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true", "JAX_ENABLE_COMPILATION_CACHE": "false",  # a first turn compiles, whoever ran before
    }
    processes, first = {}, {}
    began = time.monotonic()
    for name in names:
        processes[name] = subprocess.Popen(
            [str(pythons.get(name, sys.executable)), file, "--worker", name, *arguments], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        first[name] = _line(processes[name], name)
        _say(f"{label}{name} ready, first turn {first[name]['first']:.1f} s")
    turns: dict[str, list[dict]] = {name: [] for name in names}
    for number in range(rounds):
        for name in order(names, number):
            process = processes[name]
            time.sleep(REST)
            process.stdin.write(f"{count}\n")
            process.stdin.flush()
            turns[name].append(_line(process, name))
        left = (time.monotonic() - began) / (number + 1) * (rounds - number - 1)
        _say(f"{label}round {number + 1} of {rounds}, {left:.0f} s left at most")
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {
        name: Times(
            first[name]["first"], [turn["seconds"] for turn in turns[name]], first[name]["said"],
            [turn["processor"] for turn in turns[name]],
        )
        for name in names
    }  # fmt: skip


def order(names: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: in as many rounds as there are names (twice as many, where that is odd) everybody has every
    place, and follows everybody else, equally often (Williams 1949, designs balanced for the effect of what came before)."""
    count = len(names)
    steps = [(place + 1) // 2 * (1 if place % 2 else -1) for place in range(count)]  # 0, 1, -1, 2, -2, ...
    row = [names[(step + number) % count] for step in steps]
    return row[::-1] if count % 2 and number % 2 else row


def _line(process: subprocess.Popen, name: str) -> dict:
    while line := process.stdout.readline():
        if line.startswith("{"):  # libraries print too
            return json.loads(line)
    sys.exit(f"{name} has ended with status {process.wait()}: see above")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ratio(times: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """How many times as long somebody's turns take as ours: median over rounds, smallest, largest."""
    values = [one / other for one, other in zip(times, ours, strict=True)]
    return statistics.median(values), min(values), max(values)


def rates(found: Mapping[str, Times], count: int, what: str, key: str, close: float) -> dict[str, dict]:
    """Contestant -> ``WHAT_per_second`` of ``count`` a turn, the first turn, and how many times as fast ours is.

    Raises:
      SystemExit: the numbers that a contestant said of itself under ``key``, rows of them, are not ``close`` to ours.
    """
    for name, times in found.items():
        rows = zip(times.said[key], found["ours"].said[key], strict=True)
        far = [abs(a - b) for one, other in rows for a, b in zip(one, other, strict=True)]
        furthest = next((one for one in far if one != one), max(far))  # NaN is far from everything
        if not furthest <= close:
            sys.exit(f"the {key} of {name} differ from ours by {furthest:.1e}")
    return {
        name: {
            f"{what}_per_second": count / statistics.median(times.turns), "first_seconds": times.first,
            "ours_over_it": ratio(times.turns, found["ours"].turns), "turns": times.turns,
        }
        for name, times in found.items()
    }


def keep(path: Path, run: dict) -> list[dict]:
    """Writes the file of a contest's results, ``{"runs": [...]}``, the newest run first, and returns its runs.

    A run has ``results``: what was measured (a model) -> contestant -> figures. Of earlier runs, what has a contestant that no
    later one had stays, with all of that run, ours included: who is not there today keeps the figures of his day.
    """
    runs, seen = [run], {(what, name) for what, rows in run["results"].items() for name in rows}
    for earlier in json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []:
        left = {}
        for what, rows in earlier["results"].items():
            only = [name for name in rows if (what, name) not in seen]
            seen |= {(what, name) for name in only}
            if only:
                left[what] = {name: row for name, row in rows.items() if name in ("ours", *only)}
        runs += [earlier | {"results": left}] if left else []
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    return runs


def versions(*packages: str) -> dict[str, str]:
    """Of packages of this process."""
    return {name: importlib.metadata.version(name) for name in packages}


def environment(*packages: str) -> dict[str, str | int]:
    """Machine and versions."""
    return {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()} | versions(*packages)
