"""One pre-training step against transformers in PyTorch: forward, backward, clipping and AdamW, float32, dropout on.

  python benchmarks/step.py                          # both models below, every peer; about ten minutes
  python benchmarks/step.py --models tiny --rounds 3

Contestants take turns, a few steps each (:mod:`contest`); ratios are medians over rounds, with their range. PyTorch gets its
masks ready-made; ours draws them inside the step. All count sequences per second of whole optimiser steps at equal batch,
length, vocabulary and number of predictions.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import contest

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


def compare(model: str, peers: Sequence[str], rounds: int, steps: int) -> dict:
    """Figures of ours and of every peer: sequences a second, and how many times as fast ours is, with the range over rounds."""
    found = contest.contest(__file__, ["ours", *peers], ["--models", model], rounds, steps, f"{model}: ")
    rows = MODELS[model][2]
    return {
        name: {
            "sequences_per_second": rows * steps / statistics.median(times.turns), "first_seconds": times.first,
            "ours_over_it": contest.ratio(times.turns, found["ours"].turns),
        }
        for name, times in found.items()
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
        model = arguments.models[0]
        contest.answer(ours(model) if arguments.worker == "ours" else theirs(model, arguments.worker.split("-")[1]), 2)
        return
    results = {model: compare(model, arguments.peers, arguments.rounds, arguments.steps) for model in arguments.models}
    for model, rows in results.items():
        print(f"\n{model}: {MODELS[model]} (layers, width, batch), length {LENGTH}")
        for name, row in rows.items():
            middle, low, high = row["ours_over_it"]
            speed = f"{row['sequences_per_second']:8.1f} sequences/s"
            print(f"  {name:14s} {speed}   ours is {middle:.2f} x ({low:.2f} to {high:.2f})")
    if arguments.out:
        versions = contest.environment("jax", "flax", "optax", "torch", "transformers", "numpy")
        arguments.out.write_text(json.dumps({"environment": versions, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
