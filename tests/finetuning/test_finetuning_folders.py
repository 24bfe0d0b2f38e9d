"""bert-jax finetune and its folders: what goes on, gives way, stays, or is refused; and a table in one command."""

import csv
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli
from bert_jax.errors import BertJaxError
from bert_jax.files import locked
from bert_jax.finetuning import report
from bert_jax.parallel.mesh import make_mesh
from bert_jax.training import record
from bert_jax.training import step as step_module
from bert_jax.training import train as train_module
from tests.finetuning_runs import make, sentences
from tests.tasks.tiny_tasks import make_task


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_wrong_score_is_refused_before_training_and_the_folder_stays_free(before, tiny_checkpoint, tmp_path, capfd):
    config, folder = make("Classification", tmp_path), tmp_path / "run"
    arguments = ["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--workdir", str(folder), "--seeds", "1"]
    if before:
        folder.mkdir()
    assert cli.main([*arguments, "--set", "train.best=acc"]) == 1
    err = capfd.readouterr().err
    assert "train.best is 'acc'; an evaluation of this task has accuracy," in err and "step 1" not in err
    assert list(folder.iterdir()) == [] if before else not folder.exists()
    assert cli.main([*arguments, "--set", "train.best=accuracy"]) == 0


def test_scores_of_a_part_of_the_held_out_data_are_said_to_be(tiny_checkpoint, tmp_path, caplog):
    path = make("Classification", tmp_path)
    assert cli.main(["finetune", "--config", path, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--workdir",
                     str(tmp_path / "run"), "--set", "train.eval_batches=1"]) == 0
    assert "scores are of 8 of the 13 held-out examples, since train.eval_batches is 1" in caplog.text
    assert " and measured on 8 of " in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.slow
