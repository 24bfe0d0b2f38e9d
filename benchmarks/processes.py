"""Cells of a benchmark, each a JSON file, measured in processes of their own: several at a time, resumable, until a deadline.

A process takes a group of cells one after another, for instance the seeds of a task, which share what is compiled. A cell
that fails stops no other one. On a processor every job has its share of the cores; a GPU all jobs share (NVIDIA's MPS lets
their kernels run side by side: ``nvidia-cuda-mps-control -d``).
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import queue
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONTINUES = 75  # status of a process that was asked to stop and has saved what it had
GRACE = 50.0  # seconds for that, after which it is killed


class Stage(NamedTuple):
    """Groups of cells, in the order in which they begin, and how many of them run at a time."""

    jobs: int
    groups: list[list[str]]


def has_gpu() -> bool:
    """Whether this machine has NVIDIA's tools, asked without waking the driver."""
    return shutil.which("nvidia-smi") is not None


def environment(directory: Path) -> dict[str, str]:
    """What the processes of a benchmark see. Compiled programs lie in ``directory``, however small and quickly made; the
    jobs share a GPU's memory, and its products of float32 matrices are float32 as on a processor and in PyTorch, not TF32."""
    ours = {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large pages for the heap
        "HF_HUB_OFFLINE": "1", "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    gpu = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    return os.environ | ours | (gpu if has_gpu() else {})


def machine(*packages: str) -> str:
    """The accelerator or processor of this process, the precision of float32 products, and versions of ``packages``."""
    import jax

    device, precision = jax.devices()[0], jax.config.jax_default_matmul_precision
    if device.platform == "cpu":
        where = f"{platform.machine()}, {os.cpu_count()} cores, float32"
    else:
        products = "float32" if precision in ("highest", "float32") else f"float32 with jax's {precision or 'default'} products"
        where = f"{device.device_kind}, {os.cpu_count()} cores, {products}"
    flags = [f"XLA_FLAGS {os.environ['XLA_FLAGS']}"] if os.environ.get("XLA_FLAGS") else []
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return ", ".join([where, f"Python {platform.python_version()}", *versions, *flags])


def machines(rows: list[dict]) -> str:
    """Where ``rows`` were measured."""
    return "; ".join(sorted({row.get("machine", "not recorded") for row in rows}))


def found(path: Path, size: dict) -> dict:
    """What ``path`` holds of a cell, empty where there is no such file; ends the process where it was measured with another
    ``size`` (the fields of a benchmark's ``Size``) or does not say with which."""
    if not path.exists():
        return {}
    row = json.loads(path.read_text(encoding="utf-8"))
    other, size = row.get("size", {}), _as_json(size)
    if other != size:
        fields = {key: (other.get(key), size.get(key)) for key in other | size if other.get(key) != size.get(key)}
        sys.exit(f"{path} is of another size ({', '.join(f'{k} {a}, not {b}' for k, (a, b) in fields.items())}): "
                 "take another --dir, or delete the file")
    return row


def take_published(path: Path, directory: Path, size: dict, whole: Callable[[dict], bool] = lambda row: True) -> None:
    """Writes the cells that the file of results ``path`` has, measured with ``size`` and ``whole``, into ``directory``, but
    for those that are there: what was begun on another machine goes on here."""
    if not path.exists():
        sys.exit(f"nothing is published of this size: there is no {path}")
    directory.mkdir(parents=True, exist_ok=True)
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    taken = [
        cell for cell, row in rows.items()
        if row["size"] == _as_json(size) and whole(row) and not (directory / f"{cell}.json").exists()
    ]
    for cell in taken:
        (directory / f"{cell}.json").write_text(json.dumps(rows[cell], indent=1) + "\n", encoding="utf-8")
    print(f"{len(taken)} cells taken from {path}", flush=True)


def gathered(directory: Path, sizes: dict) -> tuple[str, dict[str, dict]]:
    """The name in ``sizes`` (name -> ``Size``) of what ``directory`` holds, and its cells by name."""
    rows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))}
    if len({json.dumps(row["size"]) for row in rows.values()}) != 1:
        sys.exit(f"{directory} holds no results, or those of several sizes: one is needed")
    size = next(iter(rows.values()))["size"]
    names = [name for name, one in sizes.items() if _as_json(dataclasses.asdict(one)) == size]
    if not names:
        sys.exit(f"{directory} holds results of a size that this script no longer has: {size}")
    return names[0], rows


def published(benchmark: str, size: str, directory: Path | None = None) -> tuple[Path, Path]:
    """Where the JSON file and the page of a benchmark's results of a size belong; of a trial in its ``directory``."""
    name = f"{benchmark}_{size}"
    if size == "test" and directory is not None:
        return directory / "published" / f"{name}.json", directory / "published" / f"{name}.md"
    return ROOT / "benchmarks/results" / f"{name}.json", ROOT / "docs/results" / f"{name}.md"


