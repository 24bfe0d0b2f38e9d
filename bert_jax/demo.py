"""The demo: the main job from raw text to PyTorch on an embedded default, in minutes, on any machine.

The corpus is the documentation that a Python environment carries by construction: the docstrings of the standard library
and of numpy, scipy, jax, flax and optax, one docstring a document.
"""

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from bert_jax import config as configuration
from bert_jax import tokenizers
from bert_jax.convert import hf
from bert_jax.data.docstrings import write_docstrings
from bert_jax.data.loader import heldout_batches
from bert_jax.data.pairs import PairSpec
from bert_jax.data.prepare import prepare
from bert_jax.data.sources import Corpus
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.fill_mask import fill_mask
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from bert_jax.training.pretrain import heldout_majorities
from bert_jax.training.record import METRICS, read
from bert_jax.training.train import train

log = logging.getLogger("bert_jax")

SENTENCES = (
    "Returns the [MASK] of the array along the given axis.",
    "If True, the function raises an [MASK] when the file does not exist.",
    "The default [MASK] is None.",
)


def get_config() -> Experiment:
    """A BERT of two layers and width 128 (BERT-tiny's shape), 64 tokens, next-sentence prediction.

    No dropout: in a run of hardly more than one epoch it only costs (Geiping & Goldstein 2023, section 4.3).
    """
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                vocab_size=4096, embedding_width=128, hidden_width=128, layers=2, heads=2, ffn_width=512, max_length=64,
                dropout=0.0, attention_dropout=0.0,
            ),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=64, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=100),
        train=TrainConfig(steps=1_300, batch_size=64, eval_every=300, save_every=300, eval_batches=20),
    )


def demo(directory: Path, assignments: list[str]) -> dict[str, Any]:
    """Runs everything that is not done yet and writes ``summary.json``; called again, it continues.

    Raises:
      BertJaxError: the installed packages carry no source files, or any step fails.
    """
    started = time.monotonic()
    console = Console(stderr=True)

    def stage(text: str) -> None:
        console.print(f"[bold]{text}[/bold]", highlight=False)

    experiment = configuration.override(get_config(), assignments)
    directory.mkdir(parents=True, exist_ok=True)
    corpus, tokenizer_path, store_path = directory / "docstrings.txt", directory / "tokenizer", directory / "store"
    if not corpus.exists():
        stage("1/6 collecting docstrings")
        write_docstrings(corpus)
    if not tokenizers.is_in(tokenizer_path):
        stage("2/6 training a tokenizer")
        documents = Corpus([corpus], documents="formfeed")
        tokenizers.train("wordpiece", documents, experiment.task.encoder.vocab_size).save(tokenizer_path)
    if not store_path.exists():
        stage("3/6 preparing the token store")
        prepare([corpus], store_path, tokenizers.load(tokenizer_path), documents="formfeed", heldout=0.05)
    stage("4/6 pre-training")
    store = TokenStore(store_path)
    task = PretrainingTask(experiment.task, store)
    before = time.monotonic()
    result = train(task, experiment, directory / "model")
    train_seconds = time.monotonic() - before
    if not result.finished:
        raise BertJaxError("the demo was asked to stop; the same command continues")
    model = load(directory / "model")

    stage("5/6 filling masks")
    for sentence in SENTENCES:
        guesses = fill_mask(model.params, model.config, model.tokenizer, sentence)[0]
        console.print(f"  {sentence}  ->  " + ", ".join(f"{g.piece} {g.probability:.2f}" for g in guesses), highlight=False)

    stage("6/6 exporting, and comparing with transformers in PyTorch")
    exported = directory / "export"
    if not exported.exists():
        hf.export(model.params, model.config, model.tokenizer, exported)
    settings = experiment.train
    speeds = [row["sequences_per_second"] for row in read(directory / "model" / METRICS)
              if "sequences_per_second" in row]
    summary = {
        "eval_mlm_accuracy": result.evaluation["mlm_accuracy"],
        "majority_baseline": heldout_majorities(task, settings.eval_size, settings.eval_limit)["mlm_majority_baseline"],
        "eval_loss": result.evaluation["loss"],
        "eval_nsp_accuracy": result.evaluation.get("nsp_accuracy"),
        "train_seconds": round(train_seconds, 1),
        "sequences_per_second": float(np.median(speeds)) if speeds else None,
        "export_max_abs_diff": _compare_with_transformers(model, store, experiment, exported),
        "corpus_megabytes": round(corpus.stat().st_size / 1e6, 1),
        "total_seconds": round(time.monotonic() - started, 1),
    }
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print_json(json.dumps(summary))
    console.print(f"curves: {directory}/model/curves.png   PyTorch: transformers.AutoModelForPreTraining.from_pretrained"
                  f'("{exported}")', highlight=False, soft_wrap=True)
    return summary


def _compare_with_transformers(model: Model, store: TokenStore, experiment: Experiment, exported: Path) -> float | None:
    """The largest difference of any logit on held-out text at real positions, or None without torch and transformers."""
    try:
        import torch
        from transformers import AutoModelForPreTraining
    except ImportError:
        log.warning("torch or transformers is not installed: the export is not compared (pip install 'bert_jax[torch]')")
        return None
    examples = dataclasses.replace(experiment.task.examples, packing=None)  # a row holds one example there
    batch = next(iter(heldout_batches(store.split("heldout"), examples, batch_size=16)))
    ours = jax.jit(lambda params, batch: api.apply(params, model.config, batch))(model.params, batch)
    peer = AutoModelForPreTraining.from_pretrained(exported).eval()
    with torch.no_grad():
        theirs = peer(
            input_ids=torch.from_numpy(batch["input_ids"]).long(),
            token_type_ids=torch.from_numpy(batch["segment_ids"]).long(),
            attention_mask=torch.from_numpy(batch["attention_mask"]).long(),
        )
    tokens = np.abs(np.asarray(ours.logits["mlm"]) - theirs.prediction_logits.numpy())[batch["attention_mask"]]
    order = theirs["sop_logits" if "sop_logits" in theirs else "seq_relationship_logits"]  # of an ALBERT, of a BERT
    pairs = np.abs(np.asarray(ours.logits["pair"]) - order.numpy())
    return float(max(tokens.max(), pairs.max()))
