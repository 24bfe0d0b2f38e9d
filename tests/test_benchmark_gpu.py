"""The benchmark for GPUs, as far as a processor goes: what it begins, keeps and leaves out, what it imports, its page."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest

from benchmarks import gpu
from tests.conftest import ROOT

# What bert_jax depends on and no image has that is made for jax, flax, optax, torch and transformers.
MISSING = ("array_record", "google_crc32c", "grain", "matplotlib", "nupunkt", "sentencepiece", "tensorboardX",
           "tensorflow_datasets")
CHANGES = {"remat": "masks"}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a contestant takes them."""
    now = [0.0]
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def contest(monkeypatch, tmp_path, clock):
    """Runs contestants that answer at once with what ``answers`` says of them, after ``seconds``."""
    file, begun = tmp_path / "gpu.json", []

    def contest(seconds, takes=100, answers=None, names=("base-128", "xxlarge-512"), device="A"):
        def process_of(command, left):
            if file.exists():  # what was before is in the file already
                assert set(begun) <= set(json.loads(file.read_text())["results"])
            contestant = command[command.index("--one") + 1]
            begun.append(contestant)
            clock[0] += min(takes, left)
            if takes > left:
                return {"error": "killed", "killed": True}
            good = {"sequences_per_second": 1.0, "seconds": 1.0, "first_seconds": 1.0, "peak_gib": 1.0, "device": device}
            return (answers or {}).get(contestant, good)

        monkeypatch.setattr(gpu, "process_of", process_of)
        begun.clear()
        left_out = gpu.run(file, list(names), False, CHANGES, seconds)
        return list(begun), left_out, json.loads(file.read_text())["results"]

    contest.file = file
    return contest


def test_both_sides_try_the_same_batches_and_the_first_ones_come_first():
    found = gpu.contestants(list(gpu.CASES))
    assert found[:4] == ["ours base-128 512", "torch base-128 512", "ours large-512 64", "torch large-512 64"]
    assert found.index("ours xxlarge-512 16") < found.index("ours base-128 256")
    mine, others = ([one.split(" ", 1)[1] for one in found if one.startswith(side)] for side in gpu.SIDES)
    assert [one for one in mine if not one.startswith(("xxlarge", "base-128-no"))] == others
    assert len(found) == len(set(found)) == 14


def test_what_no_longer_fits_is_left_out_and_the_same_command_continues(contest):
    begun, left_out, results = contest(250)
    assert begun == ["ours base-128 512", "torch base-128 512"] == list(results)
    assert left_out == ["ours xxlarge-512 16", "ours base-128 256", "torch base-128 256"]
    assert all(row["took"] == 100 and row["date"] and row["code"] for row in results.values())
    begun, left_out, results = contest(1000)
    assert begun == ["ours xxlarge-512 16", "ours base-128 256", "torch base-128 256"] and not left_out and len(results) == 5
    assert contest(1000)[:2] == ([], [])


def test_what_runs_over_is_killed_and_measured_again(contest):
    begun, left_out, results = contest(160, takes=200)
    assert begun == ["ours base-128 512"] and left_out[0] == begun[0] and len(left_out) == 5
    assert list(results) == begun
    assert (results[begun[0]]["error"], results[begun[0]]["took"]) == ("killed", 160)
    assert contest(1000)[0][-1] == "ours base-128 512"


def test_errors_are_tried_again_after_all_else(contest):
    error = {"error": "out of memory"}
    _, left_out, results = contest(250, answers={"ours base-128 512": error})
    assert results["ours base-128 512"]["error"] == "out of memory" and "ours base-128 512" not in left_out
    begun, _, results = contest(1000)
    assert begun[0] == "ours xxlarge-512 16" and begun[-1] == "ours base-128 512"
    assert not any("error" in row for row in results.values())


def test_two_devices_do_not_meet_in_one_file(contest):
    contest(250)
    with pytest.raises(SystemExit, match="was measured on A, this is B: name another file"):
        contest(1000, device="B")


def test_another_device_is_refused_before_anything_is_measured(contest, monkeypatch):
    contest(250)
    monkeypatch.setattr(gpu, "device_here", lambda: "B")
    monkeypatch.setattr(gpu, "process_of", None)
    with pytest.raises(SystemExit, match="was measured on A, this is B: name another file"):
        gpu.run(contest.file, ["base-128"], False, CHANGES, 1000)


def test_dropout_is_left_out_where_the_case_says_so():
    rates = [gpu.task_of(name, {}).config.encoder.dropout for name in ("base-128", "base-128-no-dropout")]
    assert rates == [0.1, 0.0]


