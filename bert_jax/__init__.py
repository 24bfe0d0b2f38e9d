"""BERT-family encoders in JAX: pre-train, evaluate, fill masks, export. ``import bert_jax`` itself imports no JAX."""

from typing import TYPE_CHECKING

from bert_jax.errors import BertJaxError

if TYPE_CHECKING:
    from bert_jax.training.workdir import Model

__version__ = "0.1.0"
__all__ = ["BertJaxError", "load", "save"]


def load(path: str) -> "Model":
    """Loads a work directory (``runs/x`` or ``runs/x@step``) or a Hugging Face directory of BERT or ALBERT.

    Returns:
      ``params`` (float32), ``config``, ``tokenizer`` and ``experiment``.

    Raises:
      BertJaxError: neither of the two, or damaged.
    """
    import pathlib

    from bert_jax import tokenizers
    from bert_jax.convert import hf
    from bert_jax.training.workdir import Model, load_workdir

    if (pathlib.Path(path) / "config.json").is_file():
        params, config = hf.load(path)
        return Model(params, config, tokenizers.load(path))
    return load_workdir(path)


def save(model: "Model", directory: str) -> None:
    """Writes a Hugging Face directory (safetensors, config, tokenizer) that ``transformers`` loads.

    Raises:
      BertJaxError: the directory exists and is not empty.
    """
    from bert_jax.convert import hf

    hf.export(model.params, model.config, model.tokenizer, directory)
