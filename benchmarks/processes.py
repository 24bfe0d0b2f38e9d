"""Cells of a benchmark, each a JSON file, measured in processes of their own: several at a time, resumable, until a deadline.

A process takes a group of cells one after another, for instance the seeds of a task, which share what is compiled. A cell
that fails stops no other one. On a processor every job has its share of the cores; a GPU all jobs share (NVIDIA's MPS lets
their kernels run side by side: ``nvidia-cuda-mps-control -d``).

A benchmark says in a :class:`Benchmark` what its cells are, how one is measured and what the page says; :func:`main` is the
command line of them all: ``run``, ``report``, and ``one`` for the processes.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import provenance

ROOT = Path(__file__).resolve().parent.parent
CONTINUES = 75  # status of a process that was asked to stop and has saved what it had
GRACE = 50.0  # seconds for that, after which it is killed


class Stage(NamedTuple):
    """Groups of cells, in the order in which they begin, and how many of them run at a time."""

    jobs: int
    groups: list[list[str]]


class Setting(NamedTuple):
    """With what cells are measured: the benchmark's ``Size``; folder of real data; folder of runs and results; whether
    nothing else is running, so that times count."""

    size: Any
    data: Path
    directory: Path
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A table of cells.

    Attributes:
      name: of benchmarks/results/NAME_SIZE.json and docs/results/NAME_SIZE.md. doc: the script's own. sizes: by name, the
        default first. reads: what of the folder of data.
      stages: the setting and the arguments of ``run`` -> cells that are wanted; makes what processes share. measure: a
        cell, unless its file is there, see :func:`found`, and writes it, see :func:`keep`. report: writes the page of a folder.
      options: adds arguments that choose cells to those of ``run``. whole: whether the file of a cell has all of it.
    """

    name: str
    doc: str
    sizes: dict[str, Any]
    reads: str
    stages: Callable[[Setting, argparse.Namespace], list[Stage]]
    measure: Callable[[str, Setting], None]
    report: Callable[[Path], None]
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    whole: Callable[[dict], bool] = bool


def main(benchmark: Benchmark) -> None:
    """Reads the command line of a benchmark's script."""
    parser = argparse.ArgumentParser(description=benchmark.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, what in (
        ("run", "measure every cell that is not there yet"), ("one", "measure cells in this process, for run"),
        ("report", "write the page of what is there"),
    ):
        sub = commands.add_parser(name, help=what, description=what)
        folder = Path("runs") / benchmark.name
        sub.add_argument("--dir", type=Path, default=folder, help=f"folder of runs and their results; default: {folder}")
        if name == "report":
            continue
        sub.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help=f"folder with {benchmark.reads}")
        sub.add_argument("--size", choices=benchmark.sizes, default=next(iter(benchmark.sizes)), help="default: %(default)s")
        if name == "run":
            sub.add_argument("--jobs", type=int, default=1, help="processes at a time, on their shares of the cores or one GPU")
            sub.add_argument("--deadline", type=float, help="seconds after which all is asked to save and to end")
            sub.add_argument("--published", action="store_true", help="what benchmarks/results has need not be measured again")
            benchmark.options(sub)
        else:
            sub.add_argument("--cells", required=True, help="with commas between")
            sub.add_argument("--cores", help="numbers of the cores to run on; default: all")
            sub.add_argument("--alone", action="store_true", help="nothing else is running")
    arguments = parser.parse_args()
    directory = arguments.dir.resolve()
    if arguments.command == "report":
        benchmark.report(directory)
        return
    setting = Setting(benchmark.sizes[arguments.size], arguments.data.resolve(), directory)
    if arguments.command == "one":
        provenance.code()  # before a long cell: files may have changed when it is over
        if arguments.cores:  # before jax counts them
            os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
        each(arguments.cells.split(","), lambda cell: benchmark.measure(cell, setting._replace(alone=arguments.alone)))
        return
    directory.mkdir(parents=True, exist_ok=True)
    size = dataclasses.asdict(setting.size)
    if arguments.published:
        take_published(published(benchmark.name, arguments.size)[0], directory, size, benchmark.whole)

    def command(stage: Stage, group: list[str]) -> list[str]:
        return [
            sys.executable, str(Path(sys.argv[0]).resolve()), "one", "--cells", ",".join(group), "--data", str(setting.data),
            "--dir", str(directory), "--size", arguments.size, *(["--alone"] if stage.jobs == 1 else []),
        ]

    run(benchmark.stages(setting, arguments), command, directory, size, arguments.deadline, benchmark.whole)


