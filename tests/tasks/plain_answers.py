"""Answers without all that makes them fast: a row for each example, batch after batch on one device; what the fast ones must
equal."""

import jax
import numpy as np

from bert_jax.tasks.batches import EvalBatches


def predict(predictor, params, texts, lengths, batch_size=64):
    """The answers about ``texts``, in their order, and the outputs behind them."""
    encoded, made = predictor.encode(texts), {}
    batches = EvalBatches(encoded, lengths, batch_size, None, predictor.tokenizer.pad_id, None)
    for batch in batches:
        for name, rows in jax.device_get(predictor.run(params, batch)).items():
            made.setdefault(name, []).extend(rows[batch["example"] >= 0])
    places = np.argsort(batches.order)
    outputs = {name: [rows[k] for k in places] for name, rows in made.items()}
    return predictor.answers(texts, encoded, outputs), outputs
