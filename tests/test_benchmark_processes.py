"""Cells of a benchmark in processes of their own: what is there stays, a failure stops nothing, a deadline everything."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import provenance
import pytest

from benchmarks.processes import (
    CONTINUES,
    Stage,
    codes,
    environment,
    gathered,
    keep,
    publish,
    published,
    run,
    take_published,
)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
WRITE = """
import os, pathlib, sys, time
folder, cells, cores = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[4:]
for cell in cells:
    if cell.startswith("bad"):
        print("this cell", cell, "is bad")
        sys.exit(3)
    if cell.startswith("slow"):
        time.sleep(60)
    with open(folder / "order", "a") as file:
        file.write(cell + "\\n")
    (folder / f"{cell}.json").write_text('{"size": {"rows": [1, 2]}, "cores": "' + ",".join(cores) + '"}')
"""


SIZE = {"rows": (1, 2)}

SCRIPT = '''"""What a toy scores."""
import dataclasses, json, os, signal, sys, time
sys.path.insert(0, {benchmarks!r})
import processes

@dataclasses.dataclass(frozen=True)
class Size:
    rows: tuple[int, ...]

def stages(setting, arguments):
    (setting.directory / "begun").touch()
    cells = processes.chosen(arguments.only, ["a", "b", "slow"] if setting.size.rows == (1,) else ["a", "b"])
    return [processes.Stage(arguments.jobs, [[cell] for cell in cells])]

def measure(cell, setting):
    path = setting.directory / f"{{cell}}.json"
    row = {{"size": dataclasses.asdict(setting.size)}} | processes.found(path, dataclasses.asdict(setting.size))
    processes.keep(path, row | {{"half": True}})
    if cell == "slow":
        time.sleep(60)
    row |= {{"alone": setting.alone, "cores": sorted(os.sched_getaffinity(0)), "data": str(setting.data)}}
    processes.keep(path, row)

def report(directory):
    print(*processes.gathered(directory, SIZES))

SIZES = {{"large": Size((1, 2)), "test": Size((1,))}}
BENCHMARK = processes.Benchmark("toy", __doc__, SIZES, "toys", stages, measure, report,
                                lambda parser: parser.add_argument("--only"), lambda row: "alone" in row)
processes.main(BENCHMARK)
'''


@dataclasses.dataclass(frozen=True)
class Rows:
    rows: tuple


def command_in(directory):
    return lambda stage, group: [sys.executable, "-c", WRITE, str(directory), ",".join(group)]


def order(directory) -> list[str]:
    return (directory / "order").read_text().split()


def test_cells_run_in_order_stage_by_stage_and_those_that_are_there_stay(tmp_path, capsys):
    (tmp_path / "b.json").write_text('{"size": {"rows": [1, 2]}}')
    run([Stage(1, [["a", "b"], ["c"]]), Stage(2, [["d", "e"]])], command_in(tmp_path), tmp_path, SIZE)
    assert order(tmp_path) == ["a", "c", "d", "e"]
    said = capsys.readouterr().out
    assert "1 of 5 cells are there" in said and "5/5 d ... e done" in said
    run([Stage(1, [["a", "b"], ["c"]])], command_in(tmp_path), tmp_path, SIZE)  # nothing is left
    assert order(tmp_path) == ["a", "c", "d", "e"]


def test_what_was_measured_with_another_size_is_not_taken_for_this_one(tmp_path):
    for kept, said in (('{"size": {"rows": [1, 3]}}', r"rows \[1, 3\], not"), ('{"score": 1}', r"rows None, not \[1, 2\]")):
        (tmp_path / "b.json").write_text(kept)
        with pytest.raises(SystemExit, match=f"b.json is of another size .*{said}.*another --dir"):
            run([Stage(1, [["a"], ["b"]])], command_in(tmp_path), tmp_path, SIZE)
    assert not (tmp_path / "order").exists()  # nothing has begun


def test_what_is_published_goes_on_on_another_machine(tmp_path, capsys):
    sizes = {"test": Rows((1, 2)), "large": Rows((3,))}
    row = {"size": {"rows": [1, 2]}, "score": 0.5}
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    for cell, score in (("a", 0.5), ("b", 0.25)):
        (first / f"{cell}.json").write_text(json.dumps(row | {"score": score}))
    name, rows = gathered(first, sizes)
    assert name == "test" and rows == {"a": row, "b": row | {"score": 0.25}}
    results, page = published("question", name, first)
    results.parent.mkdir()
    results.write_text(json.dumps({"note": "By hand.", "rows": {"a": row, "c": row}}))
    with pytest.raises(SystemExit, match="has 1 cells that are not here, such as c: take them over first"):
        publish(results, page, rows, "# Question\n")
    results.write_text(json.dumps({"note": "By hand.", "rows": {"a": row}}))
    publish(results, page, rows, "# Question\n\n0.5\n\nMachine: this.\n")
    assert page.read_text() == (
        "# Question\n\n0.5\n\n**How these rows were made.** By hand.\n\nMachine: this.\nCode: not recorded.\n"
    )

    take_published(results, second, SIZE, lambda row: row["score"] < 0.5)
    assert [path.name for path in second.iterdir()] == ["b.json"]
    (second / "b.json").write_text("mine")
    take_published(results, second, SIZE)  # what is there stays
    assert json.loads((second / "a.json").read_text()) == row and (second / "b.json").read_text() == "mine"
    assert "1 cells taken" in capsys.readouterr().out
    take_published(results, tmp_path / "third", {"rows": (3,)})  # of another size
    assert not list((tmp_path / "third").iterdir())
    with pytest.raises(SystemExit, match="there is no .*question_large.json"):
        take_published(published("question", "large")[0], second, SIZE)
    others = {cell: row | {"score": 0.6} for cell in "ab"}
    publish(results, page, others, "# Question\n\nMachine: this.\n")  # none of those rows is left
    assert "By hand" not in page.read_text() + results.read_text()


def test_a_cell_says_which_code_measured_it(tmp_path, monkeypatch):
    now = ["one"]
    monkeypatch.setattr("benchmarks.processes.provenance.code", lambda: now[0])
    path = tmp_path / "a.json"
    keep(path, {"score": 0.5})
    assert json.loads(path.read_text()) == {"score": 0.5, "code": "one"}
    keep(path, json.loads(path.read_text()) | {"probe": 0.6})
    assert json.loads(path.read_text())["code"] == "one"
    now[0] = "two-dirty"
    keep(path, {"score": 0.5, "probe": 0.6, "glue": 0.7})  # it goes on
    assert json.loads(path.read_text())["code"] == "one, two-dirty"
    (tmp_path / "old.json").write_text('{"score": 0.5}')
    keep(tmp_path / "old.json", {"score": 0.5, "probe": 0.6})
    assert json.loads((tmp_path / "old.json").read_text())["code"] == "not recorded, two-dirty"

    rows = {"a": {"size": SIZE, "code": "one"}, "b": {"size": SIZE, "code": "one"}, "c": {"size": SIZE}}
    (tmp_path / "found.json").write_text(json.dumps({"rows": rows}))
    take_published(tmp_path / "found.json", tmp_path / "taken", SIZE)  # two-dirty did not measure them
    taken = {cell: json.loads((tmp_path / f"taken/{cell}.json").read_text()).get("code") for cell in rows}
    assert taken == {"a": "one", "b": "one", "c": None}
    assert codes(rows.values()) == "not recorded (1 rows); one (2 rows)" and codes([rows["a"]]) == "one"
    publish(tmp_path / "new.json", tmp_path / "new.md", rows, "0.5\n\nMachine: this.\n\nMachine: that.\n")
    assert (tmp_path / "new.md").read_text() == (
        "0.5\n\nMachine: this.\nCode: not recorded (1 rows); one (2 rows).\n\nMachine: that.\n"
    )


def test_results_of_one_known_size_make_a_page(tmp_path):
    sizes = {"large": Rows((3,))}
    with pytest.raises(SystemExit, match="holds no results"):
        gathered(tmp_path, sizes)
    (tmp_path / "a.json").write_text('{"size": {"rows": [4]}}')
    with pytest.raises(SystemExit, match="no longer has"):
        gathered(tmp_path, sizes)
    (tmp_path / "b.json").write_text('{"size": {"rows": [3]}}')
    with pytest.raises(SystemExit, match="of several sizes"):
        gathered(tmp_path, sizes)


def test_a_failure_stops_no_other_cell_and_is_reported(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run([Stage(2, [["a", "bad", "never"], ["b"], ["c"]])], command_in(tmp_path), tmp_path, SIZE)
    assert caught.value.code == 1
    assert sorted(order(tmp_path)) == ["a", "b", "c"]
    said = capsys.readouterr()
    assert "bad, never ended with status 3" in said.err and "this cell bad is bad" in said.out


def test_nothing_begins_after_the_deadline_and_what_runs_ends(tmp_path, capsys):
    began = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        run([Stage(1, [["a"], ["slow"], ["b"]]), Stage(1, [["c"]])], command_in(tmp_path), tmp_path, SIZE, deadline=2.0)
    assert caught.value.code == CONTINUES and time.monotonic() - began < 30
    assert order(tmp_path) == ["a"]
    assert "1 of 4 cells are there" in capsys.readouterr().err


def test_jobs_share_the_cores_unless_there_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {4, 5, 6})
    for gpu, expected in ((False, {"4,6", "5"}), (True, {""})):
        folder = tmp_path / str(gpu)
        folder.mkdir()
        monkeypatch.setattr("benchmarks.processes.has_gpu", lambda gpu=gpu: gpu)
        run([Stage(2, [["a"], ["b"], ["c"], ["d"]])], command_in(folder), folder, SIZE)
        assert {json.loads((folder / f"{cell}.json").read_text())["cores"] for cell in "abcd"} <= expected


def test_processes_find_the_packages_of_the_caller_and_multiply_in_float32(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr("benchmarks.processes.has_gpu", lambda: True)
    found = environment(tmp_path)
    assert found["PYTHONPATH"].endswith(":/elsewhere") and found["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
    assert found["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(SCRIPT.format(benchmarks=str(BENCHMARKS)))
    return lambda *words: [sys.executable, str(path), *words, "--dir", "runs"]


def test_the_command_line_of_a_benchmark(script, tmp_path):
    def said(*words, status=0):
        done = subprocess.run(script(*words), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    assert "What a toy scores." in subprocess.run(script()[:2] + ["--help"], capture_output=True, text=True).stdout
    assert "c: not there; there are a, b" in said("run", "--only", "a,c", status=1)
    said("run", "--only", "a", "--data", "here")
    row = json.loads((tmp_path / "runs/a.json").read_text())
    assert row.pop("code") == provenance.code()
    here = str(tmp_path / "here")
    assert row == {"size": {"rows": [1, 2]}, "alone": True, "cores": sorted(os.sched_getaffinity(0)), "data": here}
    assert "2/2 b done" in said("run", "--jobs", "2")  # a is there
    cores = [json.loads((tmp_path / f"runs/{cell}.json").read_text())["cores"] for cell in "ab"]
    assert cores[1] in (cores[0][::2], cores[0][1::2])  # of whichever job took it
    assert "'alone': False" in said("report") and "large" in said("report")
    assert "nothing is published of this size" in said("run", "--published", status=1)
    assert "another --dir" in said("run", "--size", "test", status=1)


def test_asked_to_stop_it_stops_what_it_began_and_goes_on_with_what_is_not_whole(script, tmp_path):
    process = subprocess.Popen(script("run", "--size", "test"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    half = tmp_path / "runs/slow.json"
    while not half.exists():
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == CONTINUES and "stopped, 2 of 3 cells are there: the same command continues" in said
    assert json.loads(half.read_text())["half"]
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "toy.py")], capture_output=True, text=True).stdout
    assert not left
