"""One pre-training step against transformers in PyTorch, its last BERT in Flax, and keras-hub: forward, backward, clipping and
AdamW, dropout on, float32 but for the contestants that say bf16.

  make peers                                         # environments for the last two, which are left out without
  python benchmarks/step.py --out benchmarks/results/step_cpu.json    # both models below, every peer; about ten minutes
  python benchmarks/step.py --models tiny --rounds 3

Contestants take turns, a few steps each (:mod:`contest`); ratios are medians over rounds, with their range. The peers get their
masks ready-made; ours draws them inside the step. All count sequences per second of whole optimiser steps at equal batch,
length, vocabulary and number of predictions.

- ``ours-no-dropout``: ours with rates of 0, which shows what dropout takes.
- ``ours-bf16``: ours with ``compute_dtype="bfloat16"``.
- ``torch-...``: ``BertForPreTraining`` of transformers, eager, with sdpa, or that with torch.compile; the last two also under
  autocast, as transformers' Trainer runs them with ``bf16=True``.
- ``flax``: ``FlaxBertForPreTraining`` of transformers 4.57, in a jitted step with optax, as its run_mlm_flax.py does it.
- ``keras``: keras-hub's ``BertMaskedLM`` on the JAX backend, all turns in one ``fit``, which is slow to begin. It has no
  next-sentence prediction, and so less to do.
"""

import argparse
import functools
import os
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import contest
import provenance

# name -> layers, width, batch; length 128 and vocabulary 30,522 throughout.
MODELS = {"tiny": (2, 128, 32), "base4": (4, 768, 8)}
PEERS = ("ours-no-dropout", "ours-bf16", "torch-eager", "torch-sdpa", "torch-compile", "torch-sdpa-bf16", "torch-compile-bf16",
         "flax", "keras")
PACKAGES = {"ours": ("jax", "flax", "optax"), "torch": ("torch", "transformers"), "keras": ("keras", "keras-hub", "jax"),
            "flax": ("transformers", "jax", "flax", "optax")}
RATE, DECAY, EPS, CLIP = 1e-4, 0.01, 1e-6, 1.0
LENGTH, VOCABULARY, PREDICTIONS = 128, 30522, 19
MOST_STEPS = 1_000  # of keras's one fit


def pretraining(model: str, vocabulary: int = VOCABULARY, dropout: float = 0.1, dtype: str = "float32"):
    """The task that ours trains."""
    from bert_jax.models.config import EncoderConfig
    from bert_jax.objectives.mlm import MaskedLM
    from bert_jax.objectives.nsp import NextSentence
    from bert_jax.objectives.pretraining import Pretraining

    layers, width, _ = MODELS[model]
    encoder = EncoderConfig(
        vocab_size=vocabulary, embedding_width=width, hidden_width=width, layers=layers, heads=width // 64,
        ffn_width=4 * width, dropout=dropout, attention_dropout=dropout, compute_dtype=dtype,
    )
    return Pretraining(encoder, (MaskedLM(), NextSentence()))


def ours(model: str, mode: str):
    """A function that does ``n`` steps of ours and returns the loss."""
    import jax
    import numpy as np

    from bert_jax.objectives.base import Pieces
    from bert_jax.objectives.pretraining import PretrainingTask
    from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
    from bert_jax.training.optimizer import AdamW, make_optimizer
    from bert_jax.training.step import abstract_state, init_state, make_train_step

    dropout, dtype = 0.0 if mode == "no-dropout" else 0.1, "bfloat16" if mode == "bf16" else "float32"
    task = PretrainingTask(pretraining(model, dropout=dropout, dtype=dtype), None)  # the batch is made here
    task._pieces = Pieces(VOCABULARY, 0, 100, 101, 102, 103, (0, 100, 101, 102, 103))
    mesh = make_mesh(MeshConfig())
    optimizer = make_optimizer(AdamW(warmup_steps=10), 100_000, task.logical_axes())
    abstract = abstract_state(task, optimizer, mesh)
    state = init_state(task, optimizer, abstract, jax.random.key(0))
    step = make_train_step(task, optimizer, mesh, abstract, accumulate=1)
    rows = MODELS[model][2]
    batch = to_devices(inputs(rows) | {"word_starts": np.ones((rows, LENGTH), bool)}, mesh)

    def run(n):
        nonlocal state
        with jax.set_mesh(mesh):
            for _ in range(n):
                state, metrics = step(state, batch)
            return float(metrics["loss"].sum)

    return run


