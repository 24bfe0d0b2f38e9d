"""What a run leaves to look at: metrics.jsonl, TensorBoard events, curves.png, and a progress bar in the terminal."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from bert_jax.progress import LINE_SECONDS, clock, redirects_stdout
from bert_jax.task import Ratio

log = logging.getLogger("bert_jax")

METRICS, CURVES = "metrics.jsonl", "curves.png"
WIDE = 120  # columns of a terminal in which a bar has room
BLOCK = 2**16  # bytes at the end of a metrics file that are looked at first
DRAW_SECONDS, DRAW_SHARE = 10.0, 100  # between pictures of the curves, and times the last one took; the end is always drawn


class Record:
    """Writes what the loop reports. After a resume, everything recorded beyond ``start`` is dropped first.

    One line of ``metrics.jsonl`` is ``{"step", "kind": "train" | "eval", "time", <metric>: value, ...}``; ``time`` is
    seconds of training, restarts included. In a run of several processes the first one keeps the record.
    """

    def __init__(self, workdir: Path, steps: int, start: int, device: str = ""):
        """``device``: how many of which kind, for the line that says that a step is compiled: who thought of a GPU and has none
        sees it there."""
        self._path = workdir / METRICS
        self._workdir = workdir
        self._steps = steps
        last = _drop_beyond(self._path, start)
        self._spent = last["time"] if last else 0.0
        self._started = time.monotonic()
        self._board = Board(workdir / "tensorboard", start)
        self._waiting: list[str] = []  # rows that could not be written yet
        self._drawn, self._complete = self._started, False  # when the curves were, and whether they have every row
        self._drawing = 0.0  # seconds that it took
        self._console = Console(stderr=True)
        self._progress = progress_bar(self._console)
        self._bar = self._progress.add_task("training", total=steps, completed=start, state=f"compiling{device}")
        self._start, self._last_line = start, 0.0
        self._timed: tuple[int, float] | None = None  # the first step, which compiles, and when it was done
        self._progress.start()
        if not self._console.is_terminal and start < steps:
            self.say(f"step {start}/{steps} compiling{device}")

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a restart included."""
        return self._spent + time.monotonic() - self._started

    def show(self, step: int, state: str) -> None:
        """Updates the progress bar; without a terminal, a line every quarter of a minute."""
        self._progress.update(self._bar, completed=step, state=state)
        now = time.monotonic()
        if self._timed is None and step > self._start:
            self._timed = step, now
        if not self._console.is_terminal and (now - self._last_line > LINE_SECONDS or step == self._steps):
            self._last_line = now
            first, since = self._timed or (step, now)
            left = f" left {clock((now - since) / (step - first) * (self._steps - step))}" if step > first else ""
            self.say(f"step {step}/{self._steps} {state}{left}")

    def say(self, line: str) -> None:
        """One line above the progress bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        """One line of the JSONL file and one point of every TensorBoard curve."""
        row = {"step": step, "kind": kind, "time": round(self.seconds, 3)} | metrics
        self._waiting.append(json.dumps(row) + "\n")
        self._complete = False
        with self._forgiving("a row"):
            self._append()
        with self._forgiving("an event of TensorBoard"):
            self._board.write({f"{kind}/{name}": value for name, value in metrics.items()}, step)
        if kind == "eval" and time.monotonic() - self._drawn > max(DRAW_SECONDS, DRAW_SHARE * self._drawing):
            self._draw()

    def _append(self) -> None:
        """Writes the rows that wait, all of them or, with an error, none."""
        if not self._waiting:
            return
        before = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:  # closed each time: a mounted bucket uploads a file when it is closed
                file.write("".join(self._waiting))
        except OSError:
            with contextlib.suppress(OSError):  # nothing behind half a row would be read
                os.truncate(self._path, before)
            raise
        self._waiting.clear()

    def close(self) -> None:
        """Flushes everything and leaves the terminal clean."""
        self._progress.stop()
        with self._forgiving("an event of TensorBoard"):
            self._board.close()
        with self._forgiving("a row"):
            self._append()
        if not self._complete and read(self._path):
            self._draw()

    @contextlib.contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """A record that cannot be written is no reason to end a run, nor to be silent."""
        try:
            yield
        except OSError as error:
            log.warning("%s: %s could not be written (%s)", self._workdir, what, error.strerror or error)

    def _draw(self) -> None:
        began = time.monotonic()
        with self._forgiving("a picture"):
            draw(self._path, self._workdir / CURVES)
        self._drawn, self._complete = time.monotonic(), True
        self._drawing = self._drawn - began


def progress_bar(console: Console) -> Progress:
    """Steps, state and time left in one line of a terminal: where it is narrow without a bar, and with as much of the state as
    has room."""
    whole = Column(no_wrap=True)
    bar = (BarColumn(),) if console.width >= WIDE else ()
    return Progress(
        TextColumn("{task.description}"), *bar, MofNCompleteColumn(table_column=whole.copy()),
        TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        TimeElapsedColumn(table_column=whole.copy()), TextColumn("left"), TimeRemainingColumn(table_column=whole.copy()),
        console=console, speed_estimate_period=120, disable=not console.is_terminal, expand=True,
        redirect_stdout=redirects_stdout(),
    )


class NoRecord:
    """What the other processes of a run have in its place."""

    def show(self, step: int, state: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class Window:
    """Sums of the metrics since the last record, and the throughput.

    ``sums`` are those of the run that is continued, so that its records are those of one that was never interrupted.
    """

    def __init__(self, batch_size: int, sums: dict[str, list[float]] | None = None):
        self._batch_size = batch_size
        self._sums: dict[str, np.ndarray] = {name: np.array(pair, np.float64) for name, pair in (sums or {}).items()}
        self._started = False  # the first step compiles; the clock starts after it
        self.line = ""
        self.restart()

    @property
    def sums(self) -> dict[str, list[float]]:
        """Sum and weight of each metric since the last record."""
        return {name: pair.tolist() for name, pair in self._sums.items()}

    def restart(self) -> None:
        """Starts the clock anew, so that pauses (compilation, evaluation, saving) do not count as training."""
        self._steps, self._clock, self._tokens = 0, time.monotonic(), 0.0

    def add(self, metrics: dict[str, Ratio]) -> dict[str, float]:
        """Adds a step; returns its own values."""
        if self._started:
            self._steps += 1
            self._tokens += float(metrics["tokens"].sum) if "tokens" in metrics else 0.0
        else:
            self._started = True
            self.restart()
        for name, ratio in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + np.array(ratio, np.float64)
        values = {name: float(r.sum / max(r.weight, 1e-9)) for name, r in metrics.items()}
        self.line = f"{summary(values)} {self._tokens / self._elapsed:,.0f} tokens/s"
        return values

    def take(self) -> dict[str, float]:
        """The means since the last call, and the speed."""
        values = {n: float(s / max(w, 1e-9)) for n, (s, w) in self._sums.items() if n != "tokens"}
        if self._steps:
            values["sequences_per_second"] = self._batch_size * self._steps / self._elapsed
            values["tokens_per_second"] = self._tokens / self._elapsed
        self._sums = {}
        self.restart()
        return values

    @property
    def _elapsed(self) -> float:
        return max(time.monotonic() - self._clock, 1e-9)


class Board:
    """TensorBoard's events, written where they come. The thread of tensorboardX's SummaryWriter ends at its first error; then
    its queue holds up the run as soon as it is full, and the process as it ends."""

    def __init__(self, folder: Path, start: int):
        """``start``: the step from which a run goes on; what was written of later ones is not shown."""
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary
        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        before = any(folder.glob("events*"))
        self._writer = EventsWriter(str(folder / "events"), f".{start}")
        if start or before:
            self._writer.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, values: dict[str, float], step: int) -> None:
        """A point of every curve."""
        points = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=points)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Where torch is installed tensorboardX imports it for the name of a type, which takes two seconds of every start and
    200 MB: it is made to believe that there is none."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def summary(values: dict[str, float]) -> str:
    """The loss and the accuracies in a line."""
    shown = {n: v for n, v in values.items() if n == "loss" or n.endswith("_accuracy")}
    return " ".join(f"{name.replace('_accuracy', ' acc')} {value:.3f}" for name, value in shown.items())


def read(path: Path) -> list[dict]:
    """The rows of a metrics file; a last line cut short by a crash is ignored."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        if (row := _row(line)) is None:
            break
        rows.append(row)
    return rows


