"""Files of one's own, told by their names, and the recipe that each is fine-tuned by."""

import csv
import dataclasses
import gzip
import json
import logging
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import cli
from bert_jax import config as configuration
from bert_jax.errors import BertJaxError
from bert_jax.finetuning import check_assignments
from bert_jax.models import api
from bert_jax.tasks import Choice, QuestionAnswering, Tagging, finetuning_task
from bert_jax.tasks.choice import Questions
from bert_jax.tasks.columns import Columns, Lists, conllu, iob2
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.tables import Table
from bert_jax.training.optimizer import schedule
from bert_jax.training.pretrain import load_config
from bert_jax.training.recipe import described, own_data, recipe

GUIDE = Path(__file__).parents[2] / "docs" / "finetuning.md"
WORDS = "the cat dog bird sat ran sang on in mat road tree".split()


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return bert_jax.load(tiny_checkpoint)


def write_squad(path, articles=12, unanswerable=False, long=1):
    """Articles of one paragraph and two questions each; the last question has no answer where that is asked for."""
    rng, data = np.random.default_rng(0), []
    for article in range(articles):
        words = list(rng.choice(WORDS, 6 * long))
        entries = [
            {"id": f"{article}-{word}", "question": f"the {words[word]} {article}",
             "answers": [{"text": words[word], "answer_start": sum(len(w) + 1 for w in words[:word])}]}
            for word in (0, 5)
        ]
        if unanswerable and article == articles - 1:
            entries[-1] |= {"answers": [], "is_impossible": True}
        data.append({"paragraphs": [{"context": " ".join(words), "qas": entries}]})
    path.write_text(json.dumps({"data": data}))
    return path


def write_tags(path, count=60, separator="\t", form="columns"):
    rng = np.random.default_rng(0)
    sentences = [[*rng.choice(WORDS, rng.integers(2, 7))] for _ in range(count)]
    tags = [["B-X" if word == "cat" else "O" for word in words] for words in sentences]
    pairs = list(zip(sentences, tags, strict=True))
    if form == "columns":
        lines = ["".join(f"{word}{separator}{tag}\n" for word, tag in zip(*pair, strict=True)) for pair in pairs]
    else:
        lines = [json.dumps({"words": words, "tags": tags}) for words, tags in pairs]
    path.write_text("\n".join(lines))
    return path


def write_choices(path, count=60):
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "one", "two", "three", "right"])
        writer.writerows([" ".join(rng.choice(WORDS, 3)) + str(k), *rng.choice(WORDS, 3), "ABC"[k % 3]] for k in range(count))
    return path


def test_the_name_of_a_file_says_its_kind(tmp_path):
    assert own_data("x.csv", ["a"], "l") == Table("x.csv", ("a",), "l")
    assert own_data("x.tsv.gz", ["a", "b"], "l", "regression") == Table("x.tsv.gz", ("a", "b"), "l")
    assert own_data("x.csv", ["a", "b", "c"], "l") == Questions("x.csv", ("a",), ("b", "c"), "l")
    assert own_data("x.jsonl", ["a", "list"], "l", "choice") == Questions("x.jsonl", ("a",), ("list",), "l")
    assert own_data("x.json") == Squad("x.json")
    assert own_data("x.conllu") == conllu("x.conllu") and own_data("x.iob2") == iob2("x.iob2")
    assert own_data("x.jsonl", kind="tagging") == Lists("x.jsonl")
    assert own_data("x.jsonl", ["tokens"], "ner", "tagging") == Lists("x.jsonl", "tokens", "ner")
    tabs, blanks = write_tags(tmp_path / "x.txt"), write_tags(tmp_path / "y.conll", separator=" ")
    assert own_data(str(tabs), kind="tagging") == Columns(str(tabs))
    assert own_data(str(blanks), ["0"], "1", "tagging") == Columns(str(blanks), 0, 1, "blank")
    assert own_data(str(tabs), kind="tagging").read() == own_data(str(blanks), kind="tagging").read()


