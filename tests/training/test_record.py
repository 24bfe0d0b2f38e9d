"""The record of a run: what is drawn when, and what starting it does not cost."""

import errno
import io
import json
import pathlib
import struct
import subprocess
import sys
import time

import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from bert_jax.reporting import plots
from bert_jax.training import record


def test_starting_a_run_imports_neither_torch_nor_scipy_stats(tmp_path):
    """tensorboardX would import torch; its writer works without, and torch can be imported afterwards."""
    pytest.importorskip("torch")
    code = (
        "import sys, pathlib, bert_jax.training.pretrain\n"
        "from bert_jax.training.record import Record\n"
        "kept = Record(pathlib.Path(sys.argv[1]), 2, 0)\n"
        "kept.write(1, 'train', {'loss': 1.0})\n"
        "kept.close()\n"
        "print({'torch', 'scipy.stats'} & set(sys.modules), 'torch' in sys.modules)\n"
        "import torch; print(torch.ones(2).sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set() False", "2.0"]
    assert b"train/loss" in next((tmp_path / "tensorboard").glob("events.*")).read_bytes()


def test_drawing_leaves_the_caller_s_pictures_alone(tmp_path):
    """A notebook showed no picture of its own any more: pyplot's backend had been replaced."""
    import matplotlib
    from matplotlib import pyplot

    before = matplotlib.get_backend()
    pyplot.switch_backend("svg")
    try:
        figures = pyplot.get_fignums()
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "time": 1.0, "mlm_loss": 2.0}\n')
        record.draw(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
        plots.draw_curves({0: record.read(tmp_path / "metrics.jsonl")}, ["loss"], tmp_path / "seeds.png")
        assert matplotlib.get_backend() == "svg" and pyplot.get_fignums() == figures
        assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("curves.png", "seeds.png"))
    finally:
        pyplot.switch_backend(before)


def test_curves_are_drawn_now_and_then_and_in_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(record, "draw", lambda metrics, picture: drawn.append(len(record.read(metrics))))
    kept = record.Record(tmp_path, 9, 0)
    kept.write(1, "eval", {"mlm_loss": 2.0})
    assert drawn == [], "a run of seconds is drawn once, when it ends"
    monkeypatch.setattr(record, "DRAW_SECONDS", -1.0)
    kept.write(2, "train", {"mlm_loss": 2.0})
    kept.write(2, "eval", {"mlm_loss": 2.0})
    assert drawn == [3]
    kept.close()
    assert drawn == [3], "nothing has come since"

    kept = record.Record(tmp_path, 9, 2)
    kept.write(3, "train", {"mlm_loss": 2.0})
    kept.close()
    assert drawn == [3, 4]


def test_long_records_are_drawn_less_often(tmp_path, monkeypatch):
    """The device waits meanwhile: at most a hundredth of the time goes into pictures."""
    now, drawn = [0.0], []

    def draw(metrics, picture):
        drawn.append(now[0])
        now[0] += 3.0

    monkeypatch.setattr(record, "draw", draw)
    monkeypatch.setattr(record.time, "monotonic", lambda: now[0])
    kept = record.Record(tmp_path, 1_000, 0)
    for step in range(1, 101):
        now[0] += 5.0
        kept.write(step, "eval", {"mlm_loss": 2.0})
    assert drawn == [15.0, 323.0]  # 11 s after the beginning, 300 after the end of the first


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_what_is_beyond_the_checkpoint_is_cut_off_from_the_end(tmp_path, monkeypatch, block):
    monkeypatch.setattr(record, "BLOCK", block)
    kinds = ("train", "eval")
    rows = [{"step": step, "kind": kind, "time": 2.0 * step, "loss": "é"} for step in (2, 4, 6, 8) for kind in kinds]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path = tmp_path / "metrics.jsonl"
    for cut in ("", '{"step": 8, "ki', '{"step": 10, "loss": "\u00e9'):
        for start in range(10):
            path.write_bytes(("".join(lines) + cut).encode()[: None if not cut.endswith("é") else -1])
            record.Record(tmp_path, 20, start).close()
            kept = [row for row in rows if row["step"] <= start]
            assert record.read(path) == kept
            again = record.Record(tmp_path, 20, start)
            assert again.seconds == pytest.approx(max((row["time"] for row in kept), default=0.0), abs=1.0)
            again.write(20, "train", {"loss": 1.0})
            again.close()
            assert [row["step"] for row in record.read(path)] == [*(row["step"] for row in kept), 20]
    path.write_text("".join(lines)[:-1])  # whole, but for the end of the line
    record.Record(tmp_path, 20, 8).close()
    assert path.read_text() == "".join(lines)


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch, caplog):
    """A mounted bucket or a full disk fails for a moment: the rows come later, and half of one is not left."""
    kept = record.Record(tmp_path, 9, 0)
    kept.write(1, "train", {"mlm_loss": 2.0})
    whole = pathlib.Path.open

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:7])
            self.file.flush()
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", lambda path, mode: Half(whole(path, mode)))
        patch.setattr(record, "draw", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        patch.setattr(record, "DRAW_SECONDS", -1.0)
        kept.write(2, "train", {"mlm_loss": 3.0})
        kept.write(2, "eval", {"mlm_loss": 4.0})
        kept.write(3, "train", {"mlm_loss": 5.0})
    assert [line.split(": ")[1] for line in caplog.messages] == [
        "a row could not be written (Input/output error)", "a row could not be written (Input/output error)",
        "a picture could not be written (No space left on device)", "a row could not be written (Input/output error)",
    ]
    kept.close()
    rows = record.read(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["mlm_loss"]) for row in rows] == [(1, 2), (2, 3), (2, 4), (3, 5)]


