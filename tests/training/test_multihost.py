"""Several processes on this machine, joined by gloo: they train as one, stop as one, and survive the death of any."""

import json
import pathlib
import random
import re
import signal
import time

import kills
import numpy as np
import pytest

from bert_jax.checkpoint import Checkpoints
from bert_jax.training.record import read

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = ["train.steps=20", "train.log_every=1", "train.eval_every=10", "train.save_every=5"]
LATER = "import bert_jax.parallel.cluster as cluster; cluster.START_SECONDS = 4"


def begun(folder, store, name, processes, *settings, devices=1, preludes=None):
    """Processes that note their examples."""
    return kills.start(
        folder / name, store, processes, [*SETTINGS, *settings], config=ROOT / "tests" / "tiny_bert.py", devices=devices,
        notes=folder / f"{name}.notes", preludes=preludes,
    )


@pytest.fixture
def launch(tiny_store, tmp_path):
    """``launch("run", 2, "train.steps=8", devices=1, preludes={1: "code"})`` starts them."""
    running = []

    def start(name, processes, *settings, **options):
        running.extend(started := begun(tmp_path, tiny_store, name, processes, *settings, **options))
        return started

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(processes):
    results = kills.finish(processes)
    assert [status for status, _ in results] == [0] * len(processes), results
    return [errors for _, errors in results]


def losses(workdir):
    rows = [row for row in read(workdir / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, 21)), "every step once"
    assert [row["examples_seen"] for row in rows] == [16 * step for step in range(1, 21)]
    return [row["loss"] for row in rows]


def assert_continuous(notes, begins):
    """Attempt a began at example begins[a] and went on without a gap; together they trained on the first 320 examples."""
    seen = kills.examples_of(notes, begins)
    assert {position for position, _ in seen} == set(range(0, 320, 16))
    return seen


