"""The verb ``bert_jax.embed``: one vector for each text, from a model or its path."""

import logging
import os
from collections.abc import Sequence

import numpy as np

from bert_jax.compilation import keep_programs
from bert_jax.embedding import sentence
from bert_jax.errors import BertJaxError, check_several
from bert_jax.model import Model, load, mean_over_tokens

logger = logging.getLogger("bert_jax")


def embed(
    model: str | os.PathLike | Model, texts: Sequence[str], *, prompt: str | None = None, batch_size: int = 64
) -> np.ndarray:
    """One vector per text, in the order of ``texts``, float32 [n, D], see :func:`bert_jax.embedding.sentence.embed`.

    Args:
      model: a loaded one, or whatever :func:`bert_jax.load` takes. Where it does not say how it makes sentence embeddings, they
        are means over the tokens, with a warning line, as in sentence-transformers.
      prompt: the name of one of its prompts; None: its default one, if it has one.

    Raises:
      BertJaxError: no such model, none with a tokenizer; else as there.
    """
    keep_programs()
    name = "this model" if isinstance(model, Model) else str(model)
    check_several(texts)
    if not isinstance(model, Model):
        model = load(model)
    if model.tokenizer is None:
        raise BertJaxError(f"{name} has no tokenizer beside its weights, and text needs one")
    settings = model.sentence
    if settings is None:
        logger.warning("how %s makes sentence embeddings was never said: they are means over the tokens", name)
        settings = mean_over_tokens(model)
    return sentence.embed(
        model.params, model.config, model.tokenizer, settings, texts, prompt=prompt, batch_size=batch_size
    )
