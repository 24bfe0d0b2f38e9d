"""The command line: help for everything, fast; every refusal one line, status 1, and nothing left half-written."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from bert_jax import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = ["tokenizer", "prepare", "pretrain", "evaluate", "fill-mask", "export", "demo"]
CONFIG = str(ROOT / "tests" / "tiny_bert.py")
BRIEF = ["train.steps=2", "optimizer.warmup_steps=1", "train.eval_batches=1"]


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


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_store):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["pretrain", "--config", CONFIG, "--data", str(tiny_store), "--workdir", str(folder), *sets(*BRIEF)]) == 0
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
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
    assert cli.main(["fill-mask", f"{workdir}@2", "the [MASK] sat on the [MASK] .", "--top", "3"]) == 0
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
        ("task.encoder.activation=relu", "'relu' is not one of gelu, gelu_new, quick_gelu"),
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
        refused([*command, f"{workdir}@7", *rest], "no checkpoint at step 7 (there: 2)")
        refused([*command, f"{workdir}@last", *rest], "after @ comes a step number")
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


def test_as_a_process(tmp_path):
    """The same through the interpreter: exit status and standard error, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "bert_jax", "tokenizer", str(tmp_path / "absent.txt"), "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("bert-jax: error: ") and done.stderr.count("\n") == 1
