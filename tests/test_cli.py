"""The command line: help for everything, fast; every refusal one line, status 1, and nothing left half-written."""

import json
import logging
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax import cli, tokenizers
from bert_jax.parallel.mesh import make_mesh
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from bert_jax.training import record
from bert_jax.training import train as train_module

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = ["tokenizer", "prepare", "annotate", "pretrain", "finetune", "predict", "evaluate", "fill-mask", "convert",
            "inspect", "export", "demo"]
CONFIG = str(ROOT / "tests" / "tiny_bert.py")
BRIEF = ["train.steps=2", "optimizer.warmup_steps=1", "train.eval_batches=1", "train.log_every=1"]


def sets(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


@pytest.fixture
def refused(capfd, tmp_path):
    """``refused(words, "part of the message")``: status 1, one line, and no file that was not there before."""

    def check(arguments, *parts, writes=()):
        before = set(tmp_path.rglob("*"))
        capfd.readouterr()
        status = cli.main([str(word) for word in arguments])
        out, errors = capfd.readouterr()
        lines = [line for line in errors.splitlines() if line.strip() and not line.startswith("bert-jax: WARNING:")]
        assert status == 1 and out == "", (status, out, errors)
        assert len(lines) == 1 and lines[0].startswith("bert-jax: error: "), errors
        for part in parts:
            assert str(part) in lines[0], lines[0]
        new = {str(path.relative_to(tmp_path)) for path in set(tmp_path.rglob("*")) - before}
        assert new <= set(writes), f"left behind: {new}"
        return lines[0]

    return check


def test_the_same_warning_of_finetune_comes_once(caplog, monkeypatch):
    def load(name):
        for number in (1, 1, 2):
            logging.getLogger("bert_jax").warning("seen %d", number)
        raise bert_jax.errors.BertJaxError("enough")

    monkeypatch.setattr("bert_jax.training.pretrain.load_config", load)
    for _ in range(2):  # the next call says it again
        caplog.clear()
        assert cli.main(["finetune", "--config", "x", "--workdir", "y"]) == 1
        assert [record.getMessage() for record in caplog.records] == ["seen 1", "seen 2"]


def pretrain(store, folder, *arguments, config: str = CONFIG) -> int:
    """A run on the first of the eight devices of the tests: it starts much faster there."""
    words = ["pretrain", "--config", config, "--data", str(store), "--workdir", str(folder), *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "make_mesh", lambda settings: make_mesh(settings, jax.devices()[:1]))
        return cli.main(words)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_store):
    """A run of eight steps, enough for its loss to fall by a third."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert pretrain(tiny_store, folder, *sets(*BRIEF, "train.steps=8", "train.save_every=8")) == 0
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """The same as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("cli") / "exported"
    assert cli.main(["convert", "--from", str(workdir), "--to", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"default: (None|\[\]|False)", text)
    (sub,) = [a for a in cli._parser()._actions if a.dest == "==SUPPRESS==" or hasattr(a, "choices") and a.choices]
    for action in sub.choices[command]._actions:
        assert action.help and len(action.help) > 8, (command, action.dest)
        assert (action.option_strings or [action.metavar or action.dest])[0] in text


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^\s+{command}\s+\w", text, re.M) for command in COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["pretain"], ["pretrain"], ["prepare", "x"], ["evaluate", "x", "--batches", "many"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and "usage: bert-jax" in capsys.readouterr().err


def test_starts_without_jax_and_numpy():
    code = (
        "import sys, time; began = time.perf_counter(); import bert_jax.cli; spent = time.perf_counter() - began\n"
        "print(spent, *({'jax', 'numpy', 'flax', 'torch', 'tensorflow', 'rich'} & set(sys.modules)))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
            for _ in range(3)]
    assert runs[0][1:] == []
    assert min(float(run[0]) for run in runs) < 0.5


def test_from_text_to_masks(tmp_path, write_corpus, capsys, workdir, tiny_store):
    """Every command once, with what it prints."""
    text = write_corpus(tmp_path / "text.txt", 40)
    assert cli.main(["tokenizer", str(text), "--out", str(tmp_path / "tokenizer"), "--vocab-size", "50"]) == 0
    assert "wordpiece tokenizer with" in capsys.readouterr().out
    assert cli.main(["prepare", str(text), "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "store"),
                     "--sentences", "line", "--heldout", "0.2", "--workers", "1"]) == 0
    assert re.search(r"train: \d+ documents, [\d,]+ sentences, [\d,]+ tokens\nheldout: ", capsys.readouterr().out)
    assert cli.main(["evaluate", str(workdir), "--data", str(tiny_store), "--batches", "1", "--batch-size", "16"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {"loss", "mlm_loss", "mlm_accuracy", "nsp_accuracy", "mlm_majority_baseline"} <= set(values)
    assert cli.main(["fill-mask", f"{workdir}@8", "the [MASK] sat on the [MASK] .", "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.fullmatch(r"(\S+ 0\.\d{3}(  )?){3}", line) for line in lines)
    assert cli.main(["export", str(workdir), str(tmp_path / "exported")]) == 0
    assert {"model.safetensors", "config.json"} <= {path.name for path in (tmp_path / "exported").iterdir()}
    capsys.readouterr()
    assert cli.main(["fill-mask", str(tmp_path / "exported"), "the [MASK] sat on the [MASK] .", "--top", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_text_that_is_refused(refused, tmp_path, tiny_store):
    tokenizer, out = tiny_store / "tokenizer", tmp_path / "out"
    (tmp_path / "empty.txt").write_text("\n \n\n")
    (tmp_path / "junk.txt").write_bytes(bytes(range(128, 256)) * 50)
    (tmp_path / "text.txt").write_text("the cat sat .\n\nthe dog ran .\n")
    for words, part in ((["empty.txt"], "empty.txt"), (["junk.txt"], "junk.txt"), (["absent.txt"], "absent.txt")):
        names = [tmp_path / word for word in words]
        refused(["prepare", *names, "--tokenizer", tokenizer, "--out", out], part)
        refused(["tokenizer", *names, "--out", out, "--vocab-size", "60"], "no text" if words == ["empty.txt"] else part)
    text = tmp_path / "text.txt"
    refused(["prepare", text, "--tokenizer", tmp_path / "absent", "--out", out], "absent")
    refused(["prepare", text, "--tokenizer", tmp_path / "junk.txt", "--out", out], "junk.txt")
    refused(["prepare", text, "--tokenizer", tokenizer, "--out", tmp_path], "exists already")
    refused(["tokenizer", text, "--out", tmp_path], "exists already")
    refused(["prepare", text, "--tokenizer", tokenizer, "--out", out, "--heldout", "1"], "heldout=1")
    refused(["prepare", text, "--tokenizer", tokenizer, "--out", out, "--documents", "paragraph"], "paragraph")


def test_configuration_that_is_refused(refused, tmp_path, tiny_store):
    def attempt(config, *parts, assignments=()):
        refused(["pretrain", "--config", config, "--data", tiny_store, "--workdir", tmp_path / "run", *sets(*assignments)],
                *parts)

    attempt(tmp_path / "absent.py", "absent.py: no such configuration file")
    for name, text, part in (
        ("raises.py", "def get_config():\n    return 1 / 0\n", "raises.py, line 2: ZeroDivisionError: division by zero"),
        ("syntax.py", "def get_config(:\n", "syntax.py, line 1: SyntaxError"),
        ("nothing.py", "x = 1\n", "nothing.py: it defines no get_config()"),
        ("key.py", "def get_config():\n    return {}['absent']\n", "key.py, line 2: KeyError: 'absent'"),
        ("other.py", "def get_config():\n    return 3\n", "other.py: get_config() returned int, not an Experiment"),
        ("imports.py", "import no_such_module\n", "imports.py, line 1: ModuleNotFoundError"),
        ("lines.py", "def get_config():\n    raise ValueError('one\\ntwo')\n", "lines.py, line 2: ValueError: one two"),
        ("exits.py", "import sys\ndef get_config():\n    sys.exit('gone')\n", "exits.py, line 3: SystemExit: gone"),
    ):
        (tmp_path / name).write_text(text)
        attempt(tmp_path / name, part)
    for assignment, part in (
        ("train.step=3", "there is no field 'train.step'; did you mean 'steps'?"),
        ("train.steps=many", "expected int, got 'many'"),
        ("train.steps=0", "train.steps is 0: it must be at least 1"),
        ("optimizer.warmup_steps=12", "optimizer.warmup_steps 12 is not below train.steps 12"),
        ("task.examples.length=17", "length 17 exceeds the position table, task.encoder.max_length 16"),
        ("task.encoder.vocab_size=50", "set task.encoder.vocab_size="),
        ("mesh.data=3", "mesh data=3 x fsdp=1 x tensor=1 does not fit 8 device(s)"),
        ("train.batch_size=12", "it must be a multiple of 8"),
        ("task.encoder.activation=swish", "'swish' is not one of gelu, gelu_new, quick_gelu, relu"),
    ):
        attempt(CONFIG, part, assignments=[assignment])


def test_store_that_is_refused(refused, tmp_path, tiny_store):
    def attempt(store, *parts):
        refused(["pretrain", "--config", CONFIG, "--data", store, "--workdir", tmp_path / "run"], *parts)

    attempt(tmp_path / "absent", "absent")
    flipped = shutil.copytree(tiny_store, tmp_path / "flipped")
    shard = flipped / "train" / "tokens-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    attempt(flipped, "train/tokens-00000.bin was changed")
    shard.unlink()
    attempt(flipped, "train/tokens-00000.bin is missing")


def test_checkpoint_that_is_refused(refused, tmp_path, tiny_store, workdir, write_corpus):
    for command in (["evaluate"], ["fill-mask"], ["export"]):
        rest = {"evaluate": ["--data", tiny_store], "fill-mask": ["the [MASK]"], "export": [tmp_path / "out"]}[command[0]]
        refused([*command, tmp_path / "absent", *rest], "absent")
        refused([*command, f"{workdir}@7", *rest], "no checkpoint at step 7 (there: 8)")
        refused([*command, f"{workdir}@last", *rest], "after @ comes a step number")
        refused([*command, f"{workdir}@²", *rest], "after @ comes a step number")
    refused(["fill-mask", workdir, "no mask here"], "the text has no [MASK]")
    refused(["fill-mask", workdir, "[MASK]" + " cat" * 20], "the text has 23 tokens, the position table 16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused(["export", workdir, tmp_path / "full"], "full")
    text = write_corpus(tmp_path / "text.txt", 40)
    assert cli.main(["tokenizer", str(text), "--out", str(tmp_path / "tokenizer"), "--vocab-size", "50"]) == 0
    assert cli.main(["prepare", str(text), "--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "store"),
                     "--sentences", "line", "--heldout", "0.2", "--workers", "1"]) == 0
    line = refused(["evaluate", workdir, "--data", tmp_path / "store"])
    assert len(set(re.findall(r"[0-9a-f]{64}", line))) == 2, "both hashes are named"


# convert and inspect


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def convert(source, out, *arguments) -> int:
    return cli.main(["convert", "--from", str(source), "--to", str(out), *map(str, arguments)])


def assert_same(found: bert_jax.Model, expected: bert_jax.Model) -> None:
    assert found.config == expected.config and found.tokenizer.hash == expected.tokenizer.hash
    jax.tree.map(np.testing.assert_array_equal, found.params, jax.tree.map(np.asarray, expected.params))


def edited(source: pathlib.Path, out: pathlib.Path, change=lambda tensors: None, **settings) -> pathlib.Path:
    """A copy of a Hugging Face directory with other tensors and other settings."""
    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | settings))
    return out


@pytest.mark.parametrize("form", ["hf", "sentence-transformers", "bert_jax"])
def test_convert_to_every_form_and_back(form, workdir, exported, tmp_path, capfd):
    assert convert(workdir, tmp_path / "there", "--format", form) == 0
    out, errors = capfd.readouterr()
    assert out == f"{tmp_path / 'there'}: written as {form}; bert-jax inspect {tmp_path / 'there'} describes it\n"
    assert errors == ""
    typical = {"hf": "config.json", "sentence-transformers": "modules.json", "bert_jax": "model.json"}
    assert (tmp_path / "there" / typical[form]).is_file()
    assert_same(bert_jax.load(tmp_path / "there"), bert_jax.load(workdir))
    assert convert(tmp_path / "there", tmp_path / "back") == 0  # hf is what is written if nothing is said
    assert files_of(tmp_path / "back") == files_of(exported)
    assert {path.name for path in tmp_path.iterdir()} == {"there", "back"}


def test_convert_takes_a_step_and_an_empty_folder(workdir, exported, tmp_path):
    (tmp_path / "empty").mkdir()
    assert convert(f"{workdir}@8", tmp_path / "empty") == 0
    assert files_of(tmp_path / "empty") == files_of(exported)
    assert convert(f"{exported}/", tmp_path / "new" / "parents" / "out") == 0
    assert files_of(tmp_path / "new" / "parents" / "out") == files_of(exported)


@pytest.mark.parametrize("form", ["hf", "bert_jax"])
def test_convert_in_every_dtype(form, exported, tmp_path):
    name = {"hf": "model.safetensors", "bert_jax": "params.safetensors"}[form]
    for word, dtype in (("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("bf16", "bfloat16")):
        assert convert(exported, tmp_path / word, "--format", form, "--dtype", word) == 0
        assert {a.dtype.name for a in load_file(tmp_path / word / name).values()} == {dtype}
    assert files_of(tmp_path / "bf16") == files_of(tmp_path / "bfloat16")
    assert convert(tmp_path / "bf16", tmp_path / "as-it-comes") == 0
    dtypes = {a.dtype.name for a in load_file(tmp_path / "as-it-comes" / "model.safetensors").values()}
    assert dtypes == {"bfloat16" if form == "hf" else "float32"}


def test_convert_with_a_tokenizer_from_elsewhere(workdir, exported, tmp_path, caplog, refused):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(exported / name, bare / name)
    assert convert(bare, tmp_path / "without") == 0
    assert [r.getMessage() for r in caplog.records] == [
        f"{bare}: no tokenizer lies beside the weights; convert --tokenizer (load(..., tokenizer=...)) names one"
    ]
    assert set(files_of(tmp_path / "without")) == {"config.json", "model.safetensors"}
    refused(["convert", "--from", bare, "--to", tmp_path / "x", "--format", "sentence-transformers"],
            "sentence-transformers needs a tokenizer, and there is none: convert --tokenizer names one")
    caplog.clear()
    for i, place in enumerate((exported, exported / "vocab.txt", workdir / "tokenizer")):
        assert convert(bare, tmp_path / str(i), "--tokenizer", place) == 0
        assert not caplog.records
        assert tokenizers.load(tmp_path / str(i)).hash == tokenizers.load(exported).hash


def test_convert_allows_heads_to_be_missing(exported, tmp_path, caplog, refused):
    half = edited(exported, tmp_path / "half", lambda tensors: tensors.pop("cls.seq_relationship.weight"))
    refused(["convert", "--from", half, "--to", tmp_path / "out"],
            "lacks cls.seq_relationship.weight, which its configuration asks for", "convert --allow-missing (")
    assert convert(half, tmp_path / "out", "--allow-missing") == 0
    assert "lacks cls.seq_relationship.weight: new, untrained pair" in caplog.text
    before, after = load_file(exported / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert after.keys() == before.keys() and changed == {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}
    bias = "bert.encoder.layer.1.output.dense.bias"
    core = edited(half, tmp_path / "core", lambda tensors: tensors.pop(bias))
    refused(["convert", "--from", core, "--to", tmp_path / "x", "--allow-missing"], f"lacks {bias}")


def test_inspect_prints_the_report(workdir, exported, tmp_path, capsys):
    assert convert(exported, tmp_path / "own", "--format", "bert_jax") == 0
    capsys.readouterr()
    for source, first in ((workdir, "work directory"), (f"{workdir}@8", "work directory"), (exported, "Hugging Face directory"),
                          (tmp_path / "own", "directory of bert-jax")):
        assert cli.main(["inspect", str(source)]) == 0
        out, errors = capsys.readouterr()
        assert out == f"{bert_jax.inspect(source)}\n" and errors == ""
        assert re.match(rf"source +{first} ", out) and tokenizers.load(exported).hash in out


@pytest.mark.parametrize("target", ["full", "file", "file/out", "full/file/deeper/out"])
def test_targets_that_are_refused(target, exported, tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for form in ("hf", "sentence-transformers", "bert_jax"):
        refused(["convert", "--from", exported, "--to", tmp_path / target, "--format", form], tmp_path / target)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "file").read_text() == "mine"


class Trap:
    """Unpickled by Python, it makes a file."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def damage(kind: str, exported: pathlib.Path, folder: pathlib.Path, sprung: pathlib.Path) -> pathlib.Path:
    """A copy of a checkpoint in which one thing is wrong."""
    if kind == "absent":
        return folder
    shutil.copytree(exported, folder)
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(weights)
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "no safetensors":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 400\n")
    elif kind == "pickle":
        pytest.importorskip("torch", reason="pytorch_model.bin needs PyTorch")
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap(sprung)}))
    elif kind == "no weights":
        weights.rename(folder / "tf_model.h5")
    elif kind == "NaN":
        tensors["bert.encoder.layer.0.output.dense.bias"][1] = np.nan
        save_file(tensors, weights)
    elif kind == "shape":
        tensors["bert.encoder.layer.0.output.dense.bias"] = tensors["bert.encoder.layer.0.output.dense.bias"][1:]
        save_file(tensors, weights)
    elif kind == "no such family":
        config["model_type"] = "gpt2"
    elif kind == "other family":
        config["model_type"] = "roberta"
    elif kind == "relative positions":
        config["position_embedding_type"] = "relative_key_query"
    (folder / "config.json").write_text("{" if kind == "config" else json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("kind", "part", "at_a_glance"),  # whether inspect, which reads no weights, says it too
    [
        ("absent", "there is no such file or directory", True),
        ("truncated", "model.safetensors is damaged or no safetensors file", True),
        ("no safetensors", "model.safetensors is damaged or no safetensors file", True),
        ("pickle", "pytorch_model.bin ", True),
        ("no weights", "holds no model.safetensors and no pytorch_model.bin; tf_model.h5 is not read", True),
        ("NaN", "bert.encoder.layer.0.output.dense.bias holds NaN or infinity", False),
        ("shape", "bert.encoder.layer.0.output.dense.bias has shape [31], its configuration says [32]", True),
        ("no such family", "model_type is 'gpt2'; those that are read are bert, albert", True),
        ("other family", "holds a bert, its config.json describes a roberta", True),
        ("relative positions", "position_embedding_type is 'relative_key_query', only 'absolute' can be read", True),
        ("config", "config.json is not JSON", True),
    ],
)
def test_checkpoints_that_are_refused(kind, part, at_a_glance, exported, tmp_path, refused):
    sprung = tmp_path / "sprung"
    bad = damage(kind, exported, tmp_path / "bad", sprung)
    for form in ("hf", "sentence-transformers", "bert_jax"):
        refused(["convert", "--from", bad, "--to", tmp_path / "out", "--format", form], part, bad)
    if at_a_glance:
        refused(["inspect", bad], part, bad)
    else:
        assert cli.main(["inspect", str(bad)]) == 0
    assert not sprung.exists()


def test_options_that_are_refused(workdir, exported, tmp_path, refused, capfd):
    large = WordPieceTokenizer([*SPECIALS, *(f"piece{i}" for i in range(200))])
    large.save(tmp_path / "large")
    words = ["convert", "--from", exported, "--to", tmp_path / "out"]
    refused([*words, "--tokenizer", tmp_path / "large"], "tokenizer has 205 pieces, its token table 96 rows",
            "convert --tokenizer (")
    refused([*words, "--tokenizer", tmp_path / "absent"], "absent")
    refused(["convert", "--from", f"{workdir}@7", "--to", tmp_path / "out"], "no checkpoint at step 7 (there: 8)")
    refused(["inspect", f"{workdir}@7"], "no checkpoint at step 7 (there: 8)")
    generator = f"{exported}#generator"
    refused(["convert", "--from", generator, "--to", tmp_path / "out"], "only a run and a TensorFlow checkpoint have parts")
    beyond = edited(exported, tmp_path / "beyond", lambda tensors: tensors["bert.pooler.dense.bias"].fill(1e6))
    for out in ("out", "new/parents/out"):
        refused(["convert", "--from", beyond, "--to", tmp_path / out, "--dtype", "float16"],
                "bert.pooler.dense.bias holds values beyond the range of float16: choose bfloat16 or float32")
    for option, value in (("--format", "onyx"), ("--dtype", "float64")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["convert", "--from", str(exported), "--to", str(tmp_path / "out"), option, value])
        assert stop.value.code == 2 and f"invalid choice: '{value}'" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


# pretrain --init


def losses(folder: pathlib.Path, kind: str) -> list[float]:
    return [row["loss"] for row in record.read(folder / "metrics.jsonl") if row["kind"] == kind]


STILL = sets(*BRIEF, "optimizer.learning_rate=1e-12")  # training that changes next to nothing


def close(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9, rtol=1e-6), found, expected)


def test_a_run_starts_from_a_checkpoint_and_goes_on_from_its_own(workdir, exported, tiny_store, tmp_path, capsys):
    start = shutil.copytree(exported, tmp_path / "start")
    assert pretrain(tiny_store, tmp_path / "run", "--init", start, *STILL) == 0
    scratch, end = losses(workdir, "train")[0], losses(workdir, "eval")[-1]
    first, unchanged = losses(tmp_path / "run", "train")[0], losses(tmp_path / "run", "eval")[-1]
    assert abs(first - end) < 0.5 < 1 < scratch - first
    assert unchanged == pytest.approx(end, abs=1e-5)
    close(bert_jax.load(tmp_path / "run").params, bert_jax.load(workdir).params)

    shutil.rmtree(start)  # it is not asked for again
    capsys.readouterr()
    assert pretrain(tiny_store, tmp_path / "run", "--init", start, *STILL, *sets("train.steps=3")) == 0
    assert f"continuing {tmp_path / 'run'} from step 2 of 3" in capsys.readouterr().err
    assert len(losses(tmp_path / "run", "train")) == 3 and bert_jax.inspect(f"{tmp_path / 'run'}@3")


def test_a_run_starts_with_heads_that_the_checkpoint_lacks(exported, tiny_store, tmp_path, caplog):
    def without_pair(tensors):
        for name in [name for name in tensors if name.startswith(("cls.seq_relationship", "bert.pooler"))]:
            del tensors[name]

    start = edited(exported, tmp_path / "start", without_pair, architectures=["BertForMaskedLM"])
    assert bert_jax.load(start).config.with_heads == ("mlm",)
    assert pretrain(tiny_store, tmp_path / "run", "--init", start, *STILL) == 0
    assert f"{start} has no head pair, pooler: it starts untrained" in caplog.text
    found, expected = bert_jax.load(tmp_path / "run"), bert_jax.load(exported)
    assert found.config == expected.config
    for part in ("embeddings", "attention", "feed_forward", "mlm"):
        close(found.params[part], expected.params[part])
    kernel = np.asarray(found.params["pooler"]["dense"]["kernel"])
    assert 0.01 < kernel.std() < 0.03 and np.abs(found.params["pair"]["dense"]["bias"]).max() < 1e-9


def test_checkpoints_to_start_from_that_are_refused(exported, tiny_store, tmp_path, refused):
    out = tmp_path / "run"

    def attempt(init, *parts, assignments=()):
        words = ["pretrain", "--config", CONFIG, "--data", tiny_store, "--workdir", out, "--init", init]
        return refused([*words, *sets(*BRIEF, *assignments)], *parts)

    attempt(tmp_path / "absent", "absent: there is no such file or directory")
    line = attempt(exported, "is another encoder than task.encoder; to start from it: ",
                   assignments=["task.encoder.ffn_width=32", "task.encoder.activation=relu"])
    assert "--set task.encoder.ffn_width=64" in line and "--set task.encoder.activation=gelu" in line
    assert "dropout" not in line and "layers" not in line
    vocabulary = (exported / "vocab.txt").read_text().split("\n")
    other = edited(exported, tmp_path / "other")
    (other / "vocab.txt").write_text("\n".join([*vocabulary[:6], "other", *vocabulary[7:]]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink(missing_ok=True)
    assert tokenizers.load(other).hash != tokenizers.load(exported).hash
    attempt(other, f"{other} has another tokenizer than the data: prepare the text with --tokenizer {other}")
    half = edited(exported, tmp_path / "half", lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.bias"))
    attempt(half, "lacks bert.encoder.layer.1.output.dense.bias")


def as_a_process(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "bert_jax", *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_as_a_process(tmp_path):
    """The same through the interpreter: exit status and standard error, without a traceback."""
    done = as_a_process("tokenizer", tmp_path / "absent.txt", "--out", tmp_path / "out")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("bert-jax: error: ") and done.stderr.count("\n") == 1


def test_warnings_of_a_process(exported, tmp_path):
    """One line each, and nothing of the libraries underneath."""
    source = edited(exported, tmp_path / "source", lambda tensors: tensors.update(surplus=np.zeros(3, np.float32)))
    (source / "vocab.txt").unlink()
    (source / "tokenizer.json").unlink(missing_ok=True)
    done = as_a_process("convert", "--from", source, "--to", tmp_path / "out")
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path / 'out'}: written as hf")
    first, second = done.stderr.splitlines()
    assert first.startswith("bert-jax: WARNING: ") and "no tokenizer lies beside the weights" in first
    assert second == f"bert-jax: WARNING: {source / 'model.safetensors'}: not part of our encoder and left out: surplus"


def test_an_interrupted_fit_has_shown_what_it_found(monkeypatch, capsys):
    from bert_jax.planning import plan as planning

    def fit(experiment, devices, report, found):
        report("remat none, 1 a device")
        found(planning.Fit("none", 0, types.SimpleNamespace(refusal="needs 3 GiB")))
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "fit", fit)
    assert cli.main(["plan", "--config", str(ROOT / "tests/tiny_bert.py"), "--topology", "cpu:8", "--fit"]) == 130
    error = capsys.readouterr().err
    assert error.index("remat  ") < error.index("needs 3 GiB") < error.index("interrupted")


def test_without_a_place_for_compiled_programs_it_goes_on(tiny_checkpoint, tmp_path):
    """And says so in a line; and no character that the terminal cannot show ends it."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "XDG_CACHE_HOME": "/proc"}
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"} | plain
    (folder := tmp_path / "naïve").symlink_to(tiny_checkpoint)
    command = [sys.executable, "-m", "bert_jax", "inspect", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "na\\udcc3\\udcafve" in done.stdout, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("bert-jax: WARNING: /proc/bert_jax/xla cannot be written: compiled programs are not kept")