@pytest.mark.slow
def test_a_process_is_killed_with_what_it_has_begun(tmp_path):
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
        time.sleep(60)
    """
    began = time.monotonic()
    found = gpu.process_of([sys.executable, "-c", textwrap.dedent(code)], 5)
    assert found["killed"] and "killed after 5 s" in found["error"] and time.monotonic() - began < 30
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        status = f"/proc/{child}/status"
        if not os.path.exists(status) or "State:\tZ" in open(status).read():
            return
        time.sleep(0.1)
    pytest.fail("a child lives on")


def test_an_answer_is_the_last_line_and_a_crash_an_error():
    assert gpu.process_of([sys.executable, "-c", "print('a library'); print('{\"seconds\": 1}')"], 60) == {"seconds": 1}
    assert "no such thing" in gpu.process_of([sys.executable, "-c", "raise SystemExit('no such thing')"], 60)["error"]


def test_the_command_says_what_it_left_out(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", "gpu.json", "--cases", "test", "--seconds", "1"]
    done = subprocess.run([*command[:4], str(tmp_path / "gpu.json"), *command[5:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == gpu.CONTINUES
    assert done.stdout.strip() == "left out, the same command continues: ours test 8, torch test 8"


@pytest.mark.slow
def test_our_side_needs_nothing_that_an_image_lacks():
    code = f"""
        import json, sys
        for name in {MISSING}:
            sys.modules[name] = None
        from benchmarks import gpu
        gpu.measure = lambda run, rows: {{"loss": run(1)}}
        print(json.dumps(gpu.ours("test", 8, {{"vocab_multiple": 128}}, False)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 10 < found["loss"] < 12 and found["useful_flops"] > 0


def test_the_page_is_what_its_file_gives(monkeypatch, tmp_path, capsys):
    page = gpu.PAGE.read_text()
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "gpu.md")
    gpu.render(sorted(gpu.RESULTS.parent.glob("gpu_*.json")))
    assert (tmp_path / "gpu.md").read_text() == page
    assert json.loads(gpu.RESULTS.read_text())["note"] in page


def test_the_page_names_what_failed_and_takes_the_best_batch(monkeypatch, tmp_path, capsys):
    record = json.loads(gpu.RESULTS.read_text())
    results = record["results"]
    results["ours base-128 256"] = results["ours base-128 512"] | {
        "sequences_per_second": 5000.0, "date": "2027-01-02", "code": "abc", "changes": {"remat": "elementwise"}}
    results["torch base-128 256"] = {"error": "OutOfMemoryError: too large", "took": 60}
    first, second = tmp_path / "gpu_a.json", tmp_path / "gpu_b.json"
    first.write_text(json.dumps(record))
    faster = results["ours base-128 512"] | {"sequences_per_second": 6500.0}
    whole = {"ours base-128 512": faster, "torch base-128 512": results["torch base-128 512"],
             "ours base-128-no-dropout 512": faster | {"sequences_per_second": 6700.0}}
    second.write_text(json.dumps(record | {"results": whole}))
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "gpu.md")
    gpu.render([first, second])
    page = (tmp_path / "gpu.md").read_text()
    assert "| base-128 | 256 | 5,000 | 6,300 |" in page and "| 512 | 3,401 | 1.47 x | 1.3 x |" in page
    assert "failed: torch base-128 256 (OutOfMemoryError: too large); not measured: ours large-512 64" in page
    assert "Targets reached: base-128 1.47 of 1.3 x PyTorch. **Missed: base-128 5,000 of 6,300 sequences/s.**" in page
    assert "What dropout takes of a step is not measured on this device." in page
    assert 'Ours: `{"remat": "elementwise"}`.' in page, "what the row was measured with"
    assert "ours base-128 256 (2027-01-02, code abc)" in page and "**How the rows without a date were made.**" in page
    assert "Targets reached: base-128 6,500 of 6,300 sequences/s; base-128 1.91 of 1.3 x PyTorch. **Missed: none.**" in page
    assert "Dropout takes 3.0% of a step of base-128 (target: below 5%)." in page
    assert "Attention alone" not in page, "these devices have no figures of it"


@pytest.mark.parametrize(("device", "peak"), [
    ("NVIDIA H100 80GB HBM3", "33.2%"), ("NVIDIA H100 PCIe", "43.5%"), ("NVIDIA H200", "33.2%"), ("NVIDIA L4", "-"),
])
def test_a_share_is_of_the_device_s_own_peak(monkeypatch, tmp_path, capsys, device, peak):
    record = json.loads(gpu.RESULTS.read_text())
    for row in record["results"].values():
        row["device"] = device
    (tmp_path / "gpu_x.json").write_text(json.dumps(record))
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "gpu.md")
    gpu.render([tmp_path / "gpu_x.json"])
    page = (tmp_path / "gpu.md").read_text()
    assert f"## {device}\n" in page and f"| 108.7 | {peak} |" in page
    assert ("Targets reached" in page) == (device == "NVIDIA H100 80GB HBM3"), "they are an H100's"
