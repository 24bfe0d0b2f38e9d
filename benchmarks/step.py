"""One pre-training step against transformers in PyTorch: forward, backward, clipping and AdamW, float32, dropout on.

  python benchmarks/step.py                          # both models below, every peer; about ten minutes
  python benchmarks/step.py --models tiny --rounds 3

Every contestant lives in its own process and they take turns, a few steps each, so that a noisy machine meets all alike. The
ratio is taken round by round and its median printed. PyTorch gets its masks ready-made; ours draws them inside the step.
Both count sequences per second of whole optimiser steps at equal batch, length, vocabulary and number of predictions.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name -> layers, width, batch; length 128 and vocabulary 30,522 throughout.
MODELS = {"tiny": (2, 128, 32), "base4": (4, 768, 8)}
PEERS = ("torch-eager", "torch-sdpa", "torch-compile")
LENGTH, VOCABULARY, PREDICTIONS = 128, 30522, 19


def ours(model: str):
    """A function that does ``n`` steps of ours and returns the loss."""
    import jax
    import numpy as np

    from bert_jax.models.config import EncoderConfig
    from bert_jax.objectives.base import Pieces
    from bert_jax.objectives.mlm import MaskedLM
    from bert_jax.objectives.nsp import NextSentence
    from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
    from bert_jax.parallel.mesh import MeshConfig, make_mesh
    from bert_jax.training.optimizer import AdamW, make_optimizer
    from bert_jax.training.step import abstract_state, init_state, make_train_step
    from bert_jax.training.train import to_devices

    layers, width, rows = MODELS[model]
    config = Pretraining(
        EncoderConfig(vocab_size=VOCABULARY, embedding_width=width, hidden_width=width, layers=layers, heads=width // 64,
                      ffn_width=4 * width),
        (MaskedLM(), NextSentence()),
    )
    task = PretrainingTask(config, None)  # no store: the batch is made here
    task._pieces = Pieces(VOCABULARY, 0, 100, 101, 102, 103, (0, 100, 101, 102, 103))
    mesh = make_mesh(MeshConfig())
    optimizer = make_optimizer(AdamW(warmup_steps=10), 100_000, task.logical_axes())
    abstract = abstract_state(task, optimizer, mesh)
    state = init_state(task, optimizer, abstract, jax.random.key(0))
    step = make_train_step(task, optimizer, mesh, abstract, accumulate=1)
    batch = to_devices(inputs(rows) | {"word_starts": np.ones((rows, LENGTH), bool)}, mesh)

    def run(n):
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(n):
                state, metrics = step(state, batch)
            return float(metrics["loss"].sum)

    return run


def theirs(model: str, mode: str):
    """The same in PyTorch, as its users write it."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    layers, width, rows = MODELS[model]
    torch.manual_seed(0)
    net = BertForPreTraining._from_config(BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width, attn_implementation="eager" if mode == "eager" else "sdpa",
    )).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, eps=1e-6)
    tensors = {name: torch.from_numpy(value) for name, value in inputs(rows).items()}
    labels = torch.full((rows, LENGTH), -100)
    labels[:, 1 : 1 + PREDICTIONS] = tensors["input_ids"][:, 1 : 1 + PREDICTIONS].long()
    arguments = {
        "input_ids": tensors["input_ids"].long(), "token_type_ids": tensors["segment_ids"].long(),
        "attention_mask": tensors["attention_mask"].long(), "labels": labels,
        "next_sentence_label": tensors["next_sentence_label"].long(),
    }
    forward = torch.compile(net) if mode == "compile" else net

    def run(n):
        for _ in range(n):
            loss = forward(**arguments).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        return float(loss.detach())

    return run


def inputs(rows: int) -> dict:
    """A full batch of ordinary ids, the same for everybody."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids = rng.integers(1000, VOCABULARY, (rows, LENGTH), dtype=np.int32)
    ids[:, 0], ids[:, -1] = 101, 102
    return {
        "input_ids": ids, "segment_ids": (np.arange(LENGTH) > 60).astype(np.int32) + np.zeros((rows, 1), np.int32),
        "attention_mask": np.ones((rows, LENGTH), bool), "next_sentence_label": rng.integers(0, 2, rows, dtype=np.int32),
    }


def worker(contestant: str, model: str) -> None:
    """Prepares a contestant, then answers every line ``n`` on stdin with the seconds that n steps took."""
    run = ours(model) if contestant == "ours" else theirs(model, contestant.split("-")[1])
    started = time.perf_counter()
    run(2)
    print(json.dumps({"first_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        run(int(line))
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


def contest(model: str, contestants: list[str], rounds: int, steps: int) -> dict:
    """Starts everybody, lets them take turns, and returns the figures."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    processes, first = {}, {}
    for name in contestants:
        processes[name] = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--models", model], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment,
        )
        first[name] = json.loads(processes[name].stdout.readline())["first_seconds"]
        print(f"{model}: {name} ready, first two steps {first[name]:.1f} s", file=sys.stderr)
    seconds = {name: [] for name in contestants}
    for number in range(rounds):
        for name, process in processes.items():
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            seconds[name].append(json.loads(process.stdout.readline())["seconds"] / steps)
        print(f"{model}: round {number + 1} of {rounds}", file=sys.stderr)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    rows = MODELS[model][2]
    return {
        name: {
            "sequences_per_second": rows / statistics.median(times), "first_seconds": first[name],
            "ours_over_it": statistics.median(t / o for t, o in zip(times, seconds["ours"], strict=True)),
        }
        for name, times in seconds.items()
    }


def main() -> None:
    """Reads the command line, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps per turn")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.models[0])
        return
    results = {m: contest(m, ["ours", *arguments.peers], arguments.rounds, arguments.steps) for m in arguments.models}
    for model, rows in results.items():
        print(f"\n{model}: {MODELS[model]} (layers, width, batch), length {LENGTH}")
        for name, row in rows.items():
            print(f"  {name:14s} {row['sequences_per_second']:8.1f} sequences/s   ours is {row['ours_over_it']:.2f} x")
    if arguments.out:
        import importlib.metadata as metadata

        versions = {name: metadata.version(name) for name in ("jax", "flax", "optax", "torch", "transformers", "numpy")}
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        arguments.out.write_text(json.dumps({"environment": machine | versions, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
