"""Recipes of configs/finetune: from the shell on real files, two updates and then all that a run leaves; or, where no such
files are at hand, made and traced on a few examples in their form."""

import json
import pathlib
import shlex

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli
from bert_jax.finetuning import fit, primary_score
from bert_jax.parallel.mesh import make_mesh
from bert_jax.tasks import finetuning_task
from bert_jax.training import train as train_module
from bert_jax.training.pretrain import load_config
from tests.tasks import fake_tfds

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


def small_squad(folder: pathlib.Path) -> list[str]:
    questions = [{"id": str(k), "question": "the dog", "is_impossible": k == 2,
                  "answers": [] if k == 2 else [{"text": "cat", "answer_start": 4}]} for k in range(3)]
    (folder / "x.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "the cat sat on", "qas": questions}]}]}))
    return [*(f"{path}={folder / 'x.json'}" for path in PATHS), *WINDOWS]


def small_swag(folder: pathlib.Path) -> list[str]:
    names = ["video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source", *(f"ending{k}" for k in range(4)), "label"]
    row = ["x", "1", "", "the cat sat .", "it", "gold", "ran", "sang", "sat on", "ran in", "2"]
    (folder / "x.csv").write_text("".join(",".join(line) + "\n" for line in (names, row, row)))
    return [f"{path}={folder / 'x.csv'}" for path in PATHS]


def small_race(folder: pathlib.Path) -> list[str]:
    (folder / "high").mkdir()
    for name in "12":
        (folder / "high" / f"{name}.txt").write_text(json.dumps({
            "article": "the cat sat .", "questions": ["the dog ?", "it _ ."], "options": [["cat", "dog", "bird", "tree"]] * 2,
            "answers": ["B", "D"]}))
    return [f"{path}={folder}" for path in PATHS]


def small_cloze(folder: pathlib.Path) -> list[str]:
    (folder / "x.tsv").write_text("sentence\tlabel\nthe cat sat .\t0\nit ran .\t1\n")
    paths = [f"task.{part}.table.path={folder / 'x.tsv'}" for part in ("data", "heldout")]
    return [*paths, "task.data.table.rows=[0,2]", *(f'task.{part}.words=["cat","dog"]' for part in ("data", "heldout"))]


# Assignments with small files for a recipe; None: as it stands, from TFDS.
SMALL = {name: None for name in ("mnli", "qnli", "qqp", "stsb", "wnli", "xnli", "paws_x", "conll2003")} | {
    "squad_2": small_squad, "swag": small_swag, "race": small_race, "sst2_cloze": small_cloze}


# Recipes that read files, the data set of TFDS that may stand in their place, and its split to evaluate on.
ON_TFDS = {
    "squad": ("squad/v1.1", "validation"), "squad_2": ("squad/v2.0", "validation"), "wikiann": ("wikiann/de", "validation"),
    "ud_pos": ("universal_dependencies/de_gsd", "dev"), "race": ("race/high", "dev"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_is_made_of_its_data(name, tiny_checkpoint, tmp_path, monkeypatch):
    asked = fake_tfds.use(monkeypatch, tmp_path)
    check_made(name, tiny_checkpoint, SMALL[name](tmp_path) if SMALL[name] else [])
    assert bool(asked) == (SMALL[name] is None)


@pytest.mark.parametrize("name", ON_TFDS)
def test_a_recipe_for_files_is_made_of_what_tfds_has(name, tiny_checkpoint, tmp_path, monkeypatch):
    """By the command of the manual, which has it for WikiANN."""
    asked, (data, split) = fake_tfds.use(monkeypatch, tmp_path), ON_TFDS[name]
    guide = (ROOT / "docs" / "finetuning.md").read_text("utf-8")
    (line,) = (line for line in guide.splitlines() if line.startswith("bert-jax") and '"kind": "Named"' in line)
    assignments = [word.replace("wikiann/de", data).replace("validation", split) for word in shlex.split(line) if "{" in word]
    assert len(assignments) == 2
    check_made(name, tiny_checkpoint, [*assignments, *(WINDOWS if name.startswith("squad") else [])])
    assert set(asked) == {f"{data}:train", f"{data}:{split}"}


def check_made(name: str, checkpoint: pathlib.Path, assignments: list[str]) -> None:
    """Read, encoded, traced in training, and scored, so that a label, a column or a score that is not there is found."""
    assignments = ["task.lengths=[32]", "train.batch_size=4", *assignments]
    experiment, model = fit(load_config(ROOT / "configs" / "finetune" / f"{name}.py"), str(checkpoint), assignments)
    task = finetuning_task(experiment.task, model)
    params, batch = task.start(jax.random.key(0)), next(task.train_batches(4, 0))
    losses = jax.eval_shape(task.loss, params, batch, jax.random.key(0))
    assert len(losses.terms) == 1 and next(iter(losses.terms.values())).sum.shape == ()
    outputs: dict[str, list[np.ndarray]] = {}
    for batch in task.eval_batches(4, None):
        shapes = jax.eval_shape(lambda params, batch: task.loss(params, batch, None).outputs, params, batch)
        for output, shape in shapes.items():
            outputs.setdefault(output, []).extend(
                batch["example"] if output == "example" else np.zeros(shape.shape, shape.dtype)
            )
    assert primary_score(experiment).removeprefix("-") in task.scores(outputs)


def test_no_recipe_is_forgotten():
    assert {path.stem for path in (ROOT / "configs" / "finetune").glob("*.py")} == RECIPES.keys() | SMALL.keys()