@pytest.mark.parametrize(("arguments", "message"), [
    (("x.csv",), "--data needs --texts"), (("x.csv", ["a"]), "--data needs --label"),
    (("x.csv", ["a"], "l", "choice"), "name the column of the first text"),
    (("x.csv", ["a", "b"], "l", "question-answering"), "read from SQuAD's form"),
    (("x.json", ["a"]), "leave --texts out"), (("x.csv", ["a"], "b", "tagging"), "a word a line, or"),
    (("x.conllu", [], "4"), "leave --label out"),
    (("x.txt", ["words"], None, "tagging"), "columns have numbers from 0"),
    (("x.jsonl", ["a", "b"], None, "tagging"), "words are in one column"),
    (("x.conll",), "say --kind tagging"),
])
def test_columns_that_are_missing_or_too_many(arguments, message):
    with pytest.raises(BertJaxError, match=message):
        own_data(*arguments)


def test_answers(model, tmp_path):
    experiment = recipe(model, "m", own_data(str(write_squad(tmp_path / "x.json"))), epochs=4)
    task = experiment.task
    assert isinstance(task, QuestionAnswering) and task.null_threshold is None and task.lengths == (32,)
    assert len(task.data.read().texts) == 22 and len(task.heldout.read().texts) == 2
    assert experiment.train.batch_size == 32 and experiment.optimizer.learning_rate == 5e-5
    assert recipe(model, "m", own_data(str(write_squad(tmp_path / "y.json", unanswerable=True)))).task.null_threshold == 0


def test_the_same_file_held_out_is_said(model, tmp_path, caplog):
    path = write_squad(tmp_path / "x.json")
    recipe(model, "m", own_data(str(path)), own_data(str(tmp_path / "." / "x.json")))
    assert f"{path} is trained on and held out: its scores say nothing of new data" in caplog.text
    caplog.clear()
    recipe(model, "m", own_data(str(path)), own_data(str(write_squad(tmp_path / "y.json"))))
    assert not caplog.text


def test_what_the_start_was_computed_in_does_not_go_on(model, tmp_path):
    """The guide says float32, whatever made the checkpoint; nor does its LoRA, whose product the model begins with."""
    config = dataclasses.replace(model.config, compute_dtype="bfloat16", lora_rank=2, lora_alpha=16.0)
    encoder = recipe(model._replace(config=config), "m", own_data(str(write_squad(tmp_path / "x.json")))).task.encoder
    assert (encoder.compute_dtype, encoder.lora_rank, encoder.lora_alpha) == ("float32", 0, 8.0)


def test_windows_overlap_however_long_they_are(model, tmp_path):
    data = own_data(str(write_squad(tmp_path / "x.json")))
    for assignments, wanted in (
        ((), (10, 8, 8)), (("task.lengths=[24]",), (8, 6, 6)), (("task.lengths=[24]", "task.stride=3"), (3, 6, 6)),
    ):
        task = recipe(model, "m", data, assignments=assignments).task
        assert (task.stride, task.question_tokens, task.answer_tokens) == wanted


def test_a_checkpoint_with_lora_is_trained_as_a_whole_unless_asked(model, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"{word} {k},{'ab'[k % 2]}\n" for k, word in enumerate(WORDS * 10)))
    low_rank = model._replace(config=dataclasses.replace(model.config, lora_rank=2))
    data = own_data(str(path), ["text"], "label")
    assert recipe(low_rank, "m", data).task.encoder.lora_rank == 0
    assert recipe(low_rank, "m", data, assignments=["task.encoder.lora_rank=4"]).task.encoder.lora_rank == 4


