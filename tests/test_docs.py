"""The manual's commands and code run as they stand, on a tiny model and a small text."""

import re
import shlex

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.cli import main
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import OBJECTIVES
from bert_jax.parallel.mesh import make_mesh
from bert_jax.tokenizers import train
from bert_jax.training import train as train_module
from tests.conftest import ROOT, WORDS

PAGE = (ROOT / "docs" / "checkpoints.md").read_text()
# What makes the commands small enough for a test: the configuration of the tiny model, and few steps.
SETTINGS = {
    "train.steps": 2, "train.batch_size": 8, "train.eval_batches": 1, "optimizer.warmup_steps": 1,
    "task.encoder.hidden_width": 32, "task.encoder.embedding_width": 32, "task.encoder.ffn_width": 64,
    "task.encoder.max_length": 32, "task.examples.length": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What is shown here does not depend on the number, and compiling for eight takes far longer."""
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_corpus):
    """A folder with a text, the configurations, and ``my-bert``: what a reader of the page would bring."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "text").mkdir()
    write_corpus(folder / "text" / "a.txt", 80)
    (folder / "configs").symlink_to(ROOT / "configs")
    tokenizer = train("wordpiece", [" ".join(WORDS), (folder / "text" / "a.txt").read_text()], 60)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, embedding_width=32, hidden_width=32, layers=2, heads=2, ffn_width=64, max_length=32
    )
    params = jax.tree.map(np.asarray, api.init(config, jax.random.key(0)))
    bert_jax.save(Model(params, config, tokenizer), folder / "my-bert")
    return folder


def test_code_of_the_objectives_runs():
    names: dict = {"__name__": "page"}
    page = (ROOT / "docs" / "objectives.md").read_text()
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S):
        exec(compile(block, "objectives.md", "exec"), names)
    assert names["structbert"].all_objectives.keys() == {"mlm", "word_order", "structural"}
    assert names["xlm"].all_turns[1].share == 0.5
    table = set(re.findall(r"^\| `([A-Z]\w+)` \|", page, flags=re.M))
    assert table >= {kind.__name__ for kind in OBJECTIVES}, "an objective is missing in the table"


@pytest.mark.slow
def test_commands_and_code_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    done = []
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, flags=re.M | re.S):
        if language == "python":
            exec(compile(block, "checkpoints.md", "exec"), {"__name__": "page"})
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "bert-jax"
            if arguments[0] == "pretrain":
                vocabulary = bert_jax.inspect("my-bert").config.vocab_size
                for path, value in (SETTINGS | {"task.encoder.vocab_size": vocabulary}).items():
                    arguments += ["--set", f"{path}={value}"]
            assert main(arguments) == 0, line
            done.append(arguments[0])
    assert done == [
        "inspect", *["convert"] * 3, "fill-mask", "prepare", "pretrain", "pretrain", "export", "export", "fill-mask",
    ]
    for name in ("model.safetensors", "config.json"):
        assert (folder / "copy-of-my-bert" / name).read_bytes() == (folder / "my-bert" / name).read_bytes()
    assert bert_jax.load("for-search").sentence.pooling == ("mean",)
    assert "bert (BertForPreTraining)" in capsys.readouterr().out
