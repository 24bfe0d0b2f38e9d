"""The best evaluation of a run: its parameters come back, runs end when none is better, restarts change nothing."""

import logging
import shutil

import jax
import numpy as np
import pytest

from bert_jax.checkpoint import Checkpoints
from bert_jax.errors import BertJaxError
from bert_jax.inspection import inspect
from bert_jax.model import load
from bert_jax.training import evaluation
from bert_jax.training import train as train_module
from bert_jax.training.record import read

SCORES = {2: 0.5, 4: 0.9, 6: 0.7, 8: 0.9, 10: 0.95, 12: 0.1}
EVERY_TWO = ("train.eval_every=2", "train.save_every=2", "train.keep=10")


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations that say what the test wants, by the order in which they come; returns the values still to come."""
    waiting = list(SCORES.values())
    monkeypatch.setattr(train_module, "check_best", lambda *_: None)  # which would take one
    monkeypatch.setattr(train_module, "evaluate", lambda *_: {"loss": 1.0, "score": waiting.pop(0)})
    return waiting


def parameters_at(workdir, step, params):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.restore({"params": abstract}, step).items["params"]
    checkpoints.close()
    return found


def assert_same(one, other):
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize(("metric", "step", "value"), [("score", 10, 0.95), ("-score", 12, 0.1)])
def test_the_best_parameters_come_back(run_tiny, tmp_path, scripted, metric, step, value):
    result = run_tiny(tmp_path / "run", *EVERY_TWO, f"train.best={metric}")
    assert result.finished and result.step == 12 and result.evaluation == {"loss": 1.0, "score": value}
    assert_same(result.params, parameters_at(tmp_path / "run", step, result.params))
    model = load(tmp_path / "run")
    assert_same(model.params, {part: result.params[part] for part in model.params})
    assert f"; the best by {metric}, of step {step}, is read" in str(inspect(tmp_path / "run"))


@pytest.mark.slow
def test_loading_takes_the_best_unless_a_step_is_named(run_tiny, tmp_path, scripted, caplog):
    result = run_tiny(tmp_path / "run", *EVERY_TWO, "train.best=score")
    found = {step: load(f"{tmp_path / 'run'}@{step}").params for step in (10, 12)}
    for step, params in found.items():
        assert_same(params, {part: parameters_at(tmp_path / "run", step, result.params)[part] for part in params})
    shutil.rmtree(tmp_path / "run" / "best")  # as before the first evaluation
    with caplog.at_level(logging.WARNING):
        assert_same(load(tmp_path / "run").params, found[12])
    assert "was never evaluated: these are its last parameters, not the best by score" in caplog.text


def test_without_a_better_one_the_run_ends(run_tiny, tmp_path, scripted):
    result = run_tiny(tmp_path / "run", *EVERY_TWO, "train.best=score", "train.patience=2")
    assert result.finished and result.step == 8 and result.evaluation["score"] == 0.9  # 8 is as good as 4, and not better
    assert_same(result.params, parameters_at(tmp_path / "run", 4, result.params))
    assert [row["step"] for row in read(tmp_path / "run/metrics.jsonl") if row["kind"] == "eval"] == [2, 4, 6, 8]


def test_a_restart_knows_the_best(run_tiny, tmp_path, monkeypatch):
    """Killed after the evaluation of step 6, when 4 was the best; goes on from the checkpoint of step 4."""
    def evaluate(*_):
        score = SCORES[evaluate.step]
        evaluate.step += 2
        if evaluate.step == 8 and evaluate.breaks:
            raise KeyboardInterrupt
        return {"loss": 1.0, "score": score}

    evaluate.step, evaluate.breaks = 2, True
    monkeypatch.setattr(train_module, "check_best", lambda *_: None)
    monkeypatch.setattr(train_module, "evaluate", evaluate)
    settings = (*EVERY_TWO, "train.best=score", "train.patience=2")
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "run", *settings)
    evaluate.step, evaluate.breaks = 6, False
    result = run_tiny(tmp_path / "run", *settings)
    assert result.step == 8 and result.evaluation["score"] == 0.9
    assert_same(result.params, parameters_at(tmp_path / "run", 4, result.params))


@pytest.mark.slow
def test_a_better_one_of_a_run_that_went_back_takes_the_place_of_a_later_one(run_tiny, tmp_path, monkeypatch):
    """Saved every 4 steps, killed at 8 when 6 was the best, it goes on from 4, and 5 is better: not the highest step counts."""
    scores = iter([0.1, 0.2, 0.9, None])

    def evaluate(*_):
        if (score := next(scores)) is None:
            raise KeyboardInterrupt
        return {"loss": 1.0, "score": score}

    monkeypatch.setattr(train_module, "check_best", lambda *_: None)
    monkeypatch.setattr(train_module, "evaluate", evaluate)
    settings = ("train.save_every=4", "train.keep=10", "train.best=score")
    with pytest.raises(KeyboardInterrupt):
        run_tiny(tmp_path / "run", *settings, "train.eval_every=2")
    scores = iter([0.95, 0.3, 0.3, 0.3])
    result = run_tiny(tmp_path / "run", *settings, "train.eval_every=5")
    assert result.evaluation["score"] == 0.95
    assert Checkpoints(tmp_path / "run" / "best").steps() == [5]
    assert_same(load(tmp_path / "run").params, {part: result.params[part] for part in load(tmp_path / "run").params})


@pytest.mark.slow
def test_what_is_refused(run_tiny, tmp_path):
    """Before the first update, and the folder stays free for the right name."""
    with pytest.raises(BertJaxError, match="train.best is 'f1'; an evaluation of this task has .*mlm_accuracy"):
        run_tiny(tmp_path / "run", *EVERY_TWO, "train.best=-f1")
    assert not (tmp_path / "run").exists()
    with pytest.raises(BertJaxError, match="train.patience is 2: .* train.best must name"):
        run_tiny(tmp_path / "other", "train.patience=2")
    run_tiny(tmp_path / "run", *EVERY_TWO, "train.steps=4", "train.best=-mlm_loss")
    rows = read(tmp_path / "run/metrics.jsonl")
    for typo in ("mlm_los", "mlm_acc"):
        with pytest.raises(BertJaxError, match=f"train.best is '{typo}'"):
            run_tiny(tmp_path / "run", *EVERY_TWO, "train.steps=6", f"train.best={typo}")
    assert read(tmp_path / "run/metrics.jsonl") == rows
    shutil.rmtree(tmp_path / "run" / "best")  # as of a run that chose nothing so far
    with pytest.raises(BertJaxError, match="train.best is 'mlm_los'"):
        run_tiny(tmp_path / "run", *EVERY_TWO, "train.steps=6", "train.best=mlm_los")
    assert read(tmp_path / "run/metrics.jsonl") == rows


def test_a_score_that_the_first_batch_lacks_is_found_in_the_others(monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda *words: {"loss": 1.0} | ({"rare": 0.5} if 2 in words[-1] else {}))
    mesh = train_module.make_mesh(train_module.Experiment.__dataclass_fields__["mesh"].default)
    evaluation.check_best("-rare", None, None, None, mesh, lambda limit: [1, 2][:limit])
    with pytest.raises(BertJaxError, match="train.best is 'rare'; an evaluation of this task has loss"):
        evaluation.check_best("rare", None, None, None, mesh, lambda limit: [1, 3][:limit])


@pytest.mark.slow
def test_the_best_is_found_again_where_a_kill_came_between_both_saves(run_tiny, tmp_path, monkeypatch):
    """The checkpoint of step 4 is whole, the best, which was of step 4, is not."""
    scores = iter([0.5, 0.9])
    monkeypatch.setattr(train_module, "check_best", lambda *_: None)
    monkeypatch.setattr(train_module, "evaluate", lambda *_: {"loss": 1.0, "score": next(scores)})
    settings = (*EVERY_TWO, "train.best=score")
    run_tiny(tmp_path / "run", *settings, "train.steps=4")
    shutil.rmtree(tmp_path / "run" / "best")
    scores = iter([0.9, 0.3, 0.3])
    result = run_tiny(tmp_path / "run", *settings, "train.steps=8")
    assert result.evaluation["score"] == 0.9
    assert_same(result.params, parameters_at(tmp_path / "run", 4, result.params))
    assert [row["step"] for row in read(tmp_path / "run/metrics.jsonl") if row["kind"] == "eval"] == [2, 4, 6, 8]
