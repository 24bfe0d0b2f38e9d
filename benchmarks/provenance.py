"""How a figure of benchmarks/results came about: command, day, code, and how busy the machine was before and after.

A script calls :func:`begin` before it measures and :func:`ended` after it, and keeps the fields; :func:`described` says them
in a page.
"""

import datetime
import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_RECORDED = "not recorded"


@functools.lru_cache(maxsize=1)
def code() -> str:
    """What git calls the code of this process, with ``-dirty`` where files differ; asked once, so ask before it can change."""
    line = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip() or NOT_RECORDED
    except (OSError, subprocess.CalledProcessError):
        return NOT_RECORDED


def command(words: Sequence[str]) -> str:
    """The command line of a script (``sys.argv``), without folders that only this machine has."""
    return shlex.join(["python", *map(_portable, words)])


def _portable(word: str) -> str:
    path = Path(word)
    if not path.is_absolute():
        return word
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT.parent) else f".../{path.name}"


def begin() -> dict[str, Any]:
    """What can be said before anything is measured."""
    today = datetime.datetime.now(datetime.UTC).date()
    return {"date": today.isoformat(), "command": command(sys.argv), "code": code(), "load": [load()]}


def ended(begun: Mapping[str, Any]) -> dict[str, Any]:
    """``begun`` with the load after it."""
    return {**begun, "load": [*begun["load"], load()]}


def load() -> float:
    """Processes that ran or waited, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def described(row: Mapping[str, Any]) -> str:
    """In words, with what is missing said to be so."""
    load = row.get("load", [])
    known = {
        "date": row.get("date"), "command": f"`{row['command']}`" if "command" in row else None,
        "code": f"code {row['code']}" if "code" in row else None,
        "load": " and ".join(f"{value:.1f} {when}" for value, when in zip(load, ("before", "after"), strict=False)),
    }
    parts = [f"load {text}" if name == "load" else text for name, text in known.items() if text]
    missing = [name for name, text in known.items() if not text]
    return ", ".join([*parts, *([f"{listed(missing)} {NOT_RECORDED}"] if missing else [])])


def listed(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
