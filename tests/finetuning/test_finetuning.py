"""bert-jax finetune from the shell: every kind leaves all that it should, and transformers answers the same."""

import ast
import csv
import dataclasses
import html
import html.parser
import json
import os
import pathlib
import re
import shutil
import signal
import statistics

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli, predicting
from bert_jax.errors import BertJaxError
from bert_jax.finetuning import fit, primary_score, seeds
from bert_jax.parallel.mesh import make_mesh
from bert_jax.reporting import card
from bert_jax.tasks import finetuning_task, squad
from bert_jax.tasks.answering import Answering
from bert_jax.tasks.base import without_anchors
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.squad import Squad
from bert_jax.training import step as step_module
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment
from bert_jax.training.pretrain import load_config
from tests.finetuning_runs import WORDS, make, sentences
from tests.tasks.plain_answers import predict
from tests.tasks.tiny_tasks import make_task


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


class References(html.parser.HTMLParser):
    """What a page would fetch, and whether its elements are closed."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open, self.images = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.images += tag == "img"
        links = [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self.fetched += [link for link in links if not link.startswith("data:image/png")]
        self.fetched += [tag] * (tag in ("script", "link", "iframe", "object"))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


PICTURES = {
    "Classification": {"confusion", "calibration"}, "Regression": {"scatter", "residuals"}, "Choice": {"calibration"},
    "Tagging": {"f1_by_label", "confusion"}, "QuestionAnswering": {"span_errors"}, "MaskedWords": {"confusion", "calibration"},
}


@pytest.fixture(scope="module")
def run(tiny_checkpoint, tmp_path_factory):
    """``run(kind)``: the work directory of two seeds of that kind, trained once for all tests here."""
    made = {}

    def get(kind: str) -> pathlib.Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            arguments = ["finetune", "--config", make(kind, folder), "--checkpoint", str(tiny_checkpoint), "--seeds", "2",
                         "--workdir", str(folder / "run")]
            assert cli.main(arguments) == 0
            made[kind] = folder / "run"
        return made[kind]

    return get


@pytest.mark.parametrize("kind", PICTURES)
def test_what_every_kind_leaves(kind, run):
    folder = run(kind)
    found = json.loads((folder / "scores.json").read_text())
    evaluations = [json.loads((folder / f"seed-{seed}" / "result.json").read_text())["scores"] for seed in (0, 1)]
    for name, row in found["scores"].items():
        values = [evaluation[name] for evaluation in evaluations]
        assert row["seeds"] == {"0": values[0], "1": values[1]} and row["mean"] == pytest.approx(statistics.mean(values))
        assert row["deviation"] == pytest.approx(statistics.stdev(values))
        assert row["best"] == (min if name in ("loss", "rmse") else max)(values)
    assert {path.stem for path in folder.glob("*.png")} == PICTURES[kind] | {"curves"}
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in folder.glob("*.png"))
    page = (folder / "report.html").read_text()
    references = References()
    references.feed(page)
    assert references.fetched == [] and references.open == [] and references.images == len(PICTURES[kind]) + 1
    assert not re.search(r"url\(|@import|https?://", page)
    assert f"finetune --config {folder.parent}" in page and "jax 0." in page and "learning_rate" in page
    rows = list(csv.reader((folder / "seed-1" / "predictions.tsv").open(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 14 and {len(row) for row in rows} == {len(rows[0])} and {"label", "prediction"} <= set(rows[0])
    if "accuracy" in evaluations[1] and kind != "Tagging":
        label, prediction = rows[0].index("label"), rows[0].index("prediction")
        hits = [row[label] == row[prediction] for row in rows[1:]]
        assert evaluations[1]["accuracy"] == pytest.approx(np.mean(hits)), "the table's scores are those of the predictions"
    official = folder / "seed-1" / "predictions.json"
    assert official.exists() is (rows[0][0] == "id") is (kind == "QuestionAnswering")
    if kind == "QuestionAnswering":
        assert rows[0][1:] == ["question", "context", "label", "prediction", "start", "score", "null_score"]
        said = json.loads(official.read_text())
        assert said == {row[0]: row[4] for row in rows[1:]} and "dev0" in said
        assert all(row[2][int(row[5]) :].startswith(row[4]) and float(row[6]) != float(row[7]) for row in rows[1:])
        golds = Squad(str(folder.parent / "dev.json")).read().labels
        assert squad.scores([said[gold.id] for gold in golds], golds)["f1"] == pytest.approx(evaluations[1]["f1"])
    assert bert_jax.load(folder / "model").config.hidden_width == 32


@pytest.mark.slow
def test_the_report_takes_what_was_answered_after_training(tiny_checkpoint, tmp_path, monkeypatch):
    asked = []
    stream = Answering.stream
    monkeypatch.setattr(Answering, "stream", lambda *words: asked.append(1) or stream(*words))
    words = ["finetune", "--config", make("Classification", tmp_path), "--checkpoint", str(tiny_checkpoint), "--workdir",
             str(tmp_path / "run"), "--export", "best"]
    assert cli.main([*words, "--seeds", "1"]) == 0 and len(asked) == 1
    assert cli.main([*words, "--seeds", "1"]) == 0 and len(asked) == 2, "nothing was trained: the report alone asks"


@pytest.mark.parametrize("kind", PICTURES)
def test_cards_are_what_the_hub_reads(kind, run):
    hub = pytest.importorskip("huggingface_hub")
    folder = run(kind)
    text = (folder / "README.md").read_text()
    assert text == (folder / "model" / "README.md").read_text()
    assert "{" not in re.sub(r"```python.*?```", "", text.split("---")[2], flags=re.S)
    data = hub.ModelCard(text).data
    assert data.library_name == "transformers" and data.base_model is None and data.language is None
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert results == {name: row["seeds"]["0"] for name, row in scores.items() if name != "loss"}
    assert "## Limits" in text and str(folder.parent) not in text, "a card has no paths of the machine"


def run_snippet(card: str, folder: pathlib.Path, changes: dict[str, str], capsys) -> str:
    """What the code of a card prints, with the folder of the model and one's own texts in it."""
    (code,) = re.findall(r"^```python\n(.*?)^```", card, flags=re.M | re.S)
    for old, new in (changes | {"FOLDER": str(folder)}).items():
        assert old in code
        code = code.replace(old, new)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {"__name__": "card"})
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("kind", PICTURES)
def test_the_code_on_every_card_runs_and_answers_as_we_do(kind, run, capsys):
    pytest.importorskip("transformers")
    folder, text = run(kind), "the dog sat on a mat"
    asked = {"QuestionAnswering": ("she ran", text), "Choice": (text, "the cat", "the dog"),
             "MaskedWords": (f"{text} [MASK]", *WORDS)}.get(kind, text)
    (ours,) = bert_jax.predict(folder, [asked])
    changes = {
        "QuestionAnswering": {"a question": "she ran", "a context in which the answer is": text},
        "Choice": {"a first text": text, "a choice": "the cat", "another": "the dog"}, "MaskedWords": {"a text with": text},
    }.get(kind, {"a text": text})
    said = run_snippet((folder / "model" / "README.md").read_text(), folder / "model", changes, capsys)
    if kind == "QuestionAnswering":
        assert said == ours["text"] != ""
    elif kind == "Choice":
        assert f"{ours['probability']:.3f}" in said
    elif kind == "Tagging":
        assert {one["entity"] for one in ast.literal_eval(said.replace("np.float32", ""))} == set(ours["tags"]) - {"O"}
    elif kind == "MaskedWords":
        assert len(ast.literal_eval(said)) == 5
    else:
        (theirs,) = ast.literal_eval(said)
        assert theirs["label"] == ours.get("label", "value")
        assert theirs["score"] == pytest.approx(ours.get("probability", ours.get("value")), abs=1e-4)


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("transformers", [True, False])
def test_code_for_pairs_and_for_our_own_form_runs(kind, transformers, run, tmp_path, capsys):
    if transformers:
        pytest.importorskip("transformers")
    folder, task = run(kind), load_config(run(kind).parent / f"{kind}.py").task
    model, changes = folder / "model", {"a context in which the answer is": "the cat"} if kind == "QuestionAnswering" else {}
    if not transformers and kind == "QuestionAnswering":
        model = folder  # which knows its windows: those of whoever asks a bare model have no room in 32 positions
    elif not transformers:
        model = tmp_path / "own"
        start = bert_jax.load(folder / "model")._replace(origin=None, predictor=None)  # it was trained on single texts
        bert_jax.save(start, model, format="bert_jax")
    assert run_snippet(f"```python\n{card._use(task, 2, transformers)}\n```", model, changes, capsys)