def test_an_epoch_of_answers_is_all_windows(model, tmp_path):
    experiment = recipe(model, "m", own_data(str(write_squad(tmp_path / "x.json", articles=60, long=12))), epochs=2)
    windows = len(finetuning_task(experiment.task, model).training.item)
    assert windows > 3 * 108 and experiment.train.steps == round(2 * windows / 32)


def test_what_is_set_comes_before_what_follows_from_it(model, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"{word} {k},{'ab'[k % 2]}\n" for k, word in enumerate(WORDS * 100)))
    data = own_data(str(path), ["text"], "label")
    count = len(recipe(model, "m", data).task.data.read().texts)

    def found(*assignments):
        made = recipe(model, "m", data, epochs=4, assignments=assignments)
        return (made.train.steps, made.train.eval_every, made.train.save_every, made.train.log_every,
                made.optimizer.warmup_steps, made.task.shapes)

    assert 1000 < count < 1200
    for batch in (32, 8):
        each, steps = round(count / batch), round(4 * count / batch)  # four epochs
        expected = (steps, each, each, each // 4, steps // 10, max(2, steps // 100))
        assert found(f"train.batch_size={batch}") == expected, "as many epochs, evaluated after each"
    fifteen = round(2 * count / 32)  # epochs: evaluated after every second one
    assert found("train.steps=500") == (500, fifteen, fifteen, fifteen // 4, 50, 5)
    own = ("train.steps=70", "train.eval_every=7", "train.save_every=9", "train.log_every=3", "optimizer.warmup_steps=5",
           "task.shapes=1")
    assert found(*own, "train.batch_size=8") == (70, 7, 9, 3, 5, 1)
    assert found('optimizer={"kind": "Lamb", "warmup_steps": 11}')[4] == 11
    other = dataclasses.replace(recipe(model, "m", data).task, init="other")
    made = recipe(model, "m", data, assignments=[f"task={json.dumps(configuration.to_json(other))}"])
    assert made.task.init == "m", "records name what was loaded"


def test_small_tables_have_more_epochs(model, tmp_path):
    """Three epochs of 600 sentences of SST-2 left MiniLM-L6 at the share of the larger class."""
    path, found = tmp_path / "x.csv", {}
    for rows in (40, 1100, 2400):
        path.write_text("text,label\n" + "".join(f"{WORDS[k % 12]} {k},{'ab'[k % 2]}\n" for k in range(rows)))
        made = recipe(model, "m", own_data(str(path), ["text"], "label"))
        count = len(made.task.data.read().texts)
        assert made.train.eval_every == made.train.save_every
        found[rows] = made.train.steps, made.train.steps * 32 / count, -(-made.train.steps // made.train.eval_every)
        assert recipe(model, "m", made.task.data, made.task.heldout, epochs=3).train.steps == round(3 * count / 32)
    steps, epochs, evaluations = found[40]
    assert steps < 30 and 19 < epochs < 21 and evaluations <= 10
    steps, epochs, evaluations = found[1100]
    assert steps == 200 and 6 < epochs < 7 and evaluations in (6, 7)
    steps, epochs, evaluations = found[2400]
    assert steps > 200 and 2.98 < epochs < 3.02 and evaluations == 3


def test_a_line_says_what_is_trained(model, tmp_path):
    path, kinds = tmp_path / "x.csv", {"a": [f"{k % 2}" for k in range(200)], "b": [f"{k % 9}x" for k in range(200)],
                                       "c": [f"{1 + k % 2}.5" for k in range(200)]}
    rows = zip(*kinds.values(), strict=True)
    path.write_text("text,a,b,c\n" + "".join(f"cat {k},{','.join(row)}\n" for k, row in enumerate(rows)))
    made = {label: recipe(model, "m", own_data(str(path), ["text"], label)) for label in kinds}
    trained, held = (len(part.read().texts) for part in (made["a"].task.data, made["a"].task.heldout))
    assert trained + held == 200 and 0 < held < 50
    counts = f": {trained} rows, {held} held out; {round(20 * trained / 32)} updates of 32"
    assert described(made["a"]) == f"classification of 2 labels (0, 1){counts}"
    assert described(made["b"]) == f"classification of 9 labels (0x, 1x, 2x, 3x, ..., 8x){counts}"
    assert described(made["c"]).startswith("regression of c (mean 2") and described(made["c"]).endswith(counts)
    turned = recipe(model, "m", own_data(str(path), ["text"], "a"), assignments=['task.encoder.labels=["1", "0"]'])
    assert described(turned) == f"classification of 2 labels (1, 0){counts}"
    labelled = [finetuning_task(one.task, model).training.rows["label"] for one in (made["a"], turned)]
    np.testing.assert_array_equal(labelled[0], 1 - labelled[1])
    squad = recipe(model, "m", own_data(str(write_squad(tmp_path / "x.json"))), epochs=3)
    assert described(squad) == f"question answering: 22 rows, 2 held out; {squad.train.steps} updates of 32"


def test_what_is_wrong_with_a_row_is_said_with_its_number_in_the_file(model, tmp_path):
    path = tmp_path / "x.csv"
    data = own_data(str(path), ["text"], "y")

    def write(texts, values):
        path.write_text("text,y\n" + "".join(f'{text},"{value}"\n' for text, value in zip(texts, values, strict=True)))

    texts, values = [f"cat {k}" for k in range(100)], [f"{k / 2}" for k in range(100)]
    write(texts, values)
    task = recipe(model, "m", data).task
    for part in (task.data, task.heldout):
        row = texts.index(part.read().texts[1][0])
        for wrong in ("N/A", "0,0", "nan", "1e39"):
            write(texts, [wrong if k == row else value for k, value in enumerate(values)])
            message = f"x.csv: a regression needs numbers, not so row {row + 1}, the first is '{wrong}'"
            with pytest.raises(BertJaxError, match=message):
                recipe(model, "m", data, kind="regression")
            with pytest.raises(BertJaxError, match=message):
                made = finetuning_task(task, model)
                _ = made.training, made.evaluation
        write(["\u200b" if k == row else text for k, text in enumerate(texts)], values)
        made = finetuning_task(task, model)
        with pytest.raises(BertJaxError, match=f"x.csv: row {row + 1}: the text has no character that the tokenizer keeps"):
            _ = made.training, made.evaluation
        write(texts, values)
    write(texts, ["3.5"] * 100)
    with pytest.raises(BertJaxError, match="x.csv: every row has the value 3.5: there is nothing to learn"):
        recipe(model, "m", data)


def test_what_the_guide_sets_is_understood(tiny_checkpoint, tmp_path):
    """Each line of the block of docs/finetuning.md that begins with --set, for a checkpoint of twelve layers."""
    start = bert_jax.load(tiny_checkpoint)
    config = dataclasses.replace(start.config, layers=12)
    model = start._replace(config=config, params=jax.tree.map(np.asarray, api.init(config, jax.random.key(0))))
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"{word} {k},{'ab'[k % 2]}\n" for k, word in enumerate(WORDS * 9)))
    lines = [line for line in GUIDE.read_text("utf-8").splitlines() if line.startswith("--set ")]
    plain, changed = configuration.to_json(recipe(model, "m", own_data(str(path), ["text"], "label"))), []
    for line in lines:
        words = shlex.split(line)
        assert set(words[::2]) == {"--set"}
        check_assignments(words[1::2], "m")
        made = recipe(model, "m", own_data(str(path), ["text"], "label"), assignments=words[1::2])
        assert {type(trick).__name__ for trick in made.task.tricks} == set(re.findall('"kind": "([A-Za-z]+)"', line))
        assert finetuning_task(made.task, model).start(jax.random.key(0))
        changed.append({name for name, *_ in configuration.differences(plain, configuration.to_json(made))})
    rate, parts = "optimizer.learning_rate", "task.encoder."
    assert changed == [
        {"task.tricks"}, {"task.tricks"}, {"task.tricks", f"{parts}dropout"}, {f"{parts}lora_rank", rate},
        {"optimizer.layer_decay"}, {"optimizer.unfreeze_every"},
        {"optimizer.freeze_encoder", f"{parts}read_layers", f"{parts}combine"}, {f"{parts}read_layers"},  # mix is the default
        {"task.reinitialise"}, {"task.truncate"},
    ]


def test_commands_of_further_pretraining_are_understood():
    """prepare, pretrain and finetune, one after another; the recipe of Sun et al. 2019."""
    text = GUIDE.read_text("utf-8")
    (block,) = (block for block in re.findall("```sh\n(.*?)```", text, flags=re.S) if "bert-jax pretrain" in block)
    prepare, pretrain, finetune = (
        cli._parser().parse_args(shlex.split(line)[1:]) for line in block.splitlines()
    )
    assert prepare.out == pretrain.data and pretrain.workdir == finetune.checkpoint
    assert prepare.tokenizer == pretrain.init and prepare.documents == "line"
    made = configuration.override(load_config(GUIDE.parents[1] / pretrain.config), pretrain.assignments)
    schedule(made.optimizer, made.train.steps)
    assert (made.train.steps, made.train.batch_size, made.task.examples.length) == (100_000, 32, 128)
    assert (made.optimizer.learning_rate, made.optimizer.warmup_steps) == (5e-5, 10_000)
    assert made.task.encoder.activation == "gelu"


def test_shorter_lengths_make_longer_epochs(model, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("\n".join("".join(f"{word} {'AB'[k % 2]}\n" for k, word in enumerate(WORDS * 6)) for _ in range(40)))
    tags = Columns(str(path), separator="blank")
    squad = own_data(str(write_squad(tmp_path / "x.json", articles=60, long=12)))
    for given, heldout, short in (
        (tags, tags, ["task.lengths=[12]"]), (squad, None, ["task.lengths=[20]", "task.answer_tokens=4"]),
    ):
        whole = recipe(model, "m", given, heldout, epochs=3)
        made = recipe(model, "m", given, heldout, epochs=3, assignments=short)
        rows = len(finetuning_task(made.task, model).training.item)
        assert made.train.steps == round(3 * rows / 32) > whole.train.steps + 5
        assert made.optimizer.warmup_steps == made.train.steps // 10 and made.train.eval_every == round(rows / 32)
    with pytest.raises(BertJaxError, match="windows of 10 tokens leave -1 beside a question of 8"):
        recipe(model, "m", squad, assignments=["task.lengths=[10]", "task.question_tokens=8"])


def test_tags(model, tmp_path, caplog):
    data = own_data(str(write_tags(tmp_path / "x.txt")), kind="tagging")
    experiment = recipe(model, "m", data)
    task = experiment.task
    assert isinstance(task, Tagging) and task.encoder.labels == ("B-X", "O")
    parts = [set(part.read().texts) for part in (task.data, task.heldout)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == set(data.read().texts)
    other = tmp_path / "other.txt"
    other.write_text("the\tO\ndog\tB-Y\n")
    with caplog.at_level(logging.WARNING):
        labels = recipe(model, "m", data, Columns(str(other))).task.encoder.labels
    assert labels == ("B-X", "O", "B-Y") and "they are not learnt: B-Y" in caplog.text
    with pytest.raises(BertJaxError, match="must be in the form of"):
        recipe(model, "m", data, Lists("x.jsonl"))


def test_numbers_of_tags_keep_their_order(model, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"words": [f"cat{k}"], "tags": [k % 12]}) + "\n" for k in range(200)))
    labels = recipe(model, "m", own_data(str(path), kind="tagging")).task.encoder.labels
    assert labels == tuple(map(str, range(12)))  # as the data set's ids