def _row(line: bytes) -> dict | None:
    """None: it was cut short."""
    try:
        return json.loads(line)
    except ValueError:  # UnicodeDecodeError too
        return None


def _drop_beyond(path: Path, step: int) -> dict | None:
    """Cuts a metrics file behind its last row of at most ``step``, which is returned. Rows come in order of steps, so that it
    is looked for from the end, and takes no longer where the file is long."""
    if not path.exists():
        return None
    with path.open("r+b") as file:
        size, block, begin = file.seek(0, os.SEEK_END), BLOCK, 1
        while begin > 0:
            begin, block = max(0, size - block), 2 * block
            file.seek(begin)
            kept = begin + (len(file.readline()) if begin else 0)  # behind a line that begins before
            last = None
            for line in file:
                if (row := _row(line)) is None or row["step"] > step:
                    break
                kept, last = kept + len(line), row
                if not line.endswith(b"\n"):
                    file.write(b"\n")
                    return last
            if last:
                break
        if kept < size:
            file.truncate(kept)
    return last


def draw(metrics: Path, picture: Path) -> None:
    """Draws every loss and accuracy of a metrics file over steps, training and held-out in one panel each."""
    from matplotlib.figure import Figure  # not pyplot, whose backend is the notebook's

    rows = read(metrics)
    names = [n for n in dict.fromkeys(key for row in rows for key in row) if n.endswith(("_loss", "_accuracy"))]
    if not names:
        return
    columns = min(len(names), 2)
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * lines))
    axes = figure.subplots(lines, columns, squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        for kind, style in (("train", {"alpha": 0.5, "linewidth": 1}), ("eval", {"marker": "o", "markersize": 3})):
            points = [(row["step"], row[name]) for row in rows if row["kind"] == kind and name in row]
            if points:
                panel.plot(*zip(*points, strict=True), label={"train": "training", "eval": "held out"}[kind], **style)
        panel.set(title=name.replace("_", " "), xlabel="step", ylabel="nats" if name.endswith("loss") else None)
        panel.grid(alpha=0.3)
        panel.legend()
    for panel in list(axes.flat)[len(names):]:
        panel.remove()
    figure.tight_layout()
    temporary = picture.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(picture)