def chosen(given: str | None, known: Iterable[str]) -> list[str]:
    """The names in an argument with commas between, or all; ends the process where one is not ``known``."""
    known = list(known)
    names = given.split(",") if given else known
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"{', '.join(unknown)}: not there; there are {', '.join(known)}")
    return names


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


def codes(rows: Iterable[dict]) -> str:
    """Which code measured ``rows``, with the number of rows of each where several did."""
    found = collections.Counter(row.get("code", provenance.NOT_RECORDED) for row in rows)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{code} ({count} rows)" for code, count in sorted(found.items()))


def keep(path: Path, row: dict) -> None:
    """Writes the file of a cell, with the ``code`` that measured it; of a cell that goes on, each that did, in order."""
    before = [json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
    made = [code for one in before for code in one.get("code", provenance.NOT_RECORDED).split(", ")]
    _write(path, row | {"code": ", ".join(dict.fromkeys([*made, provenance.code()]))})


def _write(path: Path, row: dict) -> None:
    """Writes the file of a cell, whole or not at all."""
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


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
        _write(directory / f"{cell}.json", rows[cell])  # by the code that measured it, not by this
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


def check_nothing_lost(results: Path, rows: dict[str, dict]) -> dict:
    """What the file of results has; a report without some of its cells ends here, before it has written anything."""
    before = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {"rows": {}}
    if lost := before["rows"].keys() - rows.keys():
        sys.exit(f"{results} has {len(lost)} cells that are not here, such as {min(lost)}: take them over first "
                 "(run --published), or delete the file")
    return before


def publish(results: Path, page: Path, rows: dict[str, dict], text: str) -> None:
    """Writes the file of results and the page, unless cells of the file would be lost. A ``note`` that the file had (how rows
    were made that nobody can make again) stays as long as one of those rows does, and stands before the line of the machine in
    the page; after that line comes one of the code that measured the rows."""
    before = check_nothing_lost(results, rows)
    note = before.get("note") if any(rows.get(cell) == row for cell, row in before["rows"].items()) else None
    for path in (results, page):
        path.parent.mkdir(parents=True, exist_ok=True)
    head = f'{{"note": {json.dumps(note)},\n "rows": {{\n' if note else '{"rows": {\n'
    lines = ",\n".join(f"{json.dumps(cell)}: {json.dumps(row)}" for cell, row in rows.items())  # a cell is a line
    results.write_text(f"{head}{lines}\n}}}}\n", encoding="utf-8")
    if note:
        text = text.replace("\nMachine: ", f"\n**How these rows were made.** {note}\n\nMachine: ", 1)
    text = re.sub(r"^Machine: .*$", lambda line: f"{line[0]}\nCode: {codes(rows.values())}.", text, count=1, flags=re.M)
    page.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
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
    deadline: float | None = None, whole: Callable[[dict], bool] = bool,
) -> None:
    """Measures the cells of ``stages`` that have no ``whole`` ``directory/CELL.json`` yet, one stage after another.

    Args:
      command: makes the command line of a process that measures the cells of a group.
      size: the fields of the benchmark's ``Size``; where a cell was measured with another, all ends, see :func:`found`.
      deadline: seconds after which nothing more begins and what runs is asked to save and to end.

    Processes that run beside others write into ``directory/logs``. SIGTERM ends it all as the deadline does. Ends with status
    1 and one line where cells failed, else with 75 where not all could be done; the same command continues.
    """
    began = time.monotonic()

    def missing(group: list[str]) -> list[str]:
        return [cell for cell in group if not whole(found(directory / f"{cell}.json", size))]

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

    before = signal.signal(signal.SIGTERM, lambda *_: over.set())
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
    signal.signal(signal.SIGTERM, before)
    if errors:
        print(f"{len(errors)} failed: {'; '.join(errors)}; the same command continues", file=sys.stderr)
        sys.exit(1)
    if done < total:
        print(f"stopped, {done} of {total} cells are there: the same command continues", file=sys.stderr)
        sys.exit(CONTINUES)


def _as_json(size: dict) -> dict:
    """With lists for tuples, as a file has them."""
    return json.loads(json.dumps(size))


def _wait(process: subprocess.Popen, over: threading.Event, end: float | None) -> None:
    """Until ``process`` has ended; when all is ``over``, or at ``end``, it is asked to, and a little later made to."""
    while process.poll() is None:
        if over.is_set() or (end is not None and time.monotonic() > end):
            over.set()
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        time.sleep(0.1)