def test_table_report_and_card_say_of_which_label_f1_is(run):
    note, folder = "f1 is that of the label 'blue'.", run("Classification")
    for name in ("scores.md", "README.md", "model/README.md"):
        assert f"|\n\n{note}\n" in (folder / name).read_text()
    assert f"<p>{html.escape(note)}</p>" in (folder / "report.html").read_text()
    for kind in ("Tagging", "QuestionAnswering"):
        assert "f1" in (run(kind) / "scores.md").read_text() and "f1 is that" not in (run(kind) / "report.html").read_text()


def texts() -> list[str]:
    return [row[0] for row in sentences(13, 1)]


@pytest.mark.parametrize("kind", ["Classification", "Regression", "Tagging", "QuestionAnswering", "MaskedWords"])
def test_transformers_pipelines_answer_the_same(kind, run):
    transformers = pytest.importorskip("transformers")
    folder = run(kind)
    answers = {
        "QuestionAnswering": lambda: [("she ran", text) for text in texts()],
        "Tagging": lambda: [tuple(text.split()) for text in texts()],
        "MaskedWords": lambda: [(f"{text} [MASK]", "red", "blue") for text in texts()],
    }.get(kind, texts)()
    ours = list(bert_jax.predict(folder, answers, batch_size=4))
    model = str(folder / "model")
    if kind == "QuestionAnswering":
        import torch

        network = transformers.AutoModelForQuestionAnswering.from_pretrained(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        for (question, context), answer in zip(answers, ours, strict=True):
            encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
            offsets, kinds = encoded.pop("offset_mapping")[0], encoded.sequence_ids(0)
            with torch.no_grad():
                out = network(**encoded)
            inside = [k for k, kind in enumerate(kinds) if kind == 1]
            best = max(((out.start_logits[0, a] + out.end_logits[0, b]).item(), -a, -b) for a in inside for b in inside
                       if a <= b < a + 4)
            assert answer["score"] == pytest.approx(best[0], abs=1e-4)
            assert answer["text"] == context[offsets[-best[1]][0]:offsets[-best[2]][1]]
        return
    names = {"Tagging": "token-classification", "MaskedWords": "fill-mask"}
    pipe = transformers.pipeline(names.get(kind, "text-classification"), model=model)
    for text, answer in zip(texts(), ours, strict=True):
        if kind == "Classification":
            theirs = {one["label"]: one["score"] for one in pipe(text, top_k=None)}
            assert max(theirs, key=theirs.get) == answer["label"]
            assert {name: answer[f"probability of {name}"] for name in theirs} == pytest.approx(theirs, abs=1e-5)
        elif kind == "Regression":
            (theirs,) = pipe(text, top_k=None)
            assert theirs["label"] == "value" and theirs["score"] == pytest.approx(answer["value"], abs=1e-4)
        elif kind == "Tagging":
            theirs = {one["start"]: one["entity"] for one in pipe(text)}
            starts = np.cumsum([0] + [len(word) + 1 for word in text.split()])[:-1]
            assert [theirs.get(int(start), "O") for start in starts] == answer["tags"]
        else:
            theirs = {one["token_str"]: one["score"] for one in pipe(f"{text} [MASK]", targets=["red", "blue"])}
            assert np.exp(answer["log probability of red"]) == pytest.approx(theirs["red"], abs=1e-5)


@pytest.mark.slow
def test_seeds_at_once_come_to_the_same_table(run, tiny_checkpoint, tmp_path):
    config, folder = run("Classification").parent / "Classification.py", tmp_path / "run"
    arguments = ["finetune", "--config", str(config), "--checkpoint", str(tiny_checkpoint), "--workdir", str(folder)]
    assert cli.main([*arguments, "--seeds", "2", "--at-once", "2"]) == 0
    found, expected = (json.loads((one / "scores.json").read_text())["scores"] for one in (folder, run("Classification")))
    for name, row in expected.items():
        assert found[name]["seeds"] == pytest.approx(row["seeds"], abs=1e-3), name
    assert {path.name for path in folder.iterdir()} == {path.name for path in run("Classification").iterdir()}
    assert cli.main([*arguments, "--seeds", "3", "--at-once", "2"]) == 0  # one more: alone
    assert sorted(json.loads((folder / "scores.json").read_text())["scores"]["accuracy"]["seeds"]) == ["0", "1", "2"]
    assert bert_jax.load(folder / "seed-1").config.labels == ("red", "blue")


def test_seeds_at_once_that_are_refused_leave_nothing(run, tiny_checkpoint, tmp_path, capfd):
    config, folder = run("Classification").parent / "Classification.py", tmp_path / "run"
    arguments = ["finetune", "--config", str(config), "--checkpoint", str(tiny_checkpoint), "--workdir", str(folder)]
    capfd.readouterr()
    assert cli.main([*arguments, "--seeds", "2", "--at-once", "2", "--set", "train.best=accuracy"]) == 1
    assert "end together" in capfd.readouterr().err and not folder.exists()
    assert cli.main([*arguments, "--at-once", "0"]) == 1
    assert "at_once is 0" in capfd.readouterr().err and not folder.exists()


def test_the_work_directory_is_read_everywhere(run, tmp_path, capfd):
    """As its ``model`` is, by every verb that takes a checkpoint."""
    folder = run("Classification")
    found, wanted = bert_jax.load(folder), bert_jax.load(folder / "model")
    assert found.config == wanted.config and jax.tree.all(jax.tree.map(np.array_equal, found.params, wanted.params))
    capfd.readouterr()
    assert cli.main(["inspect", str(folder)]) == 0 and f"Hugging Face directory {folder / 'model'}" in capfd.readouterr().out
    for words in (["export", str(folder), str(tmp_path / "out")],
                  ["convert", "--from", str(folder), "--to", str(tmp_path / "own"), "--format", "bert_jax"]):
        assert cli.main(words) == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (folder / "model/model.safetensors").read_bytes()
    experiment, model = fit(load_config(folder.parent / "Classification.py"), str(folder))
    begun = finetuning_task(experiment.task, model).start(jax.random.key(5))
    assert np.array_equal(begun["classifier"]["dense"]["kernel"], wanted.params["classifier"]["dense"]["kernel"])
    with pytest.raises(BertJaxError, match=f"name one, as in {folder}/seed-0@6"):
        bert_jax.load(f"{folder}@6")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/finetune.json").write_bytes((folder / "finetune.json").read_bytes())
    with pytest.raises(BertJaxError, match="begun: its fine-tuning is not finished: the same bert-jax finetune continues it"):
        bert_jax.inspect(tmp_path / "begun")


def test_a_choice_model_loads(run):
    transformers = pytest.importorskip("transformers")
    folder = run("Choice")
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    encoded = tokenizer([texts()[0]] * 2, ["the cat", "the dog"], return_tensors="pt", padding=True)
    theirs = model(**{name: value[None] for name, value in encoded.items()}).logits.softmax(-1)[0].detach().numpy()
    (answer,) = bert_jax.predict(folder, [(texts()[0], "the cat", "the dog")])
    assert answer["probability"] == pytest.approx(theirs.max(), abs=1e-5) and answer["choice"] == theirs.argmax()


@pytest.mark.slow
def test_interrupted_seeds_go_on_to_the_same_table(run, tiny_checkpoint, tmp_path, monkeypatch, capfd):
    whole = run("Classification")
    config = str(whole.parent / "Classification.py")
    arguments = ["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--seeds", "2", "--workdir",
                 str(tmp_path / "run")]
    make_step, calls = step_module.make_train_step, []

    def step_that_is_stopped(*words, **options):
        step = make_step(*words, **options)

        def stopping(state, batch):
            calls.append(int(state.key[1]))
            if calls == [0] * 6 + [1] * 2:  # within the second seed
                os.kill(os.getpid(), signal.SIGTERM)
            return step(state, batch)

        return stopping

    monkeypatch.setattr(step_module, "make_train_step", step_that_is_stopped)
    assert cli.main(arguments) == 75
    assert not (tmp_path / "run" / "scores.json").exists() and (tmp_path / "run" / "seed-0" / "result.json").exists()
    with pytest.raises(BertJaxError, match="not finished: the same bert-jax finetune continues it"):
        list(bert_jax.predict(tmp_path / "run", ["cat"]))
    assert cli.main(arguments) == 0 and calls == [0] * 6 + [1] * 6
    for name in ("scores.tsv", "seed-0/predictions.tsv", "seed-1/predictions.tsv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    capfd.readouterr()
    assert cli.main(arguments) == 0 and len(calls) == 12  # all is there: only the report is made again
    assert "mean" in capfd.readouterr().out
    assert cli.main([*arguments, "--seeds", "3"]) == 0 and len(calls) == 18
    assert cli.main([*arguments, "--set", "optimizer.learning_rate=1e-5"]) == 1
    assert "holds another fine-tuning: optimizer.learning_rate was 0.002, is now 1e-05" in capfd.readouterr().err


@pytest.mark.slow
def test_the_best_seed_is_exported_where_asked(run, tiny_checkpoint, tmp_path):
    folder = run("Regression")
    arguments = ["finetune", "--config", str(folder.parent / "Regression.py"), "--checkpoint", str(tiny_checkpoint), "--seeds",
                 "3", "--workdir", str(tmp_path / "run"), "--export", "best"]
    assert cli.main(arguments) == 0
    found = json.loads((tmp_path / "run" / "scores.json").read_text())
    seeds = found["scores"]["rmse"]["seeds"]
    assert str(found["exported_seed"]) == min(seeds, key=seeds.get) and found["chosen_by"] == "-rmse"
    assert "the best by the held-out examples was taken" in (tmp_path / "run" / "README.md").read_text()
    values = [answer["value"] for answer in bert_jax.predict(tmp_path / "run", texts())]
    wanted = [float(row[2]) for row in sentences(13, 1)]
    assert np.sqrt(np.mean(np.square(np.subtract(values, wanted)))) == pytest.approx(min(seeds.values()), abs=1e-4)


@pytest.mark.slow
def test_a_single_seed_answers_too_and_lora_is_merged(run, tiny_checkpoint, tmp_path):
    folder = run("Regression")
    wanted = [answer["value"] for answer in bert_jax.predict(folder, texts())]
    found = [answer["value"] for answer in bert_jax.predict(folder / "seed-0", texts())]
    assert found == pytest.approx(wanted, abs=1e-5) and np.mean(wanted) > 2, "its offset and scale are in it"
    config = str(folder.parent / "Regression.py")
    arguments = ["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--seeds", "1"]
    assert cli.main([*arguments, "--workdir", str(tmp_path / "lora"), "--set", "task.encoder.lora_rank=2"]) == 0
    assert bert_jax.load(tmp_path / "lora" / "model").config.lora_rank == 0
    found = json.loads((tmp_path / "lora" / "scores.json").read_text())["scores"]["rmse"]
    assert found["deviation"] is None
    values = [answer["value"] for answer in bert_jax.predict(tmp_path / "lora", texts())]
    assert np.sqrt(np.mean([(value - float(row[2])) ** 2 for value, row in zip(values, sentences(13, 1), strict=True)])
                   ) == pytest.approx(found["mean"], abs=1e-4)


def test_every_way_to_load_a_regression_gives_the_value_itself(run, tmp_path):
    """What a seed trains is a head of standardised values; export and bert_jax.load give that of the values."""
    folder = run("Regression")
    wanted = [answer["value"] for answer in bert_jax.predict(folder, texts())]
    assert cli.main(["export", str(folder / "seed-0"), str(tmp_path / "out")]) == 0
    for model in (tmp_path / "out", bert_jax.load(folder / "seed-0"), bert_jax.load(f"{folder / 'seed-0'}@6")):
        assert [answer["value"] for answer in bert_jax.predict(model, texts())] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("first", ["model", "seed-0"])
def test_a_second_stage_of_a_regression_begins_with_the_values_of_the_first(first, run):
    folder = run("Regression")
    wanted = [answer["value"] for answer in bert_jax.predict(folder, texts())]
    changes = ["task.offset=50.0", "task.scale=10.0", "task.tricks=[{\"kind\": \"Mixout\"}]"]
    experiment, model = fit(load_config(folder.parent / "Regression.py"), str(folder / first), changes)
    task = finetuning_task(experiment.task, model)
    begun = task.start(jax.random.key(5))
    np.testing.assert_array_equal(begun["anchor"]["mixout"]["classifier"]["dense"]["kernel"],
                                  begun["classifier"]["dense"]["kernel"])  # no new head: it is mixed with what it was
    answers, outputs = predict(task.predictor, task.finished(begun), [(text,) for text in texts()], (16,))
    assert [answer["value"] for answer in answers] == pytest.approx(wanted, abs=1e-3)
    _, outputs = predict(task.predictor, without_anchors(begun), [(text,) for text in texts()], (16,))
    rmse = task.score(task.heldout, answers, outputs)["rmse"]
    labels = [float(label) for label in task.heldout.labels]
    assert rmse == pytest.approx(np.sqrt(np.mean(np.square(np.subtract(wanted, labels)))), abs=1e-3)


@pytest.mark.slow
def test_what_transformers_does_not_have_is_written_in_our_form(run, tiny_checkpoint, tmp_path, caplog, monkeypatch):
    def train_once(*words, **options):
        assert "model: in the form of bert_jax, not for transformers: heads that read" in caplog.text, "said first"
        return train_module.train(*words, **options)

    config = str(run("Classification").parent / "Classification.py")
    monkeypatch.setattr(seeds, "train", train_once)
    assert cli.main(["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--workdir",
                     str(tmp_path / "mix"), "--set", "task.encoder.read_layers=[1,2]"]) == 0
    assert caplog.text.count("in the form of bert_jax") == 1
    assert (tmp_path / "mix" / "model" / "model.json").is_file()
    assert 'library_name: "bert_jax"' in (tmp_path / "mix" / "model" / "README.md").read_text()
    answers = list(bert_jax.predict(tmp_path / "mix", texts()))
    rows = (tmp_path / "mix" / "seed-0" / "predictions.tsv").read_text().splitlines()[1:]
    assert [answer["label"] for answer in answers] == [row.split("\t")[2] for row in rows]
    alone = bert_jax.load(tmp_path / "mix" / "model")
    assert alone.predictor == {"length": 16, "texts": 1, "truncate": "start"}
    long = ["cat dog bird " * 8, "road"]
    assert list(bert_jax.predict(alone, long)) == list(bert_jax.predict(tmp_path / "mix", long))
    bert_jax.save(alone, tmp_path / "copy", format="bert_jax")
    assert bert_jax.load(tmp_path / "copy").predictor == alone.predictor


def test_a_value_in_our_form_is_one_whatever_its_start_was(run, tiny_checkpoint, tmp_path, caplog):
    start = tmp_path / "start"
    shutil.copytree(tiny_checkpoint, start)
    path = start / "config.json"
    stated = {"problem_type": "multi_label_classification", "bert_jax_predictor": {"length": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | stated))
    config = str(run("Regression").parent / "Regression.py")
    assert cli.main(["finetune", "--config", config, "--checkpoint", str(start), "--seeds", "1", "--workdir",
                     str(tmp_path / "run"), "--set", "task.encoder.read_layers=[1,2]", "--set", "train.steps=2",
                     "--set", "train.eval_every=2"]) == 0
    caplog.clear()
    long = ["cat dog bird " * 8, "road"]
    ours, theirs = (list(bert_jax.predict(tmp_path / place, long)) for place in ("run/model", "run"))
    assert ours == theirs and "problem_type" not in caplog.text


def test_a_configuration_need_not_repeat_the_encoder(run, tiny_checkpoint, tmp_path):
    experiment = load_config(run("Classification").parent / "Classification.py")
    assert experiment.task.encoder.hidden_width == 768
    fitted, model = fit(experiment, str(tiny_checkpoint), ["task.encoder.dropout=0.3"])
    assert (fitted.task.encoder.hidden_width, fitted.task.encoder.dropout) == (32, 0.3)
    assert fitted.task.encoder.labels == ("red", "blue") and fitted.task.init == str(tiny_checkpoint)
    assert model.config.hidden_width == 32
    with pytest.raises(BertJaxError, match="--set task.encoder.layers: the checkpoint decides"):
        fit(experiment, str(tiny_checkpoint), ["task.encoder.layers=3"])
    with pytest.raises(BertJaxError, match="the task is Pretraining: finetune runs Classification"):
        fit(load_config(pathlib.Path(__file__).parents[1] / "tiny_bert.py"))


def test_what_is_set_must_fit_the_checkpoint_and_not_the_configuration(run, tiny_checkpoint):
    task = load_config(run("Classification").parent / "Classification.py").task
    small = dataclasses.replace(task, encoder=dataclasses.replace(task.encoder, layers=1, max_length=16))
    encoder = dataclasses.replace(task.encoder, read_layers=(9,))
    large = dataclasses.replace(task, encoder=encoder, lengths=(512,), reinitialise=5)
    assignments = ["task.encoder.read_layers=[2]", "task.reinitialise=2", "task.lengths=[32]"]
    for begun in (small, large):
        fitted, model = fit(Experiment(begun), str(tiny_checkpoint), assignments)
        assert (fitted.task.encoder.layers, fitted.task.encoder.max_length) == (2, 32)
        assert (fitted.task.encoder.read_layers, fitted.task.reinitialise, fitted.task.lengths) == ((2,), 2, (32,))
        alone, _ = fit(Experiment(begun), None, [f"task.init={tiny_checkpoint}", *assignments])
        assert alone == fitted
        finetuning_task(fitted.task, model).start(jax.random.key(0))
    with pytest.raises(BertJaxError, match=r"read_layers is \(3,\): .* to 2"):
        fit(Experiment(large), str(tiny_checkpoint), ["task.encoder.read_layers=[3]", *assignments[1:]])
    with pytest.raises(BertJaxError, match="task.init beside --checkpoint .*: use --checkpoint alone"):
        fit(Experiment(small), str(tiny_checkpoint), ["task.init=elsewhere"])


def test_the_best_seed_is_chosen_by_a_score_that_its_labels_have(run):
    experiment = load_config(run("Tagging").parent / "Tagging.py")

    def by(task):
        return primary_score(dataclasses.replace(experiment, task=task))

    tagging, pairs = experiment.task, make_task("Classification").config
    assert by(tagging) == "f1"
    assert by(dataclasses.replace(tagging, encoder=dataclasses.replace(tagging.encoder, labels=("N", "V")))) == "accuracy"
    mrpc = dataclasses.replace(pairs, heldout=Named("glue/mrpc", "validation"))
    assert by(mrpc) == "accuracy", "three labels have no F1"
    assert by(dataclasses.replace(mrpc, encoder=dataclasses.replace(mrpc.encoder, labels=("no", "yes")))) == "f1"


@pytest.mark.parametrize(("kind", "kept"), [
    ("Classification", {"length": 16, "texts": 1, "truncate": "start"}), ("Tagging", {"length": 16}),
    ("QuestionAnswering", {"length": 16, "stride": 4, "question_tokens": 4, "answer_tokens": 4}),
])
def test_the_exported_folder_alone_answers_as_the_work_directory(kind, kept, run, tmp_path):
    folder = run(kind)
    assert json.loads((folder / "model" / "config.json").read_text())["bert_jax_predictor"] == kept
    given = {"Classification": ["cat dog bird " * 8, "road"], "Tagging": [("cat", "dog") * 20],
             "QuestionAnswering": [("she ran", "cat dog bird mat road tree " * 6)]}[kind]
    answers = list(bert_jax.predict(folder, given))
    assert list(bert_jax.predict(folder / "model", given)) == answers
    seed, out = bert_jax.load(folder / "seed-0"), str(tmp_path / "exported")
    assert seed.predictor == kept and list(bert_jax.predict(seed, given)) == answers
    assert cli.main(["export", str(folder / "seed-0"), out]) == 0
    assert bert_jax.load(out).predictor == kept and list(bert_jax.predict(out, given)) == answers
    if kind == "Classification":
        with pytest.raises(BertJaxError, match="the model needs a text alone"):
            list(bert_jax.predict(folder / "model", [("cat", "dog")]))


@pytest.mark.slow
def test_the_folder_of_unanswerable_questions_says_so_too(run, tiny_checkpoint, tmp_path):
    config = str(run("QuestionAnswering").parent / "QuestionAnswering.py")
    words = ["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--workdir",
             str(tmp_path / "run"), "--set", "task.null_threshold=-1e9"]
    assert cli.main(words) == 0
    (answer,) = bert_jax.predict(tmp_path / "run" / "model", [("she ran", "cat dog")])
    assert answer["text"] == "" and answer["start"] == -1 and answer["span"]
    for place in ("run", "run/model"):
        ready = predicting.load(tmp_path / place, null_threshold=1e9)
        (other,) = bert_jax.predict(ready, [("she ran", "cat dog")])
        assert other == answer | {"text": answer["span"], "start": other["start"]} and other["start"] >= 0
        assert list(bert_jax.predict(tmp_path / place, [("she ran", "cat dog")])) == [answer]
    with pytest.raises(BertJaxError, match="answers no questions about contexts: leave the null threshold out"):
        predicting.load(run("Tagging"), null_threshold=0.0)
    path = tmp_path / "run" / "model" / "config.json"
    for wrong, message in (({"strides": 3}, "bert_jax_predictor beside its weights"), ({"stride": 0}, "it must be at least 1"),
                           ({"length": "x"}, "bert_jax_predictor beside its weights"), ([], None)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bert_jax_predictor": wrong}))
        if message is None:  # nothing is said: defaults
            assert list(bert_jax.predict(tmp_path / "run" / "model", [("she ran", "cat dog")]))
            continue
        with pytest.raises(BertJaxError, match=message):
            list(bert_jax.predict(tmp_path / "run" / "model", [("she ran", "cat dog")]))


FILES = {"Tagging": "dev.tags", "QuestionAnswering": "dev.json", "Choice": "dev.jsonl"}  # of the others dev.tsv


@pytest.mark.parametrize("kind", PICTURES)
def test_all_seeds_are_scored_on_a_file_as_on_the_held_out_data(kind, run):
    folder = run(kind)
    data = folder.parent / FILES.get(kind, "dev.tsv")
    found = bert_jax.evaluate(folder, data)
    wanted = json.loads((folder / "scores.json").read_text())["scores"]
    assert {row.name for row in found.rows} == wanted.keys() - {"loss"} and f"13 examples of {data}" in found.note
    for row in found.rows:
        assert {str(seed): value for seed, value in row.seeds.items()} == pytest.approx(wanted[row.name]["seeds"], abs=1e-4)
        assert row.deviation == pytest.approx(wanted[row.name]["deviation"], abs=1e-4)
    alone = bert_jax.evaluate(folder / "seed-1", data)
    assert alone.seeds == [1] and alone.rows[0].mean == pytest.approx(found.rows[0].seeds[1], abs=1e-6)


def test_evaluate_from_the_shell(run, tmp_path, tiny_store, capfd):
    folder = run("Classification")
    lines = (folder.parent / "dev.tsv").read_text().replace("sentence\tcolour", "text\tlabel").splitlines(keepends=True)
    (tmp_path / "test.tsv").write_text("".join(lines))
    words = ["evaluate", str(folder), "--data", str(tmp_path / "test.tsv")]
    capfd.readouterr()
    assert cli.main([*words, "--texts", "text", "--label", "label"]) == 0
    out, err = capfd.readouterr()
    wanted = json.loads((folder / "scores.json").read_text())["scores"]["accuracy"]
    assert json.loads(out)["accuracy"]["mean"] == pytest.approx(wanted["mean"]) and "13 examples" in err and "deviation" in err
    assert not {path.name for path in tmp_path.iterdir()} - {"test.tsv"}, "nothing is written"

    def refused(*arguments):
        assert cli.main(["evaluate", *map(str, arguments)]) == 1
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("bert-jax: error")]
        return line

    assert "no column 'sentence'; there are text, label, value" in refused(*words[1:])
    (tmp_path / "test.tsv").write_text("".join(lines).replace("red", "green", 1))
    said = refused(*words[1:], "--texts", "text", "--label", "label")
    assert "has the label 'green', task.encoder.labels are red, blue" in said
    assert "--batches goes with a token store" in refused(*words[1:], "--batches", 2)
    for option in (("--label", "label"), ("--null-threshold", 0)):
        assert "--texts, --label and --null-threshold go with a file" in refused(folder, "--data", tiny_store, *option)
    assert "is no work directory of finetune" in refused(folder / "model", "--data", tmp_path / "test.tsv")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/finetune.json").write_bytes((folder / "finetune.json").read_bytes())
    assert "is not finished, nor any seed in it" in refused(tmp_path / "begun", "--data", tmp_path / "test.tsv")