def publish(results: Path, page: Path, rows: dict[str, dict], text: str) -> None:
    """Writes the file of results and the page. A ``note`` that the file had (how rows were made that nobody can make again)
    stays as long as one of those rows does, and stands before the line of the machine in the page."""
    before = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {"rows": {}}
    note = before.get("note") if any(rows.get(cell) == row for cell, row in before["rows"].items()) else None
    for path in (results, page):
        path.parent.mkdir(parents=True, exist_ok=True)
    head = f'{{"note": {json.dumps(note)},\n "rows": {{\n' if note else '{"rows": {\n'
    lines = ",\n".join(f"{json.dumps(cell)}: {json.dumps(row)}" for cell, row in rows.items())  # a cell is a line
    results.write_text(f"{head}{lines}\n}}}}\n", encoding="utf-8")
    if note:
        text = text.replace("\nMachine: ", f"\n**How these rows were made.** {note}\n\nMachine: ", 1)
    page.write_text(text, encoding="utf-8")
    print(page)


def each(cells: list[str], measure: Callable[[str], None]) -> None:
    """Measures every cell, in a process of its own; ends it with status 1 where one failed."""
    failed = False
    for cell in cells:
        try:
            measure(cell)
        except Exception:  # whatever it is, the other cells can still be measured
            traceback.print_exc()
            failed = True
    if failed:
        sys.exit(1)


def run(
    stages: list[Stage], command: Callable[[Stage, list[str]], list[str]], directory: Path, size: dict,
    deadline: float | None = None,
) -> None:
    """Measures the cells of ``stages`` that have no ``directory/CELL.json`` yet, one stage after another.

    Args:
      command: makes the command line of a process that measures the cells of a group.
      size: the fields of the benchmark's ``Size``; where a cell was measured with another, all ends, see :func:`found`.
      deadline: seconds after which nothing more begins and what runs is asked to save and to end.

    Processes that run beside others write into ``directory/logs``. Ends with status 1 and one line where cells failed, else
    with 75 where the time was not enough; the same command continues.
    """
    began = time.monotonic()

    def missing(group: list[str]) -> list[str]:
        return [cell for cell in group if not found(directory / f"{cell}.json", size)]

    todo = [Stage(stage.jobs, [left for group in stage.groups if (left := missing(group))]) for stage in stages]
    total, number = (sum(len(group) for stage in which for group in stage.groups) for which in (stages, todo))
    done = total - number
    if done:
        print(f"{done} of {total} cells are there", flush=True)
    errors: list[str] = []
    over, lock = threading.Event(), threading.Lock()

    def measure(stage: Stage, group: list[str], cores: list[int]) -> None:
        nonlocal done
        begin, name = time.monotonic(), group[0] if len(group) == 1 else f"{group[0]} ... {group[-1]}"
        print(f"{done}/{total} {name} begins at {begin - began:.0f} s", flush=True)
        line = command(stage, group) + (["--cores", ",".join(map(str, cores))] if cores else [])
        log = directory / "logs" / f"{group[0]}.log"
        log.parent.mkdir(exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                line, cwd=ROOT, env=environment(directory), stdout=file if stage.jobs > 1 else None,
                stderr=subprocess.STDOUT if stage.jobs > 1 else None,
            )
            _wait(process, over, deadline and began + deadline)
        left = missing(group)
        with lock:
            done += len(group) - len(left)
            now = time.monotonic()
            print(f"{done}/{total} {name} {'stopped' if left else 'done'} after {now - begin:.0f} s", flush=True)
            if left and not over.is_set():
                errors.append(f"{', '.join(left)} ended with status {process.returncode}")
                text = log.read_text(encoding="utf-8", errors="replace").splitlines()
                print("\n".join([errors[-1], *(f"    {row}" for row in text[-20:])]), flush=True)

    for stage in todo:
        waiting = queue.SimpleQueue()
        for group in stage.groups:
            waiting.put(group)

        def work(job: int, stage: Stage = stage, waiting: queue.SimpleQueue = waiting) -> None:
            cores = [] if has_gpu() or stage.jobs == 1 else sorted(os.sched_getaffinity(0))[job :: stage.jobs]
            while not over.is_set() and (deadline is None or time.monotonic() - began < deadline):
                try:
                    group = waiting.get_nowait()
                except queue.Empty:
                    return
                measure(stage, group, cores)

        with ThreadPoolExecutor(stage.jobs) as pool:
            try:
                list(pool.map(work, range(stage.jobs)))
            except KeyboardInterrupt:
                over.set()
                raise
    if errors:
        print(f"{len(errors)} failed: {'; '.join(errors)}; the same command continues", file=sys.stderr)
        sys.exit(1)
    if done < total:
        print(f"the time is over, {done} of {total} cells are there: the same command continues", file=sys.stderr)
        sys.exit(CONTINUES)


def _as_json(size: dict) -> dict:
    """With lists for tuples, as a file has them."""
    return json.loads(json.dumps(size))


def _wait(process: subprocess.Popen, over: threading.Event, end: float | None) -> None:
    """Until ``process`` has ended; at ``end`` it is asked to, and a little later made to."""
    while process.poll() is None:
        if end is not None and time.monotonic() > end:
            over.set()
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        time.sleep(0.1)
