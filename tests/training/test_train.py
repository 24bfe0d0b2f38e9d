"""The loop on a tiny store: it learns, records every step once, keeps what it should, refuses what does not fit."""

import dataclasses
import json
import math
import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

import bert_jax
from bert_jax import config, tokenizers
from bert_jax.checkpoint import Checkpoints
from bert_jax.data.loader import heldout_batches
from bert_jax.data.prepare import prepare
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.files import locked
from bert_jax.objectives import Capitalisation
from bert_jax.objectives.pretraining import PretrainingTask
from bert_jax.parallel.cluster import Cluster
from bert_jax.tasks import Classification
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.tables import Table
from bert_jax.tokenizers.wordpiece import WordPieceTokenizer
from bert_jax.training import train as train_module
from bert_jax.training import workdirs
from bert_jax.training.experiment import Experiment
from bert_jax.training.optimizer import AdamW
from bert_jax.training.pretrain import evaluate_checkpoint, pretrain
from bert_jax.training.record import read


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_store, tiny_experiment):
    """A run of 12 steps that is over; tests copy it before they change it."""
    from bert_jax.parallel.mesh import make_mesh

    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        result = pretrain(tiny_experiment("bert"), tiny_store, workdir)
    return workdir, result


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def rows_of(workdir, kind):
    return [row for row in read(workdir / "metrics.jsonl") if row["kind"] == kind]


@pytest.mark.parametrize(("family", "rate"), [("bert", 0.01), ("albert", 0.1)])  # LAMB's rate is a share of each norm
def test_a_run_learns(run_tiny, tmp_path, family, rate):
    result = run_tiny(tmp_path / "run", "train.steps=60", "train.eval_every=60", "train.save_every=60", "train.log_every=5",
                      f"optimizer.learning_rate={rate}", family=family)
    losses = [row["mlm_loss"] for row in rows_of(tmp_path / "run", "train")]
    assert result.finished and result.step == 60
    assert losses[0] > math.log(96) - 1 and np.mean(losses[-3:]) < 2.75, losses  # 12 words are used: their log is 2.48
    assert result.evaluation["mlm_loss"] < 2.75 and result.evaluation["mlm_accuracy"] > 0.07