def test_adam_without_bias_correction_is_warned_of(tiny_checkpoint, tmp_path, caplog):
    """It is the default of what pre-training has, and a configuration of one's own may not say it."""
    path, said = make("Classification", tmp_path), "optimizer.bias_correction is off, as pre-training has it"
    words = ["finetune", "--config", path, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--set", "train.steps=2"]
    for name, more in (("with", []), ("without", ["--set", "optimizer.bias_correction=false"])):
        caplog.clear()
        assert cli.main([*words, "--workdir", str(tmp_path / name), *more]) == 0
        assert sum(said in message for message in caplog.messages) == (name == "without")


@pytest.mark.slow
def test_fewer_seeds_lose_none_and_what_is_replaced_is_said(tiny_checkpoint, tmp_path, capfd):
    folder = tmp_path / "run"
    arguments = ["finetune", "--config", make("Regression", tmp_path), "--checkpoint", str(tiny_checkpoint), "--workdir",
                 str(folder)]
    assert cli.main([*arguments, "--seeds", "3", "--export", "best"]) == 0
    scores = json.loads((folder / "scores.json").read_text())
    best, table = scores["exported_seed"], scores["scores"]
    names = {"scores.md", "scores.tsv", "model/model.safetensors"}
    before = {name: (folder / name).read_bytes() for name in names}
    capfd.readouterr()
    assert cli.main([*arguments, "--seeds", "1", "--export", "best"]) == 0
    err = capfd.readouterr().err
    assert "with seeds 1, 2, which are finished here" in err and "was that of seed" not in err
    assert {name: (folder / name).read_bytes() for name in names} == before
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["scores"] == table and scores["exported_seed"] == best
    result = folder / "seed-2" / "result.json"  # now the best
    found = json.loads(result.read_text())
    found["scores"]["rmse"] = 0.0
    result.write_text(json.dumps(found))
    assert cli.main([*arguments, "--seeds", "1", "--export", "best"]) == 0
    capfd.readouterr()
    assert cli.main([*arguments, "--seeds", "1"]) == 0
    assert f"{folder / 'model'} was that of seed 2, now of seed 0" in capfd.readouterr().err
    assert json.loads((folder / "scores.json").read_text())["exported_seed"] == 0


def test_what_python_gives_instead_of_an_experiment_is_said(tmp_path):
    wanted = r"recipe.recipe makes an experiment of a model and own_data\(FILE, ...\), bert_jax.training.pretrain.load_config"
    with pytest.raises(BertJaxError, match=f"takes an experiment, not 'tiny': .*{wanted}"):
        bert_jax.finetune("tiny", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def write_reviews(path: pathlib.Path, count: int = 60) -> pathlib.Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars", "value"])
        writer.writerows([(f'{text}, "{k}"', label, value) for k, (text, label, value) in enumerate(sentences(count))])
    return path


@pytest.mark.parametrize(("label", "kind"), [("stars", "text-classification"), ("value", "text-classification")])
def test_this_csv_in_one_command(label, kind, tiny_checkpoint, tmp_path, capfd):
    (tmp_path / "My Docs" / "secret").mkdir(parents=True)
    data = write_reviews(tmp_path / "My Docs" / "secret" / "reviews.csv")
    words = ["finetune", "--checkpoint", str(tiny_checkpoint), "--data", str(data), "--texts", "review", "--label", label,
             "--workdir", str(tmp_path / "run"), "--epochs", "2", "--set", "train.batch_size=16"]
    assert cli.main(words) == 0
    out, err = capfd.readouterr()
    lines = [" ".join(word for word in line.split() if "/" not in word) for line in err.splitlines()]
    order = [lines.index(line) for line in ("tokenising the data", "step compiling for 1 x cpu", "writing the report")]
    assert order == sorted(order) and order[-1] == len(lines) - 1, err
    last = record.read(tmp_path / "run" / "seed-0" / "metrics.jsonl")[-2]
    assert last["kind"] == "train" and last["epoch"] == pytest.approx(2, abs=0.2)
    assert ("accuracy" if label == "stars" else "pearson") in out
    out = tmp_path / "out.tsv"
    assert cli.main(["predict", str(tmp_path / "run"), "--input", str(data), "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 61
    found = (tmp_path / "run" / "README.md").read_text()
    assert kind in found and "--data reviews.csv --texts" in found and "Docs" not in found and "secret" not in found
    assert f"--data '{data}'" in json.loads((tmp_path / "run" / "scores.json").read_text())["command"]


@pytest.mark.parametrize(("argument", "published"), [
    ("/home/ann/My Docs/secret/x.csv", "x.csv"), ("--data=/home/ann/My Docs/secret/x.csv", "--data=x.csv"),
    ("task.init=/home/ann/a=b/c d/run#generator", "task.init=run#generator"), ("--set=task.init=/a b/c/d", "--set=task.init=d"),
    ('task.data={"path": "/home/ann/My Docs/x.csv", "texts": ["/a b/c", "e"]}',
     'task.data={"path": "x.csv", "texts": ["c", "e"]}'),
    ("/home/ann/runs/", "runs/"), ("configs/finetune/mrpc.py", "configs/finetune/mrpc.py"), ("google/bert", "google/bert"),
    ("/home/ann/two\nlines/x", "x"), ("task.note=1/2", "task.note=1/2"),
])
def test_arguments_are_published_without_folders(argument, published):
    assert report._without_folders(argument) == published


@pytest.mark.slow
def test_data_that_has_changed_is_refused_before_a_seed_trains_on_it(tiny_checkpoint, tmp_path, capfd):
    words = ["finetune", "--config", make("Classification", tmp_path), "--checkpoint", str(tiny_checkpoint), "--workdir",
             str(tmp_path / "run"), "--set", "train.steps=2"]
    assert cli.main([*words, "--seeds", "1"]) == 0
    plan = json.loads((tmp_path / "run" / "finetune.json").read_text())
    for name in ("train.tsv", "dev.tsv"):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(before.replace("red", "blue", 1))
        capfd.readouterr()
        assert cli.main([*words, "--seeds", "2"]) == 1
        assert "the data is not what it was when this fine-tuning began" in capfd.readouterr().err
        assert not (tmp_path / "run" / "seed-1").exists()
        (tmp_path / name).write_text(before)
    assert json.loads((tmp_path / "run" / "finetune.json").read_text()) == plan
    del plan["identity"]  # as an earlier version wrote it
    (tmp_path / "run" / "finetune.json").write_text(json.dumps(plan))
    assert cli.main([*words, "--seeds", "2"]) == 0 and (tmp_path / "run" / "seed-1" / "result.json").is_file()


@pytest.mark.slow
def test_seeds_that_would_begin_with_other_weights_are_refused(tiny_checkpoint, tmp_path, capfd):
    """The folder of a first stage was written anew meanwhile: one mean would be of two things."""
    start = bert_jax.load(tiny_checkpoint)
    bert_jax.save(start, tmp_path / "start")
    words = ["finetune", "--config", make("Classification", tmp_path), "--checkpoint", str(tmp_path / "start"), "--workdir",
             str(tmp_path / "run"), "--set", "train.steps=2"]
    assert cli.main([*words, "--seeds", "1"]) == 0
    plan = json.loads((tmp_path / "run" / "finetune.json").read_text())
    shutil.rmtree(tmp_path / "start")
    bert_jax.save(start._replace(params=jax.tree.map(lambda leaf: leaf * 1.01, start.params)), tmp_path / "start")
    capfd.readouterr()
    assert cli.main([*words, "--seeds", "2"]) == 1
    assert "the start (task.init) is not what it was when this fine-tuning began" in capfd.readouterr().err
    del plan["identity"]["start (task.init)"]  # as an earlier version wrote it
    (tmp_path / "run" / "finetune.json").write_text(json.dumps(plan))
    assert cli.main([*words, "--seeds", "2"]) == 0


@pytest.mark.slow
def test_a_field_that_an_earlier_version_had_not_is_no_difference(tiny_checkpoint, tmp_path, capfd):
    """Half of the seeds are there when a new version is installed, whose fields have other names than these."""
    words = ["finetune", "--config", make("Classification", tmp_path), "--checkpoint", str(tiny_checkpoint), "--workdir",
             str(tmp_path / "run"), "--set", "train.steps=2"]
    assert cli.main([*words, "--seeds", "1"]) == 0
    path = tmp_path / "run" / "finetune.json"
    plan = json.loads(path.read_text())
    before = json.loads(path.read_text())
    del before["experiment"]["task"]["group_by_length"], before["experiment"]["optimizer"]["unfreeze_every"]
    path.write_text(json.dumps(before))
    assert cli.main([*words, "--seeds", "2"]) == 0 and (tmp_path / "run" / "seed-1" / "result.json").is_file()
    assert json.loads(path.read_text()) == plan  # with all of its fields again
    capfd.readouterr()
    before["experiment"]["task"]["gruop_by_length"] = True
    path.write_text(json.dumps(before))
    assert cli.main([*words, "--seeds", "2"]) == 1
    assert (f"error: {path} is not of this version, choose another --workdir: experiment.task: unknown key 'gruop_by_length' "
            "in Classification; did you mean 'group_by_length'?") in capfd.readouterr().err


@pytest.mark.slow
def test_what_trained_nothing_gives_way(tiny_checkpoint, tmp_path, monkeypatch, capfd, caplog):
    """The memory did not suffice: a smaller batch, or fewer seeds at once, is tried in the same folder."""
    words = ["finetune", "--config", make("Classification", tmp_path), "--checkpoint", str(tiny_checkpoint), "--workdir",
             str(tmp_path / "run"), "--seeds", "3"]

    def too_large(*words, **options):
        def step(state, batch):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nsee above")

        return step

    with monkeypatch.context() as patch:
        patch.setattr(step_module, "make_train_step", too_large)
        for more in ([], ["--at-once", "3"]):
            train_module._functions.cache_clear()
            capfd.readouterr()
            assert cli.main([*words, *more]) == 1
            err = capfd.readouterr().err
            assert "error: the memory of the device does not suffice: a smaller batch" in err and "Traceback" not in err
            assert "(RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes. see above)" in err
    train_module._functions.cache_clear()
    assert cli.main([*words, "--at-once", "2", "--set", "train.batch_size=4"]) == 0
    assert "trained nothing, this one takes its place" in caplog.text
    assert not list((tmp_path / "run").glob("seeds-*")) and len(list((tmp_path / "run").glob("seed-*/result.json"))) == 3
    for seed in range(3):  # somebody needed the room: what was made of them is still there
        shutil.rmtree(tmp_path / "run" / f"seed-{seed}")
    capfd.readouterr()
    assert cli.main([*words, "--set", "train.batch_size=2"]) == 1
    assert "holds another fine-tuning: train.batch_size was 4, is now 2" in capfd.readouterr().err


@pytest.mark.slow
def test_folders_of_others_stay(tiny_checkpoint, tmp_path):
    """Those of runs have numbers; nothing else is removed, be it named alike."""
    words = ["finetune", "--config", make("Classification", tmp_path), "--checkpoint", str(tiny_checkpoint), "--workdir",
             str(tmp_path / "run"), "--seeds", "1", "--set", "train.steps=2"]
    assert cli.main(words) == 0
    shutil.copytree(tmp_path / "run" / "seed-0", tmp_path / "run" / "seeds-old" / "seed-0")
    (tmp_path / "run" / "seeds-0.log").write_text("mine")
    (tmp_path / "run" / "seedlings").mkdir()
    assert cli.main([*words[:-3], "2", *words[-2:]]) == 0
    assert (tmp_path / "run" / "seeds-old" / "seed-0" / "result.json").is_file() and (tmp_path / "run" / "seedlings").is_dir()
    assert (tmp_path / "run" / "seeds-0.log").read_text() == "mine" and (tmp_path / "run" / "seed-1" / "result.json").is_file()


def test_one_fine_tuning_at_a_time(tiny_checkpoint, tmp_path, capfd):
    words = ["finetune", "--config", make("Classification", tmp_path), "--checkpoint", str(tiny_checkpoint), "--workdir",
             str(tmp_path / "run"), "--set", "train.steps=2"]
    with locked(tmp_path / "run"):
        assert cli.main(words) == 1
        assert "another run is writing it" in capfd.readouterr().err and list((tmp_path / "run").iterdir()) == []


def test_new_layers_are_not_those_that_pre_training_began_with(tmp_path):
    """Both have seed 0 by default."""
    task = make_task(fields={"reinitialise": 1})
    key = jax.random.key(0)
    started, begun = task.start(key), task.init(key)
    for part in ("attention", "feed_forward", "pooler"):
        for new, first in zip(jax.tree.leaves(started[part]), jax.tree.leaves(begun[part]), strict=True):
            if np.ptp(first) > 0:
                assert np.abs(np.asarray(new)[-1] - np.asarray(first)[-1]).max() > 1e-3


def test_half_an_emoji_as_an_answer_ends_nothing(tiny_checkpoint, tmp_path):
    """It does not stand in its context, and counts in scores: the last file of the run was a traceback."""
    config = make("QuestionAnswering", tmp_path)
    content = json.loads((tmp_path / "dev.json").read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "\ud83d"
    (tmp_path / "dev.json").write_text(json.dumps(content))
    words = ["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--workdir", str(tmp_path / "run"),
             "--seeds", "1", "--set", "train.steps=2"]
    assert cli.main(words) == 0
    assert "\\ud83d" in (tmp_path / "run" / "seed-0" / "predictions.tsv").read_text("utf-8")


@pytest.mark.slow
def test_what_is_refused(tiny_checkpoint, tmp_path, capfd):
    data, out = write_reviews(tmp_path / "reviews.csv"), tmp_path / "run"
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "blank.csv").write_text("review,stars\n cat ,red\n   ,blue\n")
    (tmp_path / "one.csv").write_text("review,stars\ncat,red\ndog,red\n")
    (tmp_path / "few.csv").write_text("review,stars\ncat,red\ndog,blue\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()

    def refused(*parts, **changes):
        options = {"checkpoint": tiny_checkpoint, "data": data, "texts": "review", "label": "stars", "workdir": out} | changes
        words = [str(word) for name, value in options.items() if value is not None for word in (f"--{name}", value)]
        before = sorted(tmp_path.rglob("*"))
        assert cli.main(["finetune", *words]) == 1
        begun = ("bert-jax: WARNING", "classification of 2 labels", "tokenising the data")  # what is said on the way
        lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(begun)]
        assert len(lines) == 1 and lines[0].startswith("bert-jax: error: "), lines
        assert all(str(part) in lines[0] for part in parts), lines[0]
        assert sorted(tmp_path.rglob("*")) == before

    refused("there is no such file or directory", checkpoint=tmp_path / "absent")
    refused("--data needs --checkpoint", checkpoint=None)
    refused("--data needs --label", label=None)
    refused("no column 'text'; there are review, stars, value", texts="text")
    refused("no column 'star'", label="star")
    refused("empty.csv", data=tmp_path / "empty.csv")
    refused("blank.csv: line 3 has nothing in column 'review'", data=tmp_path / "blank.csv")
    refused("every row has the label 'red'", data=tmp_path / "one.csv", heldout=data)
    refused("too few rows to hold some out: name another file (--heldout)", data=tmp_path / "few.csv")
    refused("absent.csv: cannot be read", data=tmp_path / "absent.csv")
    refused("a regression needs numbers", kind="regression")
    refused("full exists and is no work directory of finetune", workdir=tmp_path / "full")
    refused("seeds is 0", seeds=0)
    refused("epochs is 0", epochs=0)
    refused("there is no field 'train.step'", set="train.step=3")
    refused("optimizer.warmup_steps 50 is not below train.steps", set="optimizer.warmup_steps=50")
    refused("train.best is 'rmse', of which the largest would be kept: write -rmse", set="train.best=rmse")
    refused("train.best is 'classifier_loss', of which the largest", set="train.best=classifier_loss")
    refused("all of 2 layers and the embeddings would train after 900 updates", set="optimizer.unfreeze_every=300")
    refused("an address is no folder of this machine", workdir="gs://bucket/run")
    refused("task.init beside --checkpoint", "use --checkpoint alone", set="task.init=elsewhere")
    refused("--set task.encoder.layers: the checkpoint decides", set="task.encoder.layers=1")
    refused("--epochs and --set train.steps both say", epochs=1, set="train.steps=9")
    refused("--texts goes with --data", data=None, label=None, config=tmp_path / "x.py")
    refused("x.py: no such configuration file", data=None, texts=None, label=None, config=tmp_path / "x.py")
