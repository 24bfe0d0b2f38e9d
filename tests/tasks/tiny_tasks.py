"""A tiny task of every kind whose examples are given, not read, and updates of it on any mesh."""

import dataclasses
from unittest import mock

import jax
import numpy as np

from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.parallel.mesh import MeshConfig, batch_shards, make_mesh, to_devices
from bert_jax.tasks import Choice, Classification, MaskedWords, QuestionAnswering, Regression, Tagging, finetuning_task
from bert_jax.tasks.base import FinetuningTask
from bert_jax.tasks.choice import Questions
from bert_jax.tasks.columns import Columns
from bert_jax.tasks.masked_words import Cloze
from bert_jax.tasks.squad import Answer, Gold, Squad
from bert_jax.tasks.tables import Rows, Table
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from bert_jax.training import train as train_module
from bert_jax.training.optimizer import AdamW, frozen, make_optimizer
from bert_jax.training.step import abstract_state, init_state, make_train_step
from bert_jax.training.train import train

WORDS = "the a cat dog bird sat ran sang on in".split()
TOKENIZER = WordPieceTokenizer([*SPECIALS, *WORDS, "."])
ENCODER = EncoderConfig(
    vocab_size=TOKENIZER.vocab_size, embedding_width=16, hidden_width=16, layers=2, heads=8, ffn_width=32, max_length=16,
    vocab_multiple=8,
)
KINDS = ("Classification", "Regression", "QuestionAnswering", "Tagging", "Choice", "MaskedWords")


def make_task(kind: str = "Classification", tricks: tuple = (), count: int = 24, fields=None, **changes) -> FinetuningTask:
    """A task of this kind with ``count`` examples. ``changes``: of the encoder; ``fields``: of the task."""
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(count)]
    numbers = rng.integers(0, 2, count)
    heads, labels, own = ("pooler", "classifier"), ("red", "blue", "green"), {}
    source, texts, answers = Table("memory", ("text",), "label"), [(text,) for text in sentences], [labels[n] for n in numbers]
    if kind == "Regression":
        labels, answers, own = ("size",), [str(3.0 + n) for n in numbers], {"offset": 3.0, "scale": 0.5}
    if kind == "QuestionAnswering":
        source, heads, labels = Squad("memory"), ("span",), ()
        texts = [("a cat", text) for text in sentences]
        answers = [Gold(str(k), (Answer(text.split()[0], 0),)) for k, text in enumerate(sentences)]
        own = {"stride": 4, "question_tokens": 2, "answer_tokens": 3}
    if kind == "Tagging":
        source, heads, labels = Columns("memory"), ("tagger",), ("N", "V")
        texts = [tuple(text.split()) for text in sentences]
        answers = [tuple("NV"[len(word) % 2] for word in words) for words in texts]
    if kind == "Choice":
        source, heads, labels = Questions("memory.tsv", ("first",), ("one", "two"), "label"), ("pooler", "choice"), ()
        texts = [(text, "cat", "dog ran", "bird")[: 3 + k % 2] for k, text in enumerate(sentences)]
        answers = [str(n) for n in numbers]
    if kind == "MaskedWords":
        source, heads, labels = Cloze(source, "{0} [MASK]", ("x", "y"), ("cat", "dog")), ("mlm",), ()
        texts, answers = [(f"{text} [MASK] .", "cat", "dog") for text in sentences], [("cat", "dog")[n] for n in numbers]
    encoder = dataclasses.replace(ENCODER, with_heads=heads, labels=labels, **changes)
    made_of = {"Classification": Classification, "Regression": Regression, "QuestionAnswering": QuestionAnswering,
               "Tagging": Tagging, "Choice": Choice, "MaskedWords": MaskedWords}[kind]
    own = {"lengths": (16,), "shapes": 1, "packing": False, "tricks": tricks} | own | (fields or {})
    config = made_of(encoder, "memory", source, source, **own)
    model = Model(jax.device_get(api.init(dataclasses.replace(encoder, with_heads=(), labels=()), jax.random.key(1))),
                  dataclasses.replace(encoder, with_heads=(), labels=()), TOKENIZER)
    task, rows = finetuning_task(config, model), Rows(texts, answers)
    task.training = task.evaluation = task.labelled(task.predictor.encode(texts), rows, source)
    task.heldout = rows
    return task


def make_batch(task: FinetuningTask, size: int = 8) -> dict:
    return next(task.train_batches(size, 0))


def scattered(params, scale: float = 0.1, seed: int = 0):
    """Parameters away from their start, biases and scales too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.float32(a + scale * rng.standard_normal(a.shape)), params)


def gradient_of(task: FinetuningTask, params, batch, key=None):
    """(gradients, losses) as an update takes them, by the loss of the whole batch."""
    def objective(params, batch, key):
        losses = task.loss(params, batch, key)
        return sum(term.value for term in losses.terms.values()), losses

    return jax.jit(lambda params: task.gradient(objective, params, batch, jax.random.key(7) if key is None else key))(params)


def updated(task: FinetuningTask, updates: int = 3, sizes=None, accumulate: int = 1, steps: int = 100, **optimizer):
    """Parameters at first and after every update of a run of ``steps``; on one device, or a mesh of ``sizes``. ``optimizer``:
    fields of AdamW."""
    mesh = make_mesh(MeshConfig(*(sizes or (1, 1, 1))), None if sizes else jax.devices()[:1])
    config, axes = AdamW(0.01, 0, weight_decay=0.1, bias_correction=True, **optimizer), task.logical_axes()
    batches = task.train_batches(8, 0, None, accumulate * batch_shards(mesh))
    optimizer = make_optimizer(config, steps, axes)
    with jax.set_mesh(mesh):
        abstract = abstract_state(task, optimizer, mesh)
        state = init_state(task, optimizer, abstract, jax.random.key(0), jax.device_get(task.start(jax.random.key(0))))
        step = make_train_step(task, optimizer, mesh, abstract, accumulate=accumulate, frozen=frozen(config, axes), steps=steps)
        history = [jax.device_get(state.params)]
        for _ in range(updates):
            state, metrics = step(state, to_devices(next(batches), mesh))
            history.append(jax.device_get(state.params))
    return history, jax.device_get(metrics)


def finetune(experiment, workdir, model=None) -> dict[str, float]:
    """Trains to the end on one device, and returns the scores on the held-out data."""
    with mock.patch.object(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])):
        result = train(finetuning_task(experiment.task, model), experiment, workdir)
    assert result.finished
    return result.evaluation