def test_every_record_once_and_complete(finished):
    workdir, result = finished
    assert [row["step"] for row in rows_of(workdir, "train")] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows_of(workdir, "eval")] == [6, 12]
    for row in rows_of(workdir, "train"):
        assert {"loss", "grad_norm", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "learning_rate"} <= set(row)
        assert row["loss"] == pytest.approx(row["mlm_loss"] + row["nsp_loss"], rel=0.02)
    rates = [row["learning_rate"] for row in rows_of(workdir, "train")]  # of the last update in each line
    np.testing.assert_allclose(rates, [0.0025, 0.0045, 0.0035, 0.0025, 0.0015, 0.0005], rtol=1e-5)
    times = [row["time"] for row in read(workdir / "metrics.jsonl")]
    assert times == sorted(times)
    assert rows_of(workdir, "eval")[-1]["mlm_loss"] == result.evaluation["mlm_loss"]
    assert (workdir / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((workdir / "tensorboard").glob("events.*"))[0].stat().st_size > 200
    assert json.loads((workdir / "experiment.json").read_text())["train"]["steps"] == 12


def test_metrics_of_a_step_are_those_of_its_update(run_tiny, tmp_path, tiny_store, tiny_experiment):
    """Read one step late, but filed under the right step: a run that records every step agrees with one update alone."""
    run_tiny(tmp_path / "run", "train.log_every=1", "train.steps=5", "optimizer.warmup_steps=1", "train.eval_every=100",
             "train.save_every=100")
    rows = rows_of(tmp_path / "run", "train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    run_tiny(tmp_path / "other", "train.log_every=5", "train.steps=5", "optimizer.warmup_steps=1", "train.eval_every=100",
             "train.save_every=100")
    (row,) = rows_of(tmp_path / "other", "train")
    assert row["nsp_loss"] == pytest.approx(np.mean([r["nsp_loss"] for r in rows]), rel=1e-5)
    assert row["grad_norm"] == pytest.approx(np.mean([r["grad_norm"] for r in rows]), rel=1e-5)
    assert len({r["grad_norm"] for r in rows}) == 5


def test_the_loop_waits_for_no_update_that_runs(run_tiny, tmp_path, monkeypatch):
    """Only the metrics of the update before the one that was dispatched last are read, and nothing else of the device."""
    made, events, functions, real = {}, [], train_module._functions, ArrayImpl._value

    def logged(*words):
        init, abstract, step, eval_step = functions(*words)

        def dispatch(state, batch):
            state, metrics = step(state, batch)
            made.update({id(leaf): (len(events), leaf) for leaf in jax.tree.leaves((metrics, state))})
            events.append([])
            return state, metrics

        return init, abstract, dispatch, eval_step

    def read(array):
        if events:  # the loop has begun
            events[-1].append(made.get(id(array), (None,))[0])
        return real.fget(array)

    monkeypatch.setattr(train_module, "_functions", logged)
    monkeypatch.setattr(ArrayImpl, "_value", property(read))
    run_tiny(tmp_path / "run", "train.log_every=1", "train.steps=6", "train.eval_every=100", "train.save_every=100")
    assert [set(numbers) for numbers in events[:-1]] == [set(), {0}, {1}, {2}, {3}]


def test_retention_keeps_the_newest(run_tiny, tmp_path, finished):
    assert Checkpoints(finished[0] / "checkpoints").steps() == [4, 8, 12]
    run_tiny(tmp_path / "run", "train.steps=5", "train.save_every=1", "train.keep=2", "train.eval_every=100")
    assert sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == [4, 5]


def test_started_again_when_over(run_tiny, copy, finished, capfd):
    before = (copy / "metrics.jsonl").read_text()
    result = run_tiny(copy)
    assert f"step 12 held out: loss {result.evaluation['loss']:.3f} mlm acc" in capfd.readouterr().err
    assert result.finished and result.step == 12 and result.evaluation == finished[1].evaluation
    assert (copy / "metrics.jsonl").read_text() == before


def test_fewer_steps_than_were_trained(run_tiny, copy):
    """It went on without end: no step was the last one."""
    with pytest.raises(BertJaxError, match="has been trained for 12 steps, train.steps is 6: give at least as many"):
        run_tiny(copy, "train.steps=6")
    assert run_tiny(copy).finished


def test_stop_request_in_this_process(run_tiny, tmp_path, capfd):
    """SIGTERM after the first record: a checkpoint of the step at hand, not finished, signal handlers given back."""
    before = signal.getsignal(signal.SIGTERM)
    path = tmp_path / "run" / "metrics.jsonl"
    done = threading.Event()

    def stop():
        while not done.is_set():
            if path.exists() and path.stat().st_size:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            done.wait(0.001)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        result = run_tiny(tmp_path / "run", "train.steps=5000", "train.log_every=1", "train.save_every=5000")
    finally:
        done.set()
        thread.join()
    assert not result.finished and 1 <= result.step < 5000
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [result.step]
    assert [row["step"] for row in rows_of(tmp_path / "run", "train")] == list(range(1, result.step + 1))
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"saved step {result.step} of 5000; the same command continues" in capfd.readouterr().err


@pytest.mark.slow
def test_loss_that_is_not_finite(run_tiny, tmp_path):
    workdir = tmp_path / "run"
    settings = ["optimizer.warmup_steps=0", "train.save_every=2", "train.eval_every=100", "train.steps=8"]
    run_tiny(workdir, *settings, "train.steps=2")
    with pytest.raises(BertJaxError, match=r"loss .* at step \d+: not finite.*checkpoint 2 in .*learning_rate") as error:
        run_tiny(workdir, *settings, "optimizer.learning_rate=1e30", "optimizer.clip_norm=1e30")
    assert "\n" not in str(error.value) and "finetune begins in another --workdir" in str(error.value)
    assert Checkpoints(workdir / "checkpoints").steps() == [2]
    params = bert_jax.load(str(workdir)).params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert run_tiny(workdir, *settings).finished, "with the old learning rate it goes on"


def test_another_model_in_the_work_directory(run_tiny, copy):
    before = (copy / "experiment.json").read_text()
    with pytest.raises(BertJaxError, match="holds another experiment: task.encoder.layers was 2, is now 3; choose another"):
        run_tiny(copy, "task.encoder.layers=3")
    with pytest.raises(BertJaxError, match="task.objectives"):
        run_tiny(copy, "task.objectives.0.rate=0.2")
    assert (copy / "experiment.json").read_text() == before


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("assignment", ["task.encoder.layers=3", "train.steps=6", "optimizer.freeze_encoder=true"])
def test_a_refusal_changes_nothing(run_tiny, copy, assignment):
    """Not even the experiment that the work directory says it holds."""
    before = contents(copy)
    with pytest.raises(BertJaxError):
        run_tiny(copy, assignment)
    assert contents(copy) == before


def test_a_refusal_leaves_nothing(run_tiny, tmp_path, tiny_store, tiny_experiment, one_device):
    """The corrected command finds no work directory of another experiment."""
    experiment = tiny_experiment("bert")
    asking = dataclasses.replace(experiment.task, objectives=(*experiment.task.objectives, Capitalisation()))
    with pytest.raises(BertJaxError, match="the store has no channel 'case'.*prepare the corpus with --case"):
        pretrain(dataclasses.replace(experiment, task=asking), tiny_store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_was_claimed_and_never_trained_is_free(run_tiny, tmp_path, other_store, caplog):
    """A run that died before its first record: another experiment, on other data, takes its place. One that has records, or
    the best parameters so far, keeps it."""
    workdir = tmp_path / "run"

    def die(*_):
        raise RuntimeError("out of memory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Record", die)
        with pytest.raises(RuntimeError):
            run_tiny(workdir, "task.encoder.layers=1", store=other_store)
    assert (workdir / "experiment.json").exists() and (workdir / "tokenizer").exists()
    with caplog.at_level("WARNING", "bert_jax"):
        assert run_tiny(workdir, "train.steps=3").finished
    (told,) = [message for message in caplog.messages if "takes its place" in message]
    assert "trained nothing" in told and told.endswith("task.encoder.layers was 1, is now 2")
    assert bert_jax.load(str(workdir)).config.layers == 2  # which compares the tokenizer too
    shutil.move(workdir / "checkpoints", tmp_path / "apart")
    with pytest.raises(BertJaxError, match="holds another experiment: task.encoder.layers was 2, is now 1"):
        run_tiny(workdir, "task.encoder.layers=1")
    (workdir / "metrics.jsonl").unlink()
    shutil.move(tmp_path / "apart", workdir / "best")
    with pytest.raises(BertJaxError, match="holds another experiment"):
        run_tiny(workdir, "task.encoder.layers=1")


def test_no_folder_is_renamed(run_tiny, tmp_path, monkeypatch):
    """A bucket mounted by gcsfuse refuses it, unless it has a hierarchical namespace."""

    def only_files(real):
        def moving(source, *words, **options):
            assert not os.path.isdir(source), f"{source} is a folder"
            return real(source, *words, **options)

        return moving

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, only_files(getattr(os, name)))
    assert run_tiny(tmp_path / "run", "train.steps=3", "train.best=mlm_accuracy").finished
    assert (tmp_path / "run" / "tokenizer" / "vocab.txt").is_file()


def test_one_run_at_a_time(run_tiny, copy):
    before = contents(copy)
    with locked(copy), pytest.raises(BertJaxError, match="another run is writing it: wait for it, or stop it"):
        run_tiny(copy, "train.steps=20")
    assert contents(copy) == before
    assert run_tiny(copy, "train.steps=13").finished


def test_somebody_s_own_tokenizer_is_not_removed(run_tiny, tiny_store, tmp_path):
    """The README's layout has one beside the work directory; who names the folder above gets it back."""
    (tmp_path / "mine" / "tokenizer").mkdir(parents=True)
    tokenizers.load(tiny_store).save(tmp_path / "mine" / "tokenizer")
    before = sorted(path.name for path in (tmp_path / "mine" / "tokenizer").iterdir())
    (tmp_path / "mine" / "tokenizer" / "notes.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:  # claimed, and dead before its first record
        patch.setattr(train_module, "Record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_tiny(tmp_path / "mine", "train.steps=3")
    assert run_tiny(tmp_path / "mine", "train.steps=3").finished
    assert sorted(path.name for path in (tmp_path / "mine" / "tokenizer").iterdir()) == sorted([*before, "notes.txt"])
    (tmp_path / "other" / "tokenizer").mkdir(parents=True)
    tokenizers.train("wordpiece", ["another text for another tokenizer"] * 9, 30).save(tmp_path / "other" / "tokenizer")
    there = contents(tmp_path / "other")
    with pytest.raises(BertJaxError, match="other/tokenizer is there and is not the data's tokenizer"):
        run_tiny(tmp_path / "other", "train.steps=3")
    assert contents(tmp_path / "other") == there


@pytest.mark.slow
def test_rows_of_a_stopped_run_are_those_of_one_that_was_not(run_tiny, tmp_path, monkeypatch):
    """Steps since the last row count in the next one, also where the run was stopped between the two."""
    settings = ("train.steps=8", "train.log_every=4", "train.save_every=100")
    run_tiny(tmp_path / "whole", *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cluster, "stop_at", lambda self, step: step == 6)
        assert run_tiny(tmp_path / "stopped", *settings).step == 6
    assert run_tiny(tmp_path / "stopped", *settings).finished
    whole, stopped = (rows_of(tmp_path / name, "train") for name in ("whole", "stopped"))
    names = [name for name in whole[-1] if not name.endswith("_per_second") and name != "time"]
    assert [{name: row[name] for name in names} for row in stopped] == [{name: row[name] for name in names} for row in whole]


def test_every_host_must_see_what_the_first_one_sees(finished, tmp_path, monkeypatch):
    """Before a run goes on: else another host would make a work directory of its own and fail to read a checkpoint in it."""
    monkeypatch.setattr(workdirs, "VISIBLE_SECONDS", 0)
    other = Cluster(index=1, count=2)
    workdirs.check_shared(finished[0], other, "checkpoints", workdirs.trained)
    with pytest.raises(BertJaxError, match="process 0 has .*elsewhere/checkpoints, which is not here: --workdir must"):
        workdirs.check_shared(tmp_path / "elsewhere", other, "checkpoints", workdirs.trained)


@pytest.mark.slow
@pytest.mark.parametrize(("init", "told"), [
    (None, None), ("first", None), ("first/", "(it began with {}/first)"), ("elsewhere", "(it began with {}/first)"),
])
def test_a_run_that_goes_on_needs_no_init(run_tiny, finished, tmp_path, caplog, init, told):
    """Nor does it read another one than it began with, which it says; what it began with stays on record."""
    short = ["train.save_every=2", "train.eval_every=100"]
    (tmp_path / "first").symlink_to(finished[0])
    run_tiny(tmp_path / "run", *short, "train.steps=3", f"task.init={tmp_path}/first")
    caplog.clear()
    again = [] if init is None else [f"task.init={tmp_path}/{init}"]
    assert run_tiny(tmp_path / "run", *short, "train.steps=4", *again).step == 4
    said = [message for message in caplog.messages if "task.init" in message]
    assert len(said) == (told is not None) and all(told.format(tmp_path) in message for message in said)
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["task"]["init"] == f"{tmp_path}/first"


def test_changed_settings_are_told(run_tiny, copy, caplog):
    result = run_tiny(copy, "train.steps=14", "optimizer.learning_rate=0.001")
    assert result.step == 14
    told = [record.getMessage() for record in caplog.records if record.name == "bert_jax"]
    assert "continuing with a changed setting: train.steps was 12, is now 14" in told
    assert "continuing with a changed setting: optimizer.learning_rate was 0.005, is now 0.001" in told


@pytest.mark.slow
def test_a_run_goes_on_without_dropout(run_tiny, finished, tmp_path, caplog):
    """ALBERT (Lan et al. 2020, section 4.8) dropped dropout after a million updates: moments and schedule stay, masks go."""
    steps, rows = "train.steps=14", {}
    for name, more in {"as before": (), "without": ("dropout", "attention_dropout")}.items():
        run = shutil.copytree(finished[0], tmp_path / name)
        run_tiny(run, steps, *(f"task.encoder.{field}=0" for field in more))
        rows[name] = rows_of(run, "train")
    told = [record.getMessage() for record in caplog.records if record.name == "bert_jax"]
    assert any(line.startswith("continuing with a changed setting: task.encoder.dropout was 0.") for line in told)
    before, without = rows["as before"], rows["without"]
    assert [row["step"] for row in before] == [row["step"] for row in without] == [2, 4, 6, 8, 10, 12, 14]
    assert before[:-1] == without[:-1], "what is recorded already stays"
    assert before[-1]["loss"] != without[-1]["loss"]
    assert before[-1]["learning_rate"] == without[-1]["learning_rate"]


@pytest.mark.slow
def test_a_run_goes_on_on_devices_with_less_memory(run_tiny, copy, caplog):
    assert run_tiny(copy, "train.steps=14", "task.encoder.remat=full").step == 14
    assert "continuing with a changed setting: task.encoder.remat was" in caplog.text


def test_processes_without_a_cluster_are_refused(tmp_path, monkeypatch, tiny_experiment, tiny_store):
    """Each of them would take itself for the first."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    experiment = tiny_experiment("bert")
    with pytest.raises(BertJaxError, match="jax has 2 processes, this one was told of 1: give the cluster of"):
        train_module.train(PretrainingTask(experiment.task, TokenStore(tiny_store)), experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_has_the_rows_of_a_micro_batch(tiny_experiment):
    made = [tiny_experiment("bert", "train.batch_size=16", "train.eval_batches=5", *more).train
            for more in ((), ("train.accumulate=4",), ("train.accumulate=4", "train.eval_batch_size=8"))]
    assert [(train.eval_size, train.eval_limit) for train in made] == [(16, 5), (4, 20), (8, 5)], "as many examples"
    assert tiny_experiment("bert", "train.eval_batches=null").train.eval_limit is None


@pytest.fixture(scope="module")
def other_store(tmp_path_factory, tiny_store, write_corpus):
    """The same text in another vocabulary of the same size."""
    folder = tmp_path_factory.mktemp("other")
    pieces = TokenStore(tiny_store).tokenizer.pieces
    tokenizer = WordPieceTokenizer([*pieces[:5], *reversed(pieces[5:])])
    text = write_corpus(folder / "text.txt", 150)
    prepare([text], folder / "store", tokenizer, sentences="line", heldout=0.2, workers=1, progress=False)
    return folder / "store"


def test_another_tokenizer(run_tiny, copy, tiny_store, other_store):
    mine, other = (TokenStore(store).tokenizer.hash for store in (tiny_store, other_store))
    assert mine != other
    for attempt in (lambda: run_tiny(copy, store=other_store), lambda: evaluate_checkpoint(str(copy), other_store, 16, 1)):
        with pytest.raises(BertJaxError) as error:
            attempt()
        assert mine in str(error.value) and other in str(error.value) and "\n" not in str(error.value)


def test_other_data_with_the_same_tokenizer(run_tiny, copy, tiny_store, tmp_path, write_corpus):
    """The state of the iterator means nothing on another store."""
    text = write_corpus(tmp_path / "text.txt", 150, seed=1)
    prepare([text], tmp_path / "store", TokenStore(tiny_store).tokenizer, sentences="line", heldout=0.2, workers=1,
            progress=False)
    before = contents(copy)
    with pytest.raises(BertJaxError, match=rf"trained with data .* this run has data .* same one \(it lay at {tiny_store}\)"):
        run_tiny(copy, "train.steps=14", store=tmp_path / "store")
    assert contents(copy) == before


def test_batch_that_the_mesh_cannot_share(tmp_path, tiny_store, tiny_experiment):
    for settings, message in (
        (["train.batch_size=12"], "accumulate is 12: it must be a multiple of 8"),
        (["train.accumulate=4"], "accumulate is 4: it must be a multiple of 8"),
        (["train.eval_batch_size=4"], "eval_batch_size is 4: it must be a multiple of 8"),
        (["train.eval_batch_size=0"], "eval_batch_size is 0: it must be at least 1, or null"),
        (["train.eval_batches=0"], "eval_batches is 0: it must be at least 1, or null"),
        (["mesh.data=3"], "does not fit 8 device"),
        (["mesh.data=1", "mesh.tensor=8", "task.encoder.heads=4"], r"heads 4 \(.*\) is not a multiple of mesh.tensor=8"),
    ):
        with pytest.raises(BertJaxError, match=message):
            pretrain(tiny_experiment("bert", *settings), tiny_store, tmp_path / "run")


def test_evaluation_is_deterministic_and_covers_the_tail(finished, tiny_store, tiny_experiment):
    """No example is left out of the last, partly empty batch, and none is counted twice."""
    workdir, result = finished
    spec = tiny_experiment("bert").task.examples
    split = TokenStore(tiny_store).split("heldout")
    whole = [np.asarray(b["attention_mask"]).any(axis=1).sum() for b in heldout_batches(split, spec, batch_size=16)]
    assert len(whole) > 2 and 0 < whole[-1] < 16, "the fixture must have a tail"
    once, again = (evaluate_checkpoint(str(workdir), tiny_store, 16, None) for _ in range(2))
    assert once == again
    assert evaluate_checkpoint(str(workdir), tiny_store, 16, 2)["mlm_loss"] == pytest.approx(result.evaluation["mlm_loss"],
                                                                                            rel=1e-5)
    # NSP labels have no randomness on the device: any batch size must count every example exactly once.
    other = evaluate_checkpoint(str(workdir), tiny_store, 8, None)
    assert other["nsp_loss"] == pytest.approx(once["nsp_loss"], rel=0.1)
    examples = sum(whole)
    assert once["nsp_accuracy"] * examples == pytest.approx(round(once["nsp_accuracy"] * examples), abs=1e-3)
    assert 0 < once["mlm_majority_baseline"] < 0.5
    labels = np.concatenate([b["next_sentence_label"] for b in heldout_batches(split, spec, batch_size=16,
                                                                               columns=("next_sentence_label",))])
    counts = np.bincount(labels[labels >= 0])
    assert once["nsp_majority_baseline"] == counts.max() / counts.sum()


@pytest.mark.parametrize(("batch_size", "limit", "message"), [(0, None, "batch size is 0"), (16, 0, "number of batches is 0")])
def test_an_evaluation_of_nothing(finished, tiny_store, batch_size, limit, message):
    with pytest.raises(BertJaxError, match=f"the {message}: it must be at least 1"):
        evaluate_checkpoint(str(finished[0]), tiny_store, batch_size, limit)


def test_an_evaluation_of_a_fine_tuning(tiny_store, tiny_experiment, tmp_path):
    table = Table("x.tsv", ("a",), "l")
    encoder = finetuned_encoder(tiny_experiment("bert").task.encoder, ("x", "y"))
    config.save(Experiment(Classification(encoder, "x", table, table, (16,)), AdamW()), tmp_path / "experiment.json")
    with pytest.raises(BertJaxError, match="is a run of Classification: evaluated on a file, not on a store"):
        evaluate_checkpoint(str(tmp_path), tiny_store, 8, None)


def test_a_store_without_heldout_documents(run_tiny, tmp_path, tiny_store, write_corpus, caplog):
    text = write_corpus(tmp_path / "text.txt", 30)
    prepare([text], tmp_path / "store", TokenStore(tiny_store).tokenizer, sentences="line", heldout=0.0, workers=1,
            progress=False)
    result = run_tiny(tmp_path / "run", "train.steps=4", store=tmp_path / "store")
    assert result.finished and result.evaluation == {} and "no held-out documents" in caplog.text
