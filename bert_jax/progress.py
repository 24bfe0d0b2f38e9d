"""How far long work is, on stderr: a bar in a terminal; elsewhere, in a job's log or a notebook, a line now and then."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import ClassVar, TypeVar

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

BAR_SECONDS = 2.0  # before a bar appears
LINE_SECONDS = 15.0  # between lines where there is no terminal
WIDE = 100  # columns of a terminal in which a bar has room beside the rest

T = TypeVar("T")


class Progress:
    """``with Progress("predicting", total=1_000) as progress: progress.advance(10, "10 rows")``.

    Quick work shows nothing: a bar comes after two seconds and goes when the work ends, a line comes every quarter of a minute.
    Both have the note, the share that is done and the time that is left, or, where the total is not known, the time that has
    passed. Threads may advance the same one.

    Args:
      doing: what is done, in a word or two: "reading texts".
      total: the work, in whatever :meth:`advance` counts; None or 0: not known.
      show: False shows nothing at all.

    Attributes:
      quiet: of the class: nothing is shown in this process, which leaves that to another one.
    """

    quiet: ClassVar[bool] = False

    def __init__(self, doing: str, total: float | None = None, show: bool = True):
        self._console = Console(stderr=True)
        self._show = show and not self.quiet
        self._lock, self._over = threading.Lock(), threading.Event()
        self._watch = threading.Thread(target=self._bar_appears if self._console.is_terminal else self._lines, daemon=True)
        self._said = False  # whether a line was
        self._bar = None
        self.begin(doing, total)

    def begin(self, doing: str, total: float | None = None) -> None:
        """The next part of the work: counts from 0 again."""
        with self._lock:
            self._doing, self._total, self._done, self._note = doing, total or None, 0.0, ""
            self._began = time.monotonic()
            self._first: tuple[float, float] | None = None  # what was done at first, and when that was
            if self._bar is not None:
                self._bar.stop()
                self._start_bar()

    def advance(self, count: float = 1, note: str | None = None) -> None:
        """So much more is done; ``note`` replaces the one before."""
        with self._lock:
            self._first = self._first or (0.0, self._began)
            self._set(self._done + count, note)

    def update(self, done: float, note: str | None = None) -> None:
        """So much is done in all. What was done before the first update, by a run that is continued, took no time here."""
        with self._lock:
            self._first = self._first or (done, time.monotonic())
            self._set(done, note)

    def _set(self, done: float, note: str | None) -> None:
        self._done = done
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=self._note)

    def __enter__(self) -> "Progress":
        if self._show:
            self._watch.start()
        return self

    def __exit__(self, *raised) -> None:
        self._over.set()
        if self._show:
            self._watch.join()
        if self._bar is not None:
            self._bar.stop()
        if self._said and raised[0] is None:
            self._say()

    def _bar_appears(self) -> None:
        if self._over.wait(BAR_SECONDS):
            return
        with self._lock:
            self._start_bar()

    def _start_bar(self) -> None:
        self._bar = _bar(self._console, known=self._total is not None)
        self._task = self._bar.add_task(self._doing, total=self._total, completed=self._done, note=self._note)
        self._bar.start()

    def _lines(self) -> None:
        while not self._over.wait(LINE_SECONDS):
            self._say()

    def _say(self) -> None:
        with self._lock:
            parts, now = [self._doing], time.monotonic()
            if self._total is not None:
                parts.append(f"{min(self._done / self._total, 1):.0%}")
            parts += [self._note] if self._note else []
            first, since = self._first or (0.0, now)
            if self._total is None or self._done >= self._total:
                parts.append(f"after {clock(now - self._began)}")
            elif self._done > first:
                parts.append(f"left {clock((now - since) / (self._done - first) * (self._total - self._done))}")
        self._said = True
        self._console.print(" ".join(parts), highlight=False, markup=False, soft_wrap=True)


def tracked(items: Iterable[T], doing: str, total: int | None = None) -> Iterator[T]:
    """``items``, counted as they are taken; ``total`` of them, or as many as their length says."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(doing, total) as progress:
        for item in items:
            yield item
            progress.advance()


def clock(seconds: float) -> str:
    """H:MM:SS."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def redirects_stdout() -> bool:
    """Whether what is printed beside a bar shall go through it, to stand above it: only where it is read in a terminal too.
    Rich would send it to stderr, past the file that the shell sends it to."""
    return sys.stdout.isatty()


def _bar(console: Console, known: bool) -> rich_progress.Progress:
    def whole() -> Column:
        return Column(no_wrap=True)

    rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    described = rich_progress.TextColumn("{task.description}", markup=False, table_column=whole())
    note = rich_progress.TextColumn("{task.fields[note]}", markup=False, table_column=rest)
    if known:
        bar = [rich_progress.BarColumn(bar_width=20)] if console.width >= WIDE else []
        share, left = rich_progress.TaskProgressColumn, rich_progress.TimeRemainingColumn
        said = rich_progress.TextColumn("left", table_column=whole())
        columns = [described, *bar, share(table_column=whole()), note, said, left(table_column=whole())]
    else:
        columns = [rich_progress.SpinnerColumn(), described, note, rich_progress.TimeElapsedColumn(table_column=whole())]
    return rich_progress.Progress(
        *columns, console=console, transient=True, expand=True, redirect_stdout=redirects_stdout(), speed_estimate_period=120,
    )
