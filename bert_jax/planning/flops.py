"""Arithmetic and memory traffic of a training step, without running it.

XLA counts the body of a scan once, so its own cost analysis says nothing about depth. What an encoder costs is given by a
formula, which the tests hold against the products in the traced program; what a task costs, with whatever its objectives do, is
counted there.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval

from bert_jax.models.config import EncoderConfig
from bert_jax.models.layers import is_fused
from bert_jax.objectives.pretraining import PretrainingTask


@dataclasses.dataclass(frozen=True)
class Work:
    """For one sequence, or one row of several.

    Attributes:
      forward: operations of the matrix products of the forward pass, two for each multiplication with its addition.
      repeated: of those that the backward pass computes again under the encoder's remat policy, or in fused attention.
      traffic: bytes to and from memory for activations, forward and backward.
      stored: bytes that the forward pass keeps for the backward pass, roughly.
    """

    forward: float
    repeated: float
    traffic: float
    stored: float

    @property
    def useful(self) -> float:
        """Forward and backward pass without repetition: what model FLOPs utilisation counts (Chowdhery et al. 2022, B)."""
        return 3 * self.forward


def products(function: Callable[..., Any], *operands: Any) -> int:
    """Operations of all products of matrices that the results of ``function`` depend on, loops counted as often as they run.
    What is traced and then used by nothing is left out, as XLA leaves it out."""
    jaxpr = jax.make_jaxpr(function)(*operands).jaxpr
    return _products(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], 1)


def _products(jaxpr: Any, times: int) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * inner * times
        again = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for inside in value if isinstance(value, (tuple, list)) else (value,):
                inside = getattr(inside, "jaxpr", inside)
                if hasattr(inside, "eqns"):
                    total += _products(inside, again)
    return total


def task_work(task: PretrainingTask, rows: int = 8) -> Work:
    """:func:`work` of a task (of its first turn): products counted in the traced program, generators, decoders and all; traffic
    and memory by the formula, for the encoder alone. Fused attention is counted as what it computes, plain attention, because a
    kernel is a program for one row; what its kernels repeat is the formula's."""
    encoder = task.config.encoder
    plain = dataclasses.replace(encoder, attention="xla")
    key = jax.eval_shape(jax.random.key, 0)
    batch = jax.eval_shape(lambda batch, key: task.corrupt(batch, key, None), task.batch_shapes(rows), key)

    def counted(encoder: EncoderConfig, backward: bool) -> float:
        same = PretrainingTask(dataclasses.replace(task.config, encoder=encoder), None)

        def loss(params, batch, key):
            return sum(term.value for term in same.loss(params, batch, key).terms.values())

        return products(jax.value_and_grad(loss) if backward else loss, jax.eval_shape(same.init, key), batch, key) / rows

    predictions = batch["masked_positions"].shape[1] if "masked_positions" in batch else 0
    examples = batch["example_starts"].shape[1] if "example_starts" in batch else 1
    found, unfused = (work(one, batch["input_ids"].shape[1], predictions, examples) for one in (encoder, plain))
    repeated = counted(plain, True) - counted(dataclasses.replace(plain, remat="masks"), True)  # masks: no product twice
    return dataclasses.replace(
        found, forward=counted(plain, False), repeated=repeated + found.repeated - unfused.repeated
    )


def work(config: EncoderConfig, length: int, predictions: int, examples: int = 1) -> Work:
    """Operations and traffic for a sequence of ``length`` tokens of which M = ``predictions`` are predicted, or for a row of up
    to P = ``examples``: P pooled states, a bias for every query and key, and all L^2 scores, those between examples too.

    Traffic assumes that every result of a product is written once and read once by what follows, in the compute dtype (scores
    in float32), that all else is fused into its neighbours, and that the backward pass moves twice what the forward pass does.
    """
    width, ffn, embedding, vocabulary = config.hidden_width, config.ffn_width, config.embedding_width, config.padded_vocab_size
    scores = mixing = 2 * length * length * width  # QK^T; as much again for the product with V
    if config.positions == "relative":  # W of queries, their product with the waves of keys, and with two vectors of segments
        scores += 2 * length * width * width + 2 * length * length * width * config.heads + 2 * length * config.segments * width
    intermediate = 2 * length * width * ffn
    layer = 4 * 2 * length * width * width + scores + mixing + 2 * intermediate
    forward = config.depth * layer
    if embedding != width:
        forward += 2 * length * embedding * width
    if "mlm" in config.with_heads:
        forward += 2 * predictions * (width * embedding * config.mlm_transform + embedding * vocabulary)
    if "pooler" in config.with_heads:
        forward += 2 * examples * width * width
    if "pair" in config.with_heads:
        forward += 2 * examples * width * 2
    fused = is_fused(config)  # scores are never stored; the backward pass makes them again
    repeated = config.depth * {
        "masks": fused * scores, "elementwise": fused * scores, "attention": scores, "feed_forward": scores + intermediate,
        "full": layer + fused * scores,
    }[config.remat]

    size = 2 if config.compute_dtype == "bfloat16" else 4
    results = 9 * length * width + length * ffn  # q, k, v, context, two outputs, two norms, the layer's input; intermediate
    probabilities = 0 if fused else config.heads * length * length
    bias = 4 * length * length * (examples > 1)  # read by every layer, made once
    per_layer = 2 * (size * results + (4 + size) * probabilities) + bias
    moved = config.depth * per_layer + 2 * 4 * predictions * vocabulary
    again = config.depth * per_layer * repeated / (config.depth * layer)
    kept = length * width * (1 if config.remat == "full" else 7)
    kept += length * ffn * (config.remat in ("masks", "elementwise", "attention"))
    kept += probabilities * (config.remat in ("masks", "elementwise")) + length * (ffn + width) * (config.remat == "masks")
    stored = config.depth * size * kept + 2 * 4 * predictions * vocabulary + bias
    return Work(forward, repeated, 3 * moved + again, stored)


def state_traffic(trained: float, frozen: float, accumulate: int, compute_bytes: int) -> float:
    """Bytes to and from memory of an update for so many parameters on this device: all are read for forward and backward pass
    of every micro-batch; of those that are trained float32 gradients are written and read there, and float32 parameters and
    both moments read and written."""
    return (trained + frozen) * accumulate * 2 * compute_bytes + trained * (accumulate * 2 * 4 + 4 + 6 * 4)
