"""Recipes of configs/finetune from the shell, on the real files that they are for: two updates, then all that a run leaves."""

import json
import pathlib

import jax
import pytest

import bert_jax
from bert_jax import cli
from bert_jax.parallel.mesh import make_mesh
from bert_jax.training import train as train_module

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("task.data.folder", "task.heldout.folder")
PATHS = ("task.data.path", "task.heldout.path")
WINDOWS = ("task.stride=8", "task.question_tokens=8", "task.answer_tokens=8")

# Where the two parts lie beneath the folder of real data, what else is set, held-out examples, and the kind's first score.
RECIPES = {
    "sst2": (FOLDERS, ("glue/sst2", "glue/sst2"), (), 872, "accuracy"),
    "cola": (FOLDERS, ("glue/cola", "glue/cola"), (), 527, "matthews"),
    "mrpc": (FOLDERS, ("glue/mrpc", "glue/mrpc"), (), 500, "f1"),
    "rte": (FOLDERS, ("glue/rte", "glue/rte"), (), 277, "accuracy"),
    "chnsenticorp": (FOLDERS, ("kg/chnsenticorp", "kg/chnsenticorp"), (), 1200, "accuracy"),
    "squad": (PATHS, ("qa/squad/dev-v1.1.json",) * 2,
              (*WINDOWS, "task.data.articles=[0,0.03]", "task.heldout.articles=[0.98,1]"), None, "f1"),
    "wikiann": (PATHS, ("ner/wikiann/en/dev", "ner/wikiann/en/test"), ("task.data.share=[0,0.1]",), 10_000, "f1"),
    "ud_pos": (PATHS, ("syntax/ewt/en_ewt-ud-test.conllu", "syntax/ewt/en_ewt-ud-dev.conllu"), (), 2_001, "accuracy"),
    "suzuki_yields": (PATHS, ("chem/suzuki_random_split_0.tsv",) * 2,
                      ("task.data.rows=[0,64]", "task.heldout.rows=[4032,4096]"), 64, "rmse"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_its_files(name, data_dir, tiny_checkpoint, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    fields, places, more, count, score = RECIPES[name]
    assignments = [f"{field}={json.dumps(str(data_dir / place))}" for field, place in zip(fields, places, strict=True)]
    brief = ("train.steps=2", "train.eval_every=2", "train.save_every=2", "optimizer.warmup_steps=0", "train.batch_size=8",
             "task.lengths=[32]", "task.shapes=1", "task.encoder.compute_dtype=float32", "train.eval_batch_size=256")
    sets = [word for assignment in (*brief, *assignments, *more) for word in ("--set", assignment)]
    config, out = str(ROOT / "configs" / "finetune" / f"{name}.py"), tmp_path / "run"
    words = ["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--workdir", str(out), *sets]
    assert cli.main(words) == 0, capfd.readouterr().err
    scores = json.loads((out / "scores.json").read_text())
    assert score in json.dumps(scores)
    (predictions,) = out.glob("seed-*/predictions.tsv")
    rows = predictions.read_text("utf-8").split("\n")
    assert len(rows) - 2 == count or count is None and len(rows) > 50  # a header, and nothing behind the last line end
    assert (out / "report.html").is_file() and (out / "README.md").is_file()
    assert bert_jax.load(out / "model").tokenizer is not None
