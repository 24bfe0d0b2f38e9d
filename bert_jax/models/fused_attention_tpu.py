"""The kernels of :mod:`bert_jax.models.fused_attention` for TPUs: Pallas, compiled by Mosaic.

A program has all queries and keys of a row, for as many heads as fill the 128 lanes of a register (two of width 64): scores of
512 tokens take 1 MiB, and a TPU core has 16 MiB or more of fast memory. So nothing is cut into blocks. Scores stand as [K, Q],
so that what belongs to a query lies along the lanes and its maximum and sum are taken over sublanes; heads stay side by side
in the last axis, as the products before and after have them, and nothing is moved in the chip's main memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from bert_jax.models.fused_parts import HIDDEN, LOG2E, drop, keeps, scale_of_kept

LANES, LONGEST = 128, 512


def problem(query, key, bias) -> str | None:
    """Why these shapes are not for the kernels here (lengths L, heads N of width H); None: they are."""
    number, width = query.shape[2:]
    if any(length % LANES or length > LONGEST for length in (query.shape[1], key.shape[1])):
        return f"lengths must be multiples of {LANES} up to {LONGEST}"
    if LANES % width or number % (LANES // width):
        return f"heads of width {width} must be as many as fill {LANES} lanes, or a multiple of that"
    return None if bias.shape[1] == 1 else "the bias must be that of all heads"


def _together(query) -> int:
    """Heads of a program."""
    return LANES // query.shape[3]


def _call(kernel, query, key, bias, words, heads, more, outputs, *, rate: float, interpret: bool):
    """``kernel`` for all rows and groups of heads: given query, key, value, bias, what dropout's hash needs, and ``more``;
    of ``more`` and ``outputs`` each is like queries or keys [B, L, N, H], or of queries [B, N, Q]."""
    (rows, queries, number, width), keys, several = query.shape, key.shape[1], _together(query)

    def whole(length: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, length, several * width), lambda b, n: (b, 0, n))

    def spec_of(x) -> pl.BlockSpec:
        if len(x.shape) == 4:
            return whole(x.shape[1])
        return pl.BlockSpec((None, None, several, queries), lambda b, n: (b, n, 0, 0))

    def grouped(x):
        if len(x.shape) == 4:
            return (rows, x.shape[1], number * width)
        return (rows, number // several, several, queries)

    scalars = pl.BlockSpec(memory_space=tpu.SMEM)
    columns = bias.shape[2]
    return pl.pallas_call(
        functools.partial(kernel, width=width, keys=keys, rate=rate), grid=(rows, number // several),
        in_specs=[
            whole(queries), whole(keys), whole(keys), pl.BlockSpec((None, None, keys, columns), lambda b, n: (b, 0, 0, 0)),
            *((scalars, scalars) if words is not None else (None, None)), *map(spec_of, more),
        ],
        out_specs=[spec_of(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(grouped(x), x.dtype) for x in outputs], interpret=interpret,
    ), lambda x: x.reshape(grouped(x))


def forward_call(query, key, value, bias, words, heads, *, rate: float, interpret: bool):
    """Context [B, Q, N, H]; of every query's scores in base 2 the maximum, and the sum of exponentials below it [B, N, Q]."""
    rows, queries, number, _ = query.shape
    statistics = jax.ShapeDtypeStruct((rows, number, queries), jnp.float32)
    outputs = (jax.ShapeDtypeStruct(query.shape, query.dtype), statistics, statistics)
    call, flat = _call(_forward_kernel, query, key, bias, words, heads, (), outputs, rate=rate, interpret=interpret)
    results = call(flat(query), flat(key), flat(value), bias.swapaxes(2, 3), words, heads)
    return tuple(result.reshape(x.shape) for result, x in zip(results, outputs, strict=True))


