"""docs/results/performance.md has the figures of benchmarks/results, and says what is not recorded or was measured before."""

import copy
import json
import re

import performance
import pytest

from tests.conftest import ROOT

RUN = {
    "date": "2027-01-02", "command": "python benchmarks/step.py", "code": "abc", "load": [0.1, 1.5], "rounds": 2, "steps": 2,
    "environment": {"machine": "x86_64", "cores": 2, "python": "3.11.7", "numpy": "2.4.6"},
}


def figures(speed, ratio, **more):
    return {"sequences_per_second": speed, "first_seconds": 1.0, "ours_over_it": ratio, "turns": [1.0, 2.0]} | more


NEW = RUN | {"results": {"tiny": {
    "ours": figures(100.0, [1, 1, 1], versions={"jax": "0.10.2"}), "ours-no-dropout": figures(104.0, [0.96, 0.94, 0.99]),
    "torch-sdpa": figures(25.0, [4.0, 3.5, 4.5]), "torch-eager": figures(20.0, [5.0, 4.5, 5.5]),
    "torch-sdpa-bf16": figures(40.0, [2.5, 2.0, 3.0]),
}}}
OLD = {"environment": RUN["environment"], "note": "By hand.", "results": {"tiny": {
    "ours": figures(90.0, [1, 1, 1]), "keras": {"sequences_per_second": 80.0, "ours_over_it": [1.1, 1.0, 1.2]},
}}}


def test_the_page_is_what_the_results_make_of_it():
    page = performance.PAGE.read_text()
    assert performance.rendered(page) == page, "python benchmarks/performance.py writes it anew"


def test_figures_that_change_change_the_page(tmp_path):
    page = performance.PAGE.read_text()
    for name in {file for file, _ in performance.SECTIONS.values()}:
        (tmp_path / f"{name}.json").write_bytes((performance.RESULTS / f"{name}.json").read_bytes())
    assert performance.rendered(page, tmp_path) == page
    (tmp_path / "step_cpu.json").write_text(json.dumps({"runs": [NEW, OLD]}))
    changed = performance.rendered(page, tmp_path)
    assert changed != page and "25.0 sequences/s" in changed
    assert re.sub("<!-- step: begin.*step: end", "", page, flags=re.S) == re.sub("<!-- step: begin.*step: end", "", changed,
                                                                                flags=re.S)
    with pytest.raises(SystemExit, match="must have <!-- quick: begin --> and <!-- quick: end --> once"):
        performance.rendered(page.replace("<!-- quick: end -->", ""))
    with pytest.raises(SystemExit, match="once"):
        performance.rendered(page + page)


def test_a_contestant_that_was_absent_keeps_its_row_and_the_page_says_so():
    text = performance.training_step({"runs": [NEW, OLD]})
    assert "| transformers, sdpa | 25.0 sequences/s | 4.00 x (3.50 to 4.50) |" in text
    assert "| keras-hub on JAX, masked language model alone | 80.0 sequences/s (run 2) | 1.10 x (1.00 to 1.20) |" in text
    assert "| the last BERT of transformers in Flax | not measured yet |  |" in text
    assert "4.00 x for tiny (target 3.0)" in text  # not 5.00, of the slower one, nor 2.50, in bf16
    assert "Ours in float32 against the best of transformers in PyTorch in bf16: 2.50 x (2.00 to 3.00) for tiny." in text
    newest, oldest = text.split("\n\n")[-2:]
    assert newest == (
        "Measured: 2027-01-02, `python benchmarks/step.py`, code abc, load 0.1 before and 1.5 after; 2 rounds of 2 steps; "
        "x86_64, 2 cores, Python 3.11.7, numpy 2.4.6; ours: jax 0.10.2."
    )
    assert oldest == (
        "Run 2, in which ratios are to ours of that day (tiny: keras): date, command, code and load not recorded; x86_64, "
        "2 cores, Python 3.11.7, numpy 2.4.6; single turns not recorded. By hand."
    )


def test_what_dropout_takes_is_what_ours_is_faster_by_without_it():
    text = performance.training_step({"runs": [NEW]})
    assert "Dropout takes 4.0% of a step of tiny (1.0% to 6.0%) (target: below 5%)." in text
    without = copy.deepcopy(NEW)
    del without["results"]["tiny"]["ours-no-dropout"]
    assert "What dropout takes of a step is not measured yet" in performance.training_step({"runs": [without]})


def test_loader_rows_with_and_without_the_fields_of_today():
    row = {"examples": "nsp", "length": 128, "batch_size": 256, "sequences_per_second": 1000, "filled": 0.5}
    old = {"environment": RUN["environment"], "tokens": 10, "rows": [row, row | {"length": 512}]}
    text = performance.loader(old)
    assert "| nsp | 1,000 | 50.0% | not recorded | 1,000 | 50.0% | not recorded |" in text and "single turns not rec" in text
    assert performance.waiting(old) == "What a training loop waits for its batches is not measured yet."
    new = RUN | {"tokens": 10, "rows": [row | {"batch_ms_of_a_core": 1.5, "turns": [900, 1000, 1100]}]}
    assert "| nsp | 1,000 (900 to 1,100) | 50.0% | 1.5 |" in performance.loader(new)
    new["waiting"] = {"model": "tiny", "layers": 2, "width": 128, "batch_size": 32, "length": 128, "update_ms": 250.0,
                      "wait_ms": 0.125, "share": 0.0006, "waits_ms": [0.1, 0.15], "updates_ms": [250.0, 250.0]}
    assert "waits 0.12 ms for a batch (median; at most 0.15) of an update of 250 ms: 0.06% of" in performance.waiting(new)


def test_make_bench_measures_what_the_page_names_and_writes_it():
    recipe = re.search(r"^bench:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.M)[1]
    commands = [line.strip().replace("$(BIN)/", "") for line in recipe.splitlines()]
    assert commands[-1] == "python benchmarks/performance.py"
    page = performance.PAGE.read_text()
    assert all(command in page for command in commands[1:]), commands
