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
from bert_jax import cli, finetuning
from bert_jax.errors import BertJaxError
from bert_jax.files import locked
from bert_jax.finetuning import fit, primary_score
from bert_jax.parallel.mesh import make_mesh
from bert_jax.reporting import card
from bert_jax.tasks import finetuning_task
from bert_jax.tasks.base import predict, without_anchors
from bert_jax.tasks.datasets import Named
from bert_jax.training import record
from bert_jax.training import step as step_module
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment
from bert_jax.training.pretrain import load_config
from tests.tasks.tiny_tasks import make_task

WORDS = "cat dog bird mat road tree".split()
CONFIG = """
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks import {kind}
from bert_jax.tasks.tables import Table
from bert_jax.tasks.columns import conllu, Columns
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.choice import Questions
from bert_jax.tasks.masked_words import Cloze
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config():
    return Experiment(
        {kind}(
            finetuned_encoder(EncoderConfig(), {labels}, {heads}), "nowhere", {data}, {heldout}, lengths=(16,), shapes=2{more}
        ),
        AdamW(learning_rate=2e-3, warmup_steps=1, bias_correction=True),
        TrainConfig(steps=6, batch_size=8, eval_every=3, save_every=3, log_every=3, eval_batches=None, keep=1),
    )
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


def sentences(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = rng.choice(WORDS, rng.integers(2, 6))
        rows.append((" ".join(words), "red" if words[0] < "d" else "blue", f"{len(words)}.5"))
    return rows


def make(kind: str, folder: pathlib.Path) -> str:
    """The configuration of a kind, with data beside it."""
    for name, count, seed in (("train", 40, 0), ("dev", 13, 1)):
        rows = sentences(count, seed)
        (folder / f"{name}.tsv").write_text("sentence\tcolour\tvalue\n" + "".join("\t".join(row) + "\n" for row in rows))
        (folder / f"{name}.tags").write_text("".join(
            "".join(f"{word}\t{'B-X' if word < 'd' else 'O'}\n" for word in row[0].split()) + "\n" for row in rows
        ))
        (folder / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": row[0], "qas": [{
            "id": f"{name}{k}", "question": "she ran", "answers": [{"text": row[0].split()[1], "answer_start": len(
                row[0].split()[0]) + 1}]}]} for k, row in enumerate(rows)]}]}))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(
            {"first": row[0], "a": "the cat", "b": "the dog", "label": "AB"[row[1] == "red"]}) + "\n" for row in rows))

    def table(name, label):
        return f'Table({str(folder / f"{name}.tsv")!r}, ("sentence",), {label!r})'

    sources = {
        "Classification": lambda name: table(name, "colour"), "Regression": lambda name: table(name, "value"),
        "Tagging": lambda name: f"Columns({str(folder / f'{name}.tags')!r})",
        "QuestionAnswering": lambda name: f"Squad({str(folder / f'{name}.json')!r})",
        "Choice": lambda name: f'Questions({str(folder / f"{name}.jsonl")!r}, ("first",), ("a", "b"), "label")',
        "MaskedWords": lambda name: f'Cloze({table(name, "colour")}, "{{0}} [MASK]", ("red", "blue"), ("red", "blue"))',
    }
    labels = {"Classification": ("red", "blue"), "Regression": ("value",), "Tagging": ("O", "B-X", "I-X")}
    heads = {"Tagging": ("tagger",), "QuestionAnswering": ("span",), "Choice": ("pooler", "choice"), "MaskedWords": ("mlm",)}
    more = {"Regression": ", offset=4.0, scale=2.0", "QuestionAnswering": ", question_tokens=4, answer_tokens=4, stride=4"}
    (folder / f"{kind}.py").write_text(CONFIG.format(
        kind=kind, labels=labels.get(kind, ()), heads=heads.get(kind, ("pooler", "classifier")), data=sources[kind]("train"),
        heldout=sources[kind]("dev"), more=more.get(kind, ""),
    ))
    return str(folder / f"{kind}.py")


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
    assert bert_jax.load(folder / "model").config.hidden_width == 32


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
        start = bert_jax.load(folder / "model")._replace(origin=None)  # which says that it was trained on single texts
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


def test_scores_of_a_part_of_the_held_out_data_are_said_to_be(tiny_checkpoint, tmp_path, caplog):
    path = make("Classification", tmp_path)
    assert cli.main(["finetune", "--config", path, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--workdir",
                     str(tmp_path / "run"), "--set", "train.eval_batches=1"]) == 0
    assert "scores are of 8 of the 13 held-out examples, since train.eval_batches is 1" in caplog.text
    assert " and measured on 8 of " in (tmp_path / "run" / "README.md").read_text()


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


def test_what_transformers_does_not_have_is_written_in_our_form(run, tiny_checkpoint, tmp_path, caplog, monkeypatch):
    def train_once(*words, **options):
        assert "model: in the form of bert_jax, not for transformers: heads that read" in caplog.text, "said first"
        return train_module.train(*words, **options)

    monkeypatch.setattr(finetuning, "train", train_once)
    config = str(run("Classification").parent / "Classification.py")
    assert cli.main(["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--workdir",
                     str(tmp_path / "mix"), "--set", "task.encoder.read_layers=[1,2]"]) == 0
    assert caplog.text.count("in the form of bert_jax") == 1
    assert (tmp_path / "mix" / "model" / "model.json").is_file()
    assert 'library_name: "bert_jax"' in (tmp_path / "mix" / "model" / "README.md").read_text()
    answers = list(bert_jax.predict(tmp_path / "mix", texts()))
    rows = (tmp_path / "mix" / "seed-0" / "predictions.tsv").read_text().splitlines()[1:]
    assert [answer["label"] for answer in answers] == [row.split("\t")[2] for row in rows]


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
        fit(load_config(pathlib.Path(__file__).parent / "tiny_bert.py"))


def test_what_python_gives_instead_of_an_experiment_is_said(tmp_path):
    wanted = r"recipe.recipe makes an experiment of a model and own_data\(FILE, ...\), bert_jax.training.pretrain.load_config"
    with pytest.raises(BertJaxError, match=f"takes an experiment, not 'tiny': .*{wanted}"):
        bert_jax.finetune("tiny", tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    assert finetuning._without_folders(argument) == published


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


@pytest.mark.parametrize(("kind", "kept"), [
    ("Classification", {"length": 16, "texts": 1, "truncate": "start"}), ("Tagging", {"length": 16}),
    ("QuestionAnswering", {"length": 16, "stride": 4, "question_tokens": 4, "answer_tokens": 4}),
])
def test_the_exported_folder_alone_answers_as_the_work_directory(kind, kept, run):
    folder = run(kind)
    assert json.loads((folder / "model" / "config.json").read_text())["bert_jax_predictor"] == kept
    given = {"Classification": ["cat dog bird " * 8, "road"], "Tagging": [("cat", "dog") * 20],
             "QuestionAnswering": [("she ran", "cat dog bird mat road tree " * 6)]}[kind]
    assert list(bert_jax.predict(folder / "model", given)) == list(bert_jax.predict(folder, given))
    if kind == "Classification":
        with pytest.raises(BertJaxError, match="the model needs a text alone"):
            list(bert_jax.predict(folder / "model", [("cat", "dog")]))


def test_the_folder_of_unanswerable_questions_says_so_too(run, tiny_checkpoint, tmp_path):
    config = str(run("QuestionAnswering").parent / "QuestionAnswering.py")
    words = ["finetune", "--config", config, "--checkpoint", str(tiny_checkpoint), "--seeds", "1", "--workdir",
             str(tmp_path / "run"), "--set", "task.null_threshold=-1e9"]
    assert cli.main(words) == 0
    (answer,) = bert_jax.predict(tmp_path / "run" / "model", [("she ran", "cat dog")])
    assert answer["text"] == "" and answer["start"] == -1 and answer["span"]
    path = tmp_path / "run" / "model" / "config.json"
    for wrong, message in (({"strides": 3}, "bert_jax_predictor in its config.json"), ({"stride": 0}, "it must be at least 1"),
                           ({"length": "x"}, "bert_jax_predictor in its config.json"), ([], None)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bert_jax_predictor": wrong}))
        if message is None:  # nothing is said: defaults
            assert list(bert_jax.predict(tmp_path / "run" / "model", [("she ran", "cat dog")]))
            continue
        with pytest.raises(BertJaxError, match=message):
            list(bert_jax.predict(tmp_path / "run" / "model", [("she ran", "cat dog")]))


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