def backward_call(query, key, value, bias, words, heads, context, maxima, totals, gradient, *, rate: float, interpret: bool):
    """Gradients of query, key and value. (``context`` is not read: what it would give is a sum of what is at hand.)"""
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)]
    more = (gradient, maxima, totals)
    call, flat = _call(_backward_kernel, query, key, bias, words, heads, more, outputs, rate=rate, interpret=interpret)
    results = call(flat(query), flat(key), flat(value), bias.swapaxes(2, 3), words, heads, *map(flat, more))
    return tuple(result.reshape(x.shape) for result, x in zip(results, outputs, strict=True))


def _product(a, b, over: tuple[int, int]):
    """The sum over one axis of each, float32."""
    axes = ((over[0],), (over[1],))
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _scores(query, key, bias_ref):
    """In base 2 [K, Q]."""
    scores = _product(key, query, (1, 1)) * np.float32(query.shape[1] ** -0.5 * LOG2E)
    return scores + jnp.maximum(bias_ref[...], HIDDEN) * np.float32(LOG2E)


def _mask(words_ref, heads_ref, head, shape: tuple[int, int], rate: float):
    """Where dropout keeps [K, Q]; None: there is no dropout."""
    if words_ref is None:
        return None
    row = pl.program_id(0)
    key, query = (jax.lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.uint32) for axis in (0, 1))
    place = heads_ref[head] + query * np.uint32(shape[0]) + key
    return keeps(place, words_ref[row, 0], words_ref[row, 1], rate)


def _heads_of(ref, width: int):
    """For every head of a program its number in it and its lanes."""
    several = ref.shape[1] // width
    return [(n, pl.program_id(1) * several + n, slice(n * width, (n + 1) * width)) for n in range(several)]


def _forward_kernel(
    q_ref, k_ref, v_ref, bias_ref, words_ref, heads_ref, context_ref, maxima_ref, totals_ref, *, width, keys, rate
):
    for n, head, lanes in _heads_of(q_ref, width):
        scores = _scores(q_ref[:, lanes], k_ref[:, lanes], bias_ref)
        largest = scores.max(axis=0, keepdims=True)
        weights = jnp.exp2(scores - largest)
        total = weights.sum(axis=0, keepdims=True)
        weights = drop(weights, _mask(words_ref, heads_ref, head, scores.shape, rate))
        weights *= scale_of_kept(words_ref, rate) / total
        context = _product(weights.astype(v_ref.dtype), v_ref[:, lanes], (0, 0))
        context_ref[:, lanes] = context.astype(context_ref.dtype)
        maxima_ref[n : n + 1] = largest
        totals_ref[n : n + 1] = total


def _backward_kernel(
    q_ref, k_ref, v_ref, bias_ref, words_ref, heads_ref, gradient_ref, maxima_ref, totals_ref,
    d_query_ref, d_key_ref, d_value_ref, *, width, keys, rate,
):
    kept, scale = scale_of_kept(words_ref, rate), width**-0.5
    for n, head, lanes in _heads_of(q_ref, width):
        query, key, value, gradient = (ref[:, lanes] for ref in (q_ref, k_ref, v_ref, gradient_ref))
        scores = _scores(query, key, bias_ref)
        weights = jnp.exp2(scores - maxima_ref[n : n + 1]) / totals_ref[n : n + 1]
        mask = _mask(words_ref, heads_ref, head, scores.shape, rate)
        dropped = (drop(weights, mask) * kept).astype(value.dtype)
        d_value_ref[:, lanes] = _product(dropped, gradient, (1, 0)).astype(d_value_ref.dtype)
        d_weights = drop(_product(value, gradient, (1, 1)) * kept, mask)
        inner = (weights * d_weights).sum(axis=0, keepdims=True)
        d_scores = (weights * (d_weights - inner)).astype(query.dtype)
        d_key_ref[:, lanes] = (_product(d_scores, query, (1, 0)) * scale).astype(d_key_ref.dtype)
        d_query_ref[:, lanes] = (_product(d_scores, key, (0, 0)) * scale).astype(d_query_ref.dtype)
