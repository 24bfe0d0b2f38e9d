"""What long work says about itself: lines where there is no terminal, a bar in one, and never a word on stdout."""

import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest

from bert_jax import progress as module
from bert_jax.progress import Progress, clock, tracked


@pytest.fixture
def lines(monkeypatch, capsys):
    """The lines since the last call; one comes every hundredth of a second."""
    monkeypatch.setattr(module, "LINE_SECONDS", 0.01)

    def read() -> list[str]:
        time.sleep(0.2)
        return capsys.readouterr().err.splitlines()

    return read


def test_lines_say_share_note_and_time_left(lines):
    with Progress("predicting", 1000) as progress:
        assert set(lines()) == {"predicting 0%"}
        progress.advance(100, "100 [bold] rows")
        progress.advance(100)
        said = lines()[-1]
        assert re.fullmatch(r"predicting 20% 100 \[bold\] rows left 0:00:0[01]", said)
        progress.update(1000, "all")
    assert lines()[-1] == "predicting 100% all after 0:00:00"


def test_what_an_interrupted_run_had_done_is_not_counted_as_speed(lines):
    with Progress("prepare", 1000) as progress:
        progress.update(900)
        assert lines()[-1] == "prepare 90%"
        progress._first = 900, time.monotonic() - 90
        progress.update(990)
        assert lines()[-1] in ("prepare 99% left 0:00:10", "prepare 99% left 0:00:09")


def test_parts_and_unknown_totals(lines):
    with Progress("annotating") as progress:
        assert re.fullmatch("annotating after 0:00:0[0-9]", lines()[-1])
        progress.begin("counting words", 10)
        progress.advance(5)
        assert lines()[-1].startswith("counting words 50% left")
        progress.begin("marking train", 4)
        assert lines()[-1] == "marking train 0%"


def test_quick_work_and_hidden_work_say_nothing(capsys, monkeypatch):
    assert list(tracked(iter("abc"), "reading")) == ["a", "b", "c"]
    monkeypatch.setattr(module, "LINE_SECONDS", 0.001)
    with Progress("embedding", 10, show=False) as progress:
        progress.advance(3)
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_failed_work_is_not_said_to_be_done(lines):
    with pytest.raises(ValueError), Progress("reading", 2) as progress:
        progress.advance(1)
        assert lines()
        raise ValueError
    assert not any("100%" in line or "after" in line for line in lines())


def test_an_abandoned_iteration_ends_its_thread():
    before = threading.active_count()
    for item in tracked([1, 2, 3], "reading"):
        assert threading.active_count() == before + 1
        if item == 2:
            break
    time.sleep(0.2)
    assert threading.active_count() == before


def test_threads_may_share_one(lines):
    with Progress("hashing", 4000) as progress:
        threads = [threading.Thread(target=lambda: [progress.advance() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert progress._done == 4000


def test_clock():
    assert [clock(0), clock(61.9), clock(36_000 + 754)] == ["0:00:00", "0:01:01", "10:12:34"]


SCRIPT = """
import time
from bert_jax import progress
from bert_jax.reporting.answers import write
progress.BAR_SECONDS = 0.05

def rows():
    for number in range(600):
        yield ("a",), {"label": str(number)}
        time.sleep(0.001)

write(["text"], rows(), None, 1200, lambda count: count)
"""


PARTS = """
import time
from bert_jax import progress
progress.BAR_SECONDS = 0.05
with progress.Progress("annotating") as shown:
    time.sleep(0.4)
    shown.begin("counting words", 10)
    shown.advance(5)
    time.sleep(0.4)
"""


def in_a_terminal(stdout: int | None, columns: str, script: str = SCRIPT) -> str:
    """What a terminal of so many columns shows of ``script``; stdout is the terminal too where None is given."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": columns, "TTY_COMPATIBLE": "1"}
    stdout = theirs if stdout is None else stdout
    child = subprocess.Popen([sys.executable, "-c", script], stdin=theirs, stdout=stdout, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert child.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize("columns", ["80", "120"])
def test_answers_sent_to_a_file_arrive_there_while_the_terminal_has_the_bar(tmp_path, columns):
    """Rich redirects stdout to its console, which is stderr here: the file was empty."""
    with (tmp_path / "answers.tsv").open("wb") as file:
        shown = in_a_terminal(file.fileno(), columns)
    assert (tmp_path / "answers.tsv").read_text() == "text\tlabel\n" + "".join(f"a\t{n}\n" for n in range(600))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"predicting .*(21% 256|43% 512) rows +left", shown), shown
    assert ("━" in shown) == (columns == "120")
    assert "a\t" not in shown


def test_answers_in_the_terminal_itself():
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_a_terminal(None, "80"))
    assert all(re.search(rf"\ba\s+{number}\b", shown) for number in (0, 300, 599))


def test_parts_with_and_without_a_total_in_a_terminal():
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_a_terminal(None, "80", PARTS))
    assert re.search(r"annotating +0:00:00", shown) and re.search(r"counting words +50% +left", shown)


def test_answers_are_utf_8_whatever_the_locale():
    script = r"""
from bert_jax.reporting.answers import write
write(["text"], [(("na\u00efve \U0001f98b",), {"label": "\u2581a"})], None, None, lambda count: 0)
"""
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=plain, check=True)
    assert done.stdout.decode("utf-8") == "text\tlabel\nnaïve 🦋\t▁a\n"
