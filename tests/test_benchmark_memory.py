"""The table of what fits on a chip: its page names every cell, and a check finds what needs more memory than it did."""

import json
import types

import pytest

from benchmarks import memory
from bert_jax.errors import BertJaxError

GIB = 2**30
CELL = ("v5e:2x4", 8, 512, "bert-large", "full", "xla")


@pytest.fixture
def files(monkeypatch, tmp_path):
    """The results and the page of a trial, with two cells."""
    rows = [row for row in json.loads(memory.RESULTS.read_text()) if row["preset"] == "bert-large"]
    rows = [row for row in rows if memory.cell_of(row) in (CELL, ("v5e:1x1", 1, 512, "bert-large", "elementwise", "xla"))]
    assert len(rows) == 2
    monkeypatch.setattr(memory, "RESULTS", tmp_path / "memory.json")
    monkeypatch.setattr(memory, "PAGE", tmp_path / "memory.md")
    monkeypatch.setattr(memory.contest, "versions", lambda *names: dict.fromkeys(names, "9.9"))
    memory.RESULTS.write_text(json.dumps(rows))
    return rows


@pytest.fixture
def planned(monkeypatch):
    """Experiments that a check plans, by (topology, batch of the update); what the plan says is in ``peaks``."""
    peaks, seen = {}, {}

    def plan(experiment, chips):
        seen[chips] = experiment
        if isinstance(found := peaks[chips], Exception):
            raise found
        return types.SimpleNamespace(peak=found, fits=found is not None, refusal=None if found else "Ran out of memory")

    monkeypatch.setattr(memory, "target", lambda name: name)
    monkeypatch.setattr(memory, "plan", plan)
    return peaks, seen


def test_the_page_is_what_its_file_gives(monkeypatch, tmp_path):
    page, done = memory.PAGE.read_text(), json.loads(memory.RESULTS.read_text())
    monkeypatch.setattr(memory, "PAGE", tmp_path / "memory.md")
    memory.table(done)
    assert (tmp_path / "memory.md").read_text() == page


def test_the_page_names_all_cells_measured_or_not(files):
    memory.table([*files, files[0] | {"topology": "v6e:1x1", "peak": None, "error": "INTERNAL: no"}])
    page = memory.PAGE.read_text()
    table, seconds = (part.split("\n\n")[0] for part in page.split("|---|---|---|---|---|---|---|\n")[1:])
    assert table.count("\n") == seconds.count("\n") == len(list(memory.cells())) / 4 - 1
    assert "| v4:2x2x1, fsdp 4 | bert-large | 512 | not measured | not measured | not measured | not measured |" in table
    assert "| v5e:1x1 | bert-base, fused | 512 | not measured |" in table and "compiler fails" in table
    assert f"| {files[1]['compile_seconds']:.0f} |" in seconds
    assert f"2 of {len(list(memory.cells()))} cells are measured, with jax 0.10.2 libtpu (version not recorded)" in page
    assert "    INTERNAL: no" in page


def test_a_cell_where_the_compiler_failed_is_measured_again(files, monkeypatch):
    failed = dict(zip(memory.CELL, CELL, strict=True)) | {"peak": None, "limit": GIB, "error": "INTERNAL: no"}
    memory.RESULTS.write_text(json.dumps([files[0], failed]))
    monkeypatch.setattr(memory, "cells", lambda: [memory.cell_of(files[0]), CELL])
    monkeypatch.setattr(memory, "target", lambda name: types.SimpleNamespace(limit=GIB))
    asked = []

    def fit(experiment, chips, policies, report):
        asked.append((experiment.mesh.fsdp, policies))
        raise BertJaxError("INTERNAL: still not")

    monkeypatch.setattr(memory, "fit", fit)
    memory.measure(None)
    rows = json.loads(memory.RESULTS.read_text())
    assert asked == [(8, ("full",))] and len(rows) == 2
    assert rows[1]["error"] == "INTERNAL: still not" and (rows[1]["jax"], rows[1]["libtpu"]) == ("9.9", "9.9")
    assert memory.cell_of(rows[1]) == CELL


def test_a_check_compiles_what_was_measured(files, planned, capsys):
    peaks, seen = planned
    peaks |= {row["topology"]: int(1.009 * row["peak"]) for row in files}
    memory.check(None)
    said = capsys.readouterr().out
    row = next(row for row in files if memory.cell_of(row) == CELL)
    assert seen["v5e:2x4"].train.batch_size == 8 * row["per_device"] and seen["v5e:2x4"].mesh.fsdp == 8
    assert seen["v5e:2x4"].task.encoder.remat == "full" and seen["v5e:1x1"].task.encoder.remat == "elementwise"
    assert said.splitlines()[0] == "measured with jax 0.10.2 libtpu (version not recorded), now jax 9.9 libtpu 9.9"
    assert f"before {row['peak'] / GIB:.2f} GiB, now {peaks['v5e:2x4'] / GIB:.2f} GiB (+0.9%)" in said
    assert "0 of 2 batches need more memory" in said and "WORSE" not in said


@pytest.mark.parametrize("found", [1.011, None, BertJaxError("XLA could not compile the step")])
def test_a_check_fails_where_a_batch_needs_more(found, files, planned, capsys):
    peaks, _ = planned
    peaks |= {row["topology"]: row["peak"] for row in files}
    peaks["v5e:2x4"] = int(found * peaks["v5e:2x4"]) if isinstance(found, float) else found
    with pytest.raises(SystemExit) as ended:
        memory.check(None)
    said = capsys.readouterr().out
    assert ended.value.code == 1 and said.count("WORSE") == 1 and "1 of 2 batches need more memory" in said


def test_a_check_of_one_model_leaves_out_the_others(files, planned, capsys):
    memory.check("bert-base")
    assert "0 of 0 batches" in capsys.readouterr().out
