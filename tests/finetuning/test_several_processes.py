"""bert-jax finetune as several processes on this machine, joined by gloo: they leave what one process leaves."""

import csv
import json
import re
import signal

import kills
import numpy as np
import pytest

import bert_jax
from bert_jax.convert.reading import flatten
from tests.finetuning_runs import make

SETTINGS = ["train.log_every=1", "mesh.fsdp=2", "mesh.data=1"]  # half of each matrix is in each process


@pytest.fixture(scope="module")
def command(tiny_checkpoint, tmp_path_factory):
    """``command(kind, workdir, *words)``: those of a fine-tuning of that kind."""
    configs = {}

    def words(kind, workdir, *more):
        if kind not in configs:
            configs[kind] = make(kind, tmp_path_factory.mktemp(kind))
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        return ["finetune", "--config", configs[kind], "--checkpoint", str(tiny_checkpoint), "--workdir", str(workdir),
                *settings, *more]

    return words


@pytest.fixture
def launch():
    """``launch(command, processes, devices=1, preludes={1: "code"})`` starts them."""
    running = []

    def start(words, processes, **options):
        running.extend(started := kills.cluster(words, processes, **options))
        return started

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def left(folder):
    """What a fine-tuning left: scores by seed, the rows of predictions of its seeds, weights."""
    found = json.loads((folder / "scores.json").read_text())
    scores = {f"{name} {seed}": value for name, row in found["scores"].items() for seed, value in row["seeds"].items()}
    rows = [
        row for path in sorted(folder.glob("seed-*/predictions.tsv"))
        for row in csv.reader(path.open(), delimiter="\t", quoting=csv.QUOTE_NONE)
    ]
    return scores, rows, flatten(bert_jax.load(folder / "model").params)


def assert_same(ours, theirs):
    """To rounding: numbers are the same sums, in whichever order gloo adds them up."""
    scores, rows, weights = zip(ours, theirs, strict=True)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert len(rows[0]) == len(rows[1]) > 20
    for one, other in zip(*rows, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == b or float(a) == pytest.approx(float(b), abs=1e-3)
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():
        np.testing.assert_allclose(array, weights[1][name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [
    ("Classification", ["--set", "train.best=accuracy"]),
    pytest.param("QuestionAnswering", [], marks=pytest.mark.slow),  # long texts take several rows
    pytest.param("Choice", [], marks=pytest.mark.slow), pytest.param("Regression", [], marks=pytest.mark.slow),
])
def test_two_processes_leave_what_one_leaves(command, launch, tmp_path, kind, settings):
    results = kills.finish(launch(command(kind, tmp_path / "two", "--seeds", "2", "--export", "best", *settings), 2))
    assert [status for status, _ in results] == [0, 0], results
    assert results[1][1] == "", "what is said, process 0 says"
    assert "writing the report" in results[0][1]
    alone = command(kind, tmp_path / "one", "--seeds", "2", "--export", "best", *settings)
    ((status, errors),) = kills.finish(launch(alone, 1, devices=2))
    assert status == 0, errors
    assert_same(left(tmp_path / "two"), left(tmp_path / "one"))
    assert "2 x cpu" in (tmp_path / "two" / "report.html").read_text()


@pytest.mark.slow
def test_they_stop_together_and_one_process_goes_on(command, launch, tmp_path):
    words = command("Classification", tmp_path / "run", "--seeds", "2")
    long = ["--set", "train.steps=600", "--set", "train.save_every=600", "--set", "train.eval_every=600"]
    processes = launch([*words, *long], 2)
    kills.wait_for_step(tmp_path / "run" / "seed-0", 5, processes)
    processes[1].send_signal(signal.SIGTERM)
    results = kills.finish(processes)
    assert [status for status, _ in results] == [75, 75], results
    assert not (tmp_path / "run" / "seed-0" / "result.json").exists() and not (tmp_path / "run" / "seed-1").exists()
    ((status, errors),) = kills.finish(launch([*words, *long], 1, devices=2))
    assert status == 0 and re.search(rf"continuing {tmp_path}/run/seed-0 from step \d+ of 600", errors), errors
    assert (tmp_path / "run" / "seed-1" / "result.json").exists()


@pytest.mark.slow
def test_seeds_that_were_begun_together_are_for_one_process(command, launch, tmp_path):
    words = command("Classification", tmp_path / "run", "--seeds", "2")
    long = ["--set", "train.steps=600", "--set", "train.save_every=600", "--set", "train.eval_every=600"]
    processes = launch([*words, *long, "--at-once", "2"], 1, devices=2)
    kills.wait_for_step(tmp_path / "run" / "seeds-0-1", 5, processes)
    processes[0].send_signal(signal.SIGTERM)
    assert [status for status, _ in kills.finish(processes)] == [75]
    results = kills.finish(launch([*words, *long], 2))
    assert [status for status, _ in results] == [1, 1], results
    assert "seeds 0, 1 were begun together (--at-once), which one process has to finish" in results[0][1] + results[1][1]


REFUSALS = {
    "data": ("from bert_jax.tasks.base import FinetuningTask as T; i = T.identity\n"
             "T.identity = lambda s: i(s) | {'data': 'abc'}", [], 1,
             "another data than process 0 on .*: data is .* there, abc here"),
    "seeds": ("import bert_jax.finetuning as f; fine = f.finetune\n"
              "f.finetune = lambda *a, **k: fine(*a, **{**k, 'seeds': 3})", [], 1,
              "another fine-tuning than process 0 on .*: seeds is 1 there, 3 here"),
    "tokens": ("from bert_jax.tasks.batches import Encoded; Encoded.digest = lambda self: 'abc'", [], 1,
               "another tokenisation than process 0 on .*: training is .* there, abc here"),
    "at once": ("", ["--at-once", "2"], 0, "at_once is 2: one process trains seeds together, and there are 2"),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case != "at once")) for case in REFUSALS])
def test_refusals_leave_nothing(command, launch, tmp_path, case):
    prelude, words, index, said = REFUSALS[case]
    processes = launch(command("Classification", tmp_path / "run", "--seeds", "1", *words), 2, preludes={1: prelude})
    results = kills.finish(processes)
    assert [status for status, _ in results] == [1, 1], results
    assert re.search(f"error: process {index} on .*: {said}", "".join(errors for _, errors in results)), results
    assert not (tmp_path / "run").exists()