def pytorch(model: str, mode: str):
    """The same in PyTorch, as its users write it."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    layers, width, rows = MODELS[model]
    torch.manual_seed(0)
    net = BertForPreTraining._from_config(BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width, attn_implementation="eager" if mode == "eager" else "sdpa",
    )).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY, eps=EPS)
    tensors = {name: torch.from_numpy(value) for name, value in inputs(rows).items()}
    labels = torch.full((rows, LENGTH), -100)
    labels[:, 1 : 1 + PREDICTIONS] = tensors["input_ids"][:, 1 : 1 + PREDICTIONS].long()
    arguments = {
        "input_ids": tensors["input_ids"].long(), "token_type_ids": tensors["segment_ids"].long(),
        "attention_mask": tensors["attention_mask"].long(), "labels": labels,
        "next_sentence_label": tensors["next_sentence_label"].long(),
    }
    forward = torch.compile(net) if "compile" in mode else net

    def run(n):
        for _ in range(n):
            with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in mode):
                loss = forward(**arguments).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
        return float(loss.detach())

    return run


def flax(model: str):
    """The same with the last BERT in Flax, cross entropies as in transformers' run_mlm_flax.py."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from transformers import BertConfig, FlaxBertForPreTraining

    layers, width, rows = MODELS[model]
    net = FlaxBertForPreTraining(BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width,
    ))
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, eps=EPS, weight_decay=DECAY))
    batch = {name: jnp.asarray(value) for name, value in inputs(rows).items()}
    chosen = np.zeros((rows, LENGTH), np.float32)
    chosen[:, 1 : 1 + PREDICTIONS] = 1

    def loss(params, key):
        found = net(batch["input_ids"], batch["attention_mask"].astype(jnp.int32), batch["segment_ids"], params=params,
                    dropout_rng=key, train=True)
        entropy = optax.softmax_cross_entropy_with_integer_labels(found.prediction_logits, batch["input_ids"])
        pairs = optax.softmax_cross_entropy_with_integer_labels(found.seq_relationship_logits, batch["next_sentence_label"])
        return (entropy * chosen).sum() / chosen.sum() + pairs.mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, key):
        key, dropout = jax.random.split(key)
        value, gradients = jax.value_and_grad(loss)(params, dropout)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, key, value

    params, key = net.params, jax.random.key(0)
    state = jax.jit(optimizer.init)(params)

    def run(n):
        nonlocal params, state, key
        for _ in range(n):
            params, state, key, value = step(params, state, key)
        return float(value)

    return run


def keras(model: str):
    """Masked language modelling with keras-hub, which has no other pre-training."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras as library
    import keras_hub
    import numpy as np

    layers, width, rows = MODELS[model]
    net = keras_hub.models.BertMaskedLM(
        keras_hub.models.BertBackbone(VOCABULARY, layers, width // 64, width, 4 * width, dropout=0.1, max_sequence_length=512),
        preprocessor=None,
    )
    net.compile(
        optimizer=library.optimizers.AdamW(RATE, weight_decay=DECAY, epsilon=EPS, global_clipnorm=CLIP),
        loss=library.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True,
    )
    batch = inputs(rows)
    places = np.broadcast_to(np.arange(1, 1 + PREDICTIONS), (rows, PREDICTIONS))
    arguments = {"token_ids": batch["input_ids"], "padding_mask": batch["attention_mask"], "segment_ids": batch["segment_ids"],
                 "mask_positions": places}
    labels = np.take_along_axis(batch["input_ids"], places, axis=1)

    allowed, done = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(library.callbacks.Callback):
        """Lets ``fit`` do as many steps as are allowed, and says which are done."""

        async_safe = True  # steps are dispatched one after another, as without callbacks

        def on_train_batch_begin(self, batch, logs=None):
            allowed.acquire()

        def on_train_batch_end(self, batch, logs=None):  # is called when the loss is there
            done.release()

    repeated = {name: np.tile(value, (MOST_STEPS, 1)) for name, value in arguments.items()}
    fit = threading.Thread(daemon=True, target=lambda: net.fit(
        repeated, np.tile(labels, (MOST_STEPS, 1)), batch_size=rows, shuffle=False, verbose=0, callbacks=[Turns()],
    ))

    def run(n):
        if fit.ident is None:
            fit.start()
        allowed.release(n)
        for _ in range(n):
            while not done.acquire(timeout=1):
                if not fit.is_alive():
                    sys.exit(f"fit has ended: see above, or ask for at most {MOST_STEPS:,} steps in all")

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
    pythons = {name: contest.python_of(name) for name in ("flax", "keras")}
    found = contest.contest(__file__, ["ours", *peers], ["--models", model], rounds, steps, f"{model}: ", pythons)
    rows = MODELS[model][2]
    return {
        name: {
            "sequences_per_second": rows * steps / statistics.median(times.turns), "first_seconds": times.first,
            "ours_over_it": contest.ratio(times.turns, found["ours"].turns), "versions": times.said, "turns": times.turns,
        }
        for name, times in found.items()
    }


def main() -> None:
    """Reads the command line, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    parser.add_argument("--out", type=Path, help="JSON file to write; contestants left out keep their figures there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        kind, _, mode = arguments.worker.partition("-")
        run = {"ours": functools.partial(ours, mode=mode), "torch": functools.partial(pytorch, mode=mode), "flax": flax,
               "keras": keras}[kind]
        contest.answer(run(arguments.models[0]), 2, functools.partial(contest.versions, *PACKAGES[kind]))
        return
    absent = [name for name in ("flax", "keras") if name in arguments.peers and not contest.python_of(name).exists()]
    if absent:
        print(f"left out, for want of {contest.python_of(absent[0])}: {', '.join(absent)} (make peers)", file=sys.stderr)
    peers = [name for name in arguments.peers if name not in absent]
    begun = provenance.begin()
    results = {model: compare(model, peers, arguments.rounds, arguments.steps) for model in arguments.models}
    for model, rows in results.items():
        print(f"\n{model}: {MODELS[model]} (layers, width, batch), length {LENGTH}")
        for name, row in rows.items():
            middle, low, high = row["ours_over_it"]
            speed = f"{row['sequences_per_second']:8.1f} sequences/s"
            print(f"  {name:14s} {speed}   ours is {middle:.2f} x ({low:.2f} to {high:.2f})")
    if arguments.out:
        settings = {"environment": contest.environment("numpy"), "rounds": arguments.rounds, "steps": arguments.steps}
        contest.keep(arguments.out, provenance.ended(begun) | settings | {"results": results})


if __name__ == "__main__":
    main()