@pytest.fixture(scope="module")
def undisturbed(tiny_store, tmp_path_factory):
    """The folder of ``one``, a process with two devices, and ``two``, two with one each, and what the latter said. The clock of
    the second is an hour ahead."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ahead = "import time; now = time.time; time.time = lambda: now() + 3600"
    errors = finish(begun(folder, tiny_store, "two", 2, preludes={1: ahead}))
    finish(begun(folder, tiny_store, "one", 1, devices=2))
    return folder, errors


def test_two_processes_train_as_one(undisturbed):
    """One process on two devices, two on one each: the same mesh, so the same programs. Two numbers have one sum whoever adds
    them up, so even the bits should be the same; but gloo promises no order, which a last bit of the loss may show."""
    folder, errors = undisturbed
    one, two = losses(folder / "one"), losses(folder / "two")
    np.testing.assert_allclose(two, one, rtol=1e-6)
    evaluations = [[row["loss"] for row in read(folder / name / "metrics.jsonl") if row["kind"] == "eval"]
                   for name in ("one", "two")]
    np.testing.assert_allclose(*evaluations, rtol=1e-6)
    ours, theirs = (kills.final_state(folder / name, 20) for name in ("one", "two"))
    for name, bits in ours.items():  # Adam divides by sqrt(v): a last bit of a tiny gradient may become more
        np.testing.assert_allclose(*(np.frombuffer(b, np.float32) for b in (bits, theirs[name])), rtol=1e-4, atol=1e-6)
    assert_continuous(folder / "two.notes", [0])
    lines = [line for line in errors[1].splitlines() if line]
    assert len(lines) == 1 and "process 1 on" in lines[0] and "clock here is +3600 s" in lines[0], "progress is for process 0"
    assert "step 10 held out" in errors[0]


REFUSALS = {
    "experiment": (1, "from bert_jax import config; o = config.override\n"
                   "config.override = lambda e, a: o(e, [*a, 'train.batch_size=32'])",
                   "another experiment than process 0 on .*: train.batch_size is 16 there, 32 here"),
    "code": (1, "import bert_jax.parallel.cluster as c; c.code_hash = lambda: 'abc'",
             "another software than process 0 on .*: hash of bert_jax's code is [0-9a-f]{16} there, abc here"),
    "first": (0, "from bert_jax.errors import BertJaxError; from bert_jax.training import workdirs\n"
              "def refuse(*_): raise BertJaxError('the disk is gone')\nworkdirs.claim = refuse", "the disk is gone"),
    "data": (1, "from bert_jax.objectives.pretraining import PretrainingTask as P; i = P.identity\n"
             "P.identity = lambda s: i(s) | {'data': 'abc'}", "another data than process 0 on .*: data is .* there, abc here"),
    "devices": (1, "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'",
                "another machine than process 0 on .*: number of devices is 1 there, 2 here"),
    "workdir": (1, "from bert_jax.training import workdirs; c = workdirs.check_shared; workdirs.VISIBLE_SECONDS = 1\n"
                "workdirs.check_shared = lambda w, *a: c(w / 'elsewhere', *a)", "--workdir must be shared by all hosts"),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in ("experiment", "first"))) for c in REFUSALS]
)
def test_a_refusal_ends_all_with_its_reason(launch, tmp_path, case):
    index, prelude, words = REFUSALS[case]
    results = kills.finish(launch("run", 2, preludes={index: prelude}))
    assert [status for status, _ in results] == [1, 1], results
    errors = [[line for line in errors.splitlines() if "error" in line] for _, errors in results]
    assert [len(lines) for lines in errors] == [1, 1], results
    assert re.search(f"error: process {index} on .*: {words}", errors[index][0]), errors
    assert f"ended, because process {index} on" in errors[1 - index][0] and re.search(words, errors[1 - index][0]), errors
    assert not (tmp_path / "run" / "checkpoints").exists() or not Checkpoints(tmp_path / "run" / "checkpoints").steps()


@pytest.mark.slow
@pytest.mark.parametrize(("preludes", "words", "status"), [
    ({0: "sys.exit()", 1: LATER}, "process 1: no process 0 answers at localhost:.*check that it runs, and --coordinator", 75),
    ({0: LATER, 1: "sys.exit()"}, "process 0: not all 2 processes came", 75),
])
def test_a_process_that_waits_in_vain(launch, preludes, words, status):
    results = kills.finish(launch("run", 2, preludes=preludes), 60)
    code, errors = results[0 if preludes[0] == LATER else 1]
    lines = [line for line in errors.splitlines() if line]
    assert code == status and len(lines) == 1 and re.search(words, lines[0]), results


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(launch, tmp_path, numbers):
    """SIGTERM to the last process: all agree on a step and stop with 75. The others go on with the same examples; one device
    sums in another order than two, so losses agree to rounding."""
    before, after = numbers
    processes = launch("run", before, "train.steps=3000", "optimizer.warmup_steps=2")
    kills.wait_for_step(tmp_path / "run", 7, processes)
    processes[-1].send_signal(signal.SIGTERM)
    results = kills.finish(processes)
    assert [status for status, _ in results] == [75] * before, results
    (stopped,) = Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1:]
    assert f"asked to stop: saved step {stopped} of 3000; the same command continues" in results[0][1]
    end = stopped + 4
    errors = finish(launch("run", after, f"train.steps={end}"))
    assert f"continuing {tmp_path / 'run'} from step {stopped}" in errors[0]
    rows = [row for row in read(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert [(row["step"], row["examples_seen"]) for row in rows] == [(s, 16 * s) for s in range(1, end + 1)]
    seen = [position for path in (tmp_path / "run.notes").iterdir() for position in path.read_text().splitlines()]
    assert {int(line.split()[0]) for line in seen} == set(range(0, 16 * end, 16))
    folder = tmp_path / "run" / "checkpoints" / str(end)
    assert json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["data"] == {"examples": 16 * end}


@pytest.mark.slow
def test_a_run_that_goes_on_is_stopped_before_its_first_step(launch, tmp_path):
    """SIGTERM while checkpoints are read: jax's service then settles on a number below the step at which the run goes on."""
    finish(launch("run", 2, "train.steps=5"))
    told = ("import os; from bert_jax.training import workdirs; c = workdirs.claim\n"
            "workdirs.claim = lambda *a: (os.kill(os.getpid(), 15), c(*a))[1]")
    results = kills.finish(launch("run", 2, "train.steps=3000", "optimizer.warmup_steps=2", preludes={0: told}))
    assert [status for status, _ in results] == [75, 75], results
    (stopped,) = Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1:]
    assert 5 <= stopped < 1000 and f"asked to stop: saved step {stopped} of 3000" in results[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_a_killed_process_takes_the_others_with_it_and_nothing_is_lost(launch, undisturbed, tmp_path, count):
    """Also that four processes train as one: sums in another order, but other examples would show in the second digit."""
    whole = undisturbed[0] / "two"
    if count != 2:
        finish(launch("whole", count))
        whole = tmp_path / "whole"
        np.testing.assert_allclose(losses(whole), losses(undisturbed[0] / "one"), rtol=1e-4)

    chance = random.Random()
    processes = launch("broken", count)
    kills.wait_for_step(tmp_path / "broken", chance.randint(6, 14), processes)
    victim = chance.randrange(count)
    processes[victim].send_signal(signal.SIGKILL)
    began = time.monotonic()
    results = kills.finish(processes, 60)
    assert results[victim][0] == -signal.SIGKILL, results
    for index, (status, errors) in enumerate(results):
        if index != victim:
            last = errors.strip().splitlines()[-1]
            assert status == 75 and last.endswith("the same command continues") and "lost" in last, (victim, results)
    assert time.monotonic() - began < 60
    saved = max(Checkpoints(tmp_path / "broken" / "checkpoints").steps())
    finish(launch("broken", count))
    assert losses(tmp_path / "broken") == losses(whole)
    assert kills.final_state(tmp_path / "broken", 20) == kills.final_state(whole, 20)
    seen = assert_continuous(tmp_path / "broken.notes", [0, 16 * saved])
    assert seen == assert_continuous(whole.with_name(f"{whole.name}.notes"), [0])