def test_events_that_cannot_be_written_hold_up_no_run(tmp_path, monkeypatch, caplog):
    kept = record.Record(tmp_path, 99, 0)

    def full(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept._board._writer, "write_event", full)
        for step in range(1, 40):
            kept.write(step, "train", {"mlm_loss": 2.0, "nsp_loss": 1.0})
    kept.write(40, "train", {"mlm_loss": 3.0})
    kept.close()
    assert len(record.read(tmp_path / "metrics.jsonl")) == 40
    assert len(caplog.messages) == 39 and "an event of TensorBoard could not be written (No space left" in caplog.text


def test_events_are_those_of_the_metrics(tmp_path):
    """Across a restart that went back, from where TensorBoard leaves out what was written of later steps."""
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        kept = record.Record(tmp_path, 9, start)
        for step in steps:
            kept.write(step, "train", {"mlm_loss": 10.0 * (start + 1) + step})
        kept.close()
    found = [
        [(event.step, value.simple_value) for value in event.summary.value] or event.file_version or
        (event.step, event_pb2.SessionLog.SessionStatus.Name(event.session_log.status))
        for path in sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.suffix) for event in events(path)
    ]
    assert found == ["brain.Event:2", [(1, 11.0)], [(2, 12.0)], [(3, 13.0)],
                     "brain.Event:2", (3, "START"), [(3, 33.0)], [(4, 34.0)]]


def events(path: pathlib.Path):
    """Of a file of records: length, checksum, content, checksum."""
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


STATE = "classifier acc 0.750 loss 0.685 3,369 tokens/s"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_steps_and_time_left_are_whole_however_narrow_the_terminal_is(width):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    progress = record.progress_bar(console)
    bar = progress.add_task("training", total=120_000, state="compiling")
    for step in (1, 60_000):
        progress.update(bar, completed=step, state=STATE)
    with console.capture() as captured:
        console.print(progress.get_renderable())
    line = captured.get().rstrip("\n")
    assert "\n" not in line and len(line) <= width
    assert "60000/120000" in line and "classifier acc 0.750 loss" in line and " left " in line and line.count(":") == 4, line
    assert (STATE in line) == (width > 80) and ("\u2501" in line) == (width >= record.WIDE)


def test_time_left_begins_after_the_step_that_compiles(tmp_path, monkeypatch, capfd):
    now = [100.0]
    monkeypatch.setattr(record.time, "monotonic", lambda: now[0])
    kept = record.Record(tmp_path, 101, 0)
    for step, seconds in ((1, 60.0), (2, 20.0), (3, 20.0)):
        now[0] += seconds
        kept.show(step, "loss 1.0")
    kept.close()
    assert capfd.readouterr().err.splitlines() == [
        "step 0/101 compiling", "step 1/101 loss 1.0", "step 2/101 loss 1.0 left 0:33:00", "step 3/101 loss 1.0 left 0:32:40",
    ]


@pytest.mark.slow
def test_events_of_a_run_that_began_again_begin_anew(tmp_path):
    """Killed before its first checkpoint: of the first attempt TensorBoard shows nothing."""
    for _ in range(2):
        kept = record.Record(tmp_path, 9, 0)
        kept.write(1, "train", {"mlm_loss": 1.0})
        kept.close()
        time.sleep(1.1)  # the names of files have seconds
    paths = sorted((tmp_path / "tensorboard").iterdir())
    sessions = [[event.step for event in events(path) if event.HasField("session_log")] for path in paths]
    assert sessions == [[], [1]]