def test_an_epoch_of_tags_is_all_parts_of_sentences(model, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("\n".join("".join(f"{word} {'AB'[k % 2]}\n" for k, word in enumerate(WORDS * 12)) for _ in range(40)))
    experiment = recipe(model, "m", Columns(str(path), separator="blank"), Columns(str(path), separator="blank"), epochs=2)
    rows = len(finetuning_task(experiment.task, model).training.item)
    assert rows >= 40 * 5 and experiment.train.steps == round(2 * rows / 32)


def test_questions_about_one_text_stay_together(model, tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [{"q": f"the cat {k // 10}", "ends": [f"sat {k}", "ran"], "n": 0} for k in range(200)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = recipe(model, "m", own_data(str(path), ["q", "ends"], "n", "choice")).task
    first = [{texts[0] for texts in part.read().texts} for part in (task.data, task.heldout)]
    assert not first[0] & first[1] and len(first[0] | first[1]) == 20


def test_named_columns_of_iob2_files(tmp_path):
    path = tmp_path / "x.iob2"
    path.write_text("EU\tNNP\tB-ORG\nx\tNN\tO\n")
    with pytest.raises(BertJaxError, match="line 1 begins with 'EU', where the number"):
        own_data(str(path)).read()
    assert own_data(str(path), ["0"], "-1", "tagging").read() == ([("EU", "x")], [("B-ORG", "O")])


def test_choices(model, tmp_path):
    experiment = recipe(model, "m", own_data(str(write_choices(tmp_path / "x.csv")), ["start", "one", "two", "three"], "right"))
    assert isinstance(experiment.task, Choice) and experiment.train.batch_size == 16
    assert experiment.task.encoder.with_heads == ("pooler", "choice")
    rows = [part.read() for part in (experiment.task.data, experiment.task.heldout)]
    assert len(rows[0].texts) + len(rows[1].texts) == 60 and rows[1].texts


def test_what_is_too_few(model, tmp_path):
    for data in (own_data(str(write_squad(tmp_path / "x.json", articles=1))), own_data(
        str(write_tags(tmp_path / "x.jsonl", 1, form="lists")), kind="tagging"
    )):
        with pytest.raises(BertJaxError, match="too few (articles|rows) to hold some out: name another file"):
            recipe(model, "m", data)
    path = tmp_path / "few.csv"
    path.write_text("text,label\n" + "".join(f"cat,{'ab'[k % 2]}\n" for k in range(40)))
    message = "few.csv: too few different texts .1 in 40 rows; the same stay together. to hold some out: name another file"
    with pytest.raises(BertJaxError, match=message):
        recipe(model, "m", own_data(str(path), ["text"], "label"))
    path.write_text("q,a,b,l\n" + "".join(f"cat,a {k},b,0\n" for k in range(40)))
    with pytest.raises(BertJaxError, match=message):
        recipe(model, "m", own_data(str(path), ["q", "a", "b"], "l"))
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps({"words": [f"cat{k}"], "tags": ["O"]}) + "\n" for k in range(40)))
    with pytest.raises(BertJaxError, match="one.jsonl: every word has the tag 'O': there is nothing to learn"):
        recipe(model, "m", own_data(str(path), kind="tagging"))
    for epochs in (float("inf"), float("nan"), 0.0):
        with pytest.raises(BertJaxError, match=f"epochs is {epochs:g}: it must be above 0, and finite"):
            recipe(model, "m", data, epochs=epochs)
    with pytest.raises(BertJaxError, match="no tokenizer beside its weights"):
        recipe(model._replace(tokenizer=None), "m", data)


@pytest.mark.parametrize("kind", ["tagging", "lists", "choice", "lists of choices", "answers"])
def test_from_a_file_to_answers_in_two_commands(kind, one_device, tiny_checkpoint, tmp_path, capfd):
    out, columns, count = tmp_path / "run", [], 60
    if kind == "tagging":
        data, extra, score = write_tags(tmp_path / "x.conll", separator=" "), ["--kind", "tagging"], "f1"
        new, count = tmp_path / "new.txt", 1
        new.write_text("the cat sat\n")
    elif kind == "lists":
        data, extra, score = write_tags(tmp_path / "x.jsonl", form="lists"), ["--kind", "tagging"], "f1"
        new = data
    elif kind == "choice":
        new = data = write_choices(tmp_path / "x.csv")
        extra, score = ["--texts", "start", "one", "two", "three", "--label", "right"], "accuracy"
    elif kind == "lists of choices":
        new = data = tmp_path / "x.jsonl"
        lines = [{"q": f"the cat {k}", "ends": ["sat", "ran", "in"][: 2 + k % 2], "n": k % 2} for k in range(count)]
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        extra, score = ["--kind", "choice", "--texts", "q", "ends", "--label", "n"], "accuracy"
    else:
        data, extra, score = write_squad(tmp_path / "x.json"), [], "exact match"
        new, columns, count = tmp_path / "new.tsv", ["--texts", "q", "c"], 1
        new.write_text("q\tc\nthe cat\tthe cat sat\n")
    words = ["finetune", "--checkpoint", tiny_checkpoint, "--data", data, *extra, "--epochs", "1", "--workdir", out]
    assert cli.main([str(word) for word in words]) == 0
    shown = capfd.readouterr()
    assert " rows, " in (line := shown.err.splitlines()[0]) and re.search(r" held out; \d+ updates? of \d+$", line)
    assert score in shown.out.replace("_", " ") and (out / "report.html").is_file()
    assert cli.main(["predict", str(out), "--input", str(new), *columns, "--out", str(tmp_path / "a.jsonl")]) == 0
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(answers) == count
    if kind == "tagging":
        assert len(answers[0]["tags"]) == 3
        assert cli.main(["predict", str(out), "--input", str(data)]) == 1
        assert "it has a word a line: give a sentence a line" in capfd.readouterr().err
    elif kind == "lists":
        assert [len(answer["tags"]) for answer in answers] == [len(words) for words in Lists(str(data)).read().texts]
    elif kind == "choice":
        assert {answer["text"] for answer in answers} <= set(WORDS) and answers[0]["start"]
    elif kind == "lists of choices":
        assert [(answer["q"], answer["ends"]) for answer in answers] == [(line["q"], line["ends"]) for line in lines]
        assert all(answer["text"] == answer["ends"][answer["choice"]] for answer in answers)
        capfd.readouterr()
        assert cli.main(["predict", str(out), "--input", str(new)]) == 0
        head, row = capfd.readouterr().out.splitlines()[:2]
        assert head.startswith("q\tends\tchoice\t") and row.startswith('the cat 0\t["sat", "ran"]\t')
        new.write_text('{"q": ["a"], "ends": ["b", "c"]}\n')
        assert cli.main(["predict", str(out), "--input", str(new)]) == 1
        assert "line 1: a text is a string\n" in capfd.readouterr().err
    else:
        assert answers[0]["text"] in "the cat sat"


def test_compressed_files_are_of_the_kind_that_their_name_says(tmp_path):
    """Read by what reads them unpacked."""
    paragraph = {"context": "a b", "qas": [{"id": "1", "question": "c", "answers": [{"text": "b", "answer_start": 2}]}]}
    for name, text, columns in (
        ("x.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}), ()),
        ("x.conllu", "1\ta\ta\tDET\t_\t_\t0\troot\t_\t_\n\n", ()),
        ("x.csv", "a,b,c,l\nq,r,s,1\n", (("a", "b", "c"), "l")),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        plain, packed = (own_data(str(tmp_path / end), *columns) for end in (name, f"{name}.gz"))
        assert type(plain) is type(packed) and plain.read() == packed.read() and len(plain.read().texts) == 1
