"""The README's commands and code run as they stand, on a small text and with sizes cut down."""

import re
import shlex

import jax
import pytest

from bert_jax.cli import main
from bert_jax.parallel.mesh import make_mesh
from bert_jax.training import train as train_module
from tests.conftest import ROOT

# What makes the README's commands small enough for a test, and nothing else.
SMALLER = {"8192": "120"}
SETTINGS = {
    "train.steps": 4, "train.batch_size": 8, "train.eval_batches": 1, "optimizer.warmup_steps": 1,
    "task.encoder.hidden_width": 32, "task.encoder.embedding_width": 32, "task.encoder.ffn_width": 64,
    "task.encoder.max_length": 32, "task.examples.length": 32,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What is shown here does not depend on the number, and compiling for eight takes far longer."""
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for number in range(4):
        documents = [
            f"The array number {n} was returned. It has {n + number} rows and a name. Nobody reads the {n}th row again."
            for n in range(30)
        ]
        (tmp_path / "text" / f"{number}.txt").write_text("\n\n".join(documents))
    rows = [f"The array number {n} was {'returned' if n % 2 else 'lost'},{'good' if n % 2 else 'bad'}" for n in range(60)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,stars", *rows]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_two_commands_come_first():
    assert [line.split()[:2] for line in blocks("sh")[0].splitlines()] == [["make", "demo"], ["make", "test"]]


def test_commands_and_code_run(folder, capsys):
    commands = [line for line in blocks("sh")[1].splitlines() if line.strip()]
    assert [shlex.split(line)[1] for line in commands] == [
        "tokenizer", "prepare", "pretrain", "evaluate", "fill-mask", "export"
    ]
    for line in commands:
        for large, small in SMALLER.items():
            line = line.replace(large, small)
        arguments = shlex.split(line)[1:]
        if arguments[0] == "pretrain":
            for path, value in SETTINGS.items():
                arguments += ["--set", f"{path}={value}"]
        assert main(arguments) == 0, line
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert (folder / "runs/mine/export_again/model.safetensors").is_file()
    assert (folder / "runs/from_python/model/model.safetensors").is_file()
    assert "(1, " in capsys.readouterr().out
