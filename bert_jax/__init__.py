"""BERT-family encoders in JAX: pre-train, fine-tune, predict, embed, convert. ``import bert_jax`` itself imports no JAX."""

import importlib
from typing import TYPE_CHECKING

from bert_jax.errors import BertJaxError

if TYPE_CHECKING:
    from bert_jax.data.prepare import prepare
    from bert_jax.evaluating import evaluate
    from bert_jax.finetuning import finetune
    from bert_jax.inspection import inspect
    from bert_jax.model import Model, load, save
    from bert_jax.predicting import predict
    from bert_jax.training.pretrain import pretrain
    from bert_jax.vectors import embed

__version__ = "0.1.0"
__all__ = ["BertJaxError", "Model", "embed", "evaluate", "finetune", "inspect", "load", "predict", "prepare", "pretrain",
           "save"]


_HOMES = {"Model": "model", "load": "model", "save": "model", "inspect": "inspection", "finetune": "finetuning",
          "evaluate": "evaluating", "predict": "predicting", "embed": "vectors", "prepare": "data.prepare",
          "pretrain": "training.pretrain"}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"bert_jax.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
