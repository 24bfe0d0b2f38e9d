"""Small data of every kind and a configuration for it, for runs of bert-jax finetune."""

import json
import pathlib

import numpy as np

WORDS = "cat dog bird mat road tree".split()
CONFIG = """
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks import {kind}
from bert_jax.tasks.tables import Table
from bert_jax.tasks.columns import conllu, Columns
from bert_jax.tasks.squad import Squad
from bert_jax.tasks.choice import Questions
from bert_jax.tasks.masked_words import Cloze
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config():
    return Experiment(
        {kind}(
            finetuned_encoder(EncoderConfig(), {labels}, {heads}), "nowhere", {data}, {heldout}, lengths=(16,), shapes=2{more}
        ),
        AdamW(learning_rate=2e-3, warmup_steps=1, bias_correction=True),
        TrainConfig(steps=6, batch_size=8, eval_every=3, save_every=3, log_every=3, eval_batches=None, keep=1),
    )
"""


def sentences(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = rng.choice(WORDS, rng.integers(2, 6))
        rows.append((" ".join(words), "red" if words[0] < "d" else "blue", f"{len(words)}.5"))
    return rows


def make(kind: str, folder: pathlib.Path) -> str:
    """The configuration of a kind, with data beside it."""
    for name, count, seed in (("train", 40, 0), ("dev", 13, 1)):
        rows = sentences(count, seed)
        (folder / f"{name}.tsv").write_text("sentence\tcolour\tvalue\n" + "".join("\t".join(row) + "\n" for row in rows))
        (folder / f"{name}.tags").write_text("".join(
            "".join(f"{word}\t{'B-X' if word < 'd' else 'O'}\n" for word in row[0].split()) + "\n" for row in rows
        ))
        (folder / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": row[0], "qas": [{
            "id": f"{name}{k}", "question": "she ran", "answers": [{"text": row[0].split()[1], "answer_start": len(
                row[0].split()[0]) + 1}]}]} for k, row in enumerate(rows)]}]}))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(
            {"first": row[0], "a": "the cat", "b": "the dog", "label": "AB"[row[1] == "red"]}) + "\n" for row in rows))

    def table(name, label):
        return f'Table({str(folder / f"{name}.tsv")!r}, ("sentence",), {label!r})'

    sources = {
        "Classification": lambda name: table(name, "colour"), "Regression": lambda name: table(name, "value"),
        "Tagging": lambda name: f"Columns({str(folder / f'{name}.tags')!r})",
        "QuestionAnswering": lambda name: f"Squad({str(folder / f'{name}.json')!r})",
        "Choice": lambda name: f'Questions({str(folder / f"{name}.jsonl")!r}, ("first",), ("a", "b"), "label")',
        "MaskedWords": lambda name: f'Cloze({table(name, "colour")}, "{{0}} [MASK]", ("red", "blue"), ("red", "blue"))',
    }
    labels = {"Classification": ("red", "blue"), "Regression": ("value",), "Tagging": ("O", "B-X", "I-X")}
    heads = {"Tagging": ("tagger",), "QuestionAnswering": ("span",), "Choice": ("pooler", "choice"), "MaskedWords": ("mlm",)}
    more = {"Regression": ", offset=4.0, scale=2.0", "QuestionAnswering": ", question_tokens=4, answer_tokens=4, stride=4"}
    (folder / f"{kind}.py").write_text(CONFIG.format(
        kind=kind, labels=labels.get(kind, ()), heads=heads.get(kind, ("pooler", "classifier")), data=sources[kind]("train"),
        heldout=sources[kind]("dev"), more=more.get(kind, ""),
    ))
    return str(folder / f"{kind}.py")
