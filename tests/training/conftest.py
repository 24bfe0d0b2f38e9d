"""A run on one device in this process (the test session has eight), and runs in processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

from bert_jax.parallel.mesh import make_mesh
from bert_jax.training import train as train_module

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def one_device(monkeypatch):
    """Training in this process uses the first of the eight devices: compiling for all of them takes far longer."""
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


@pytest.fixture
def run_tiny(one_device, tiny_store, tiny_experiment):
    """``run_tiny(workdir, "train.steps=8", family="bert")`` trains the tiny experiment in this process."""
    from bert_jax.training.pretrain import pretrain

    def run(workdir, *assignments, family="bert", store=tiny_store):
        return pretrain(tiny_experiment(family, *assignments), store, workdir)

    return run


@pytest.fixture
def start_tiny(tiny_store):
    """``start_tiny(workdir, "train.steps=8")`` starts ``bert-jax pretrain`` on one device in a process of its own."""
    running = []

    def start(workdir, *assignments, prelude: str = "") -> subprocess.Popen:
        arguments = ["pretrain", "--config", str(ROOT / "tests" / "tiny_bert.py"), "--data", str(tiny_store),
                     "--workdir", str(workdir)]
        for assignment in assignments:
            arguments += ["--set", assignment]
        lines = ["import gc, sys", "gc.set_threshold(50_000, 20, 10)", prelude, "from bert_jax.cli import main",
                 f"sys.exit(main({arguments!r}))"]
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
        environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(lines)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
