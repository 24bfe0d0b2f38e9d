"""BERT-family encoders in JAX: pre-train, evaluate, fill masks, convert. ``import bert_jax`` itself imports no JAX."""

from typing import TYPE_CHECKING

from bert_jax.errors import BertJaxError

if TYPE_CHECKING:
    from bert_jax.inspection import inspect
    from bert_jax.model import Model, load, save

__version__ = "0.1.0"
__all__ = ["BertJaxError", "Model", "inspect", "load", "save"]


def __getattr__(name: str):
    if name in ("Model", "load", "save"):
        from bert_jax import model

        return getattr(model, name)
    if name == "inspect":
        from bert_jax.inspection import inspect

        return inspect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
