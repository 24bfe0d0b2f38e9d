"""The kernels of :mod:`bert_jax.models.fused_attention` for GPUs: Pallas, compiled by Triton.

The forward pass runs over blocks of keys with a running maximum and total (Dao 2023, FlashAttention-2, section 3.1). Triton's
part of Pallas is deprecated as of JAX 0.11 (a warning when a kernel is lowered) without a date for its end.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from bert_jax.models.fused_parts import HIDDEN, LOG2E, drop, keeps, scale_of_kept


class Tiles(NamedTuple):
    """How a kernel is cut: queries and keys of a block (powers of two), warps of a program, stages of its software pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int


class Cut(NamedTuple):
    """Tiles of the forward pass and of the backward one: ``whole``, one kernel of all queries, where they fit into a block;
    otherwise one kernel for the gradient of queries and one for those of keys and values."""

    forward: Tiles
    whole: Tiles
    queries: Tiles
    keys: Tiles


# By the most queries or keys that it is for; the last is for all.
CUTS = (
    (64, Cut(Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2))),
    (128, Cut(Tiles(128, 64, 8, 3), Tiles(128, 32, 4, 2), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2))),
    (math.inf, Cut(Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2))),
)


def cut_for(query, key) -> Cut:
    """That of ``CUTS`` for these lengths."""
    length = max(query.shape[1], key.shape[1])
    return next(cut for most, cut in CUTS if length <= most)


class _Sizes(NamedTuple):
    """Numbers of queries and keys, as they are, and the factor of scores in base 2."""

    queries: int
    keys: int
    factor: float


def _sizes(query, key) -> _Sizes:
    return _Sizes(query.shape[1], key.shape[1], query.shape[3] ** -0.5 * LOG2E)


def _up(count: int, block: int) -> int:
    return pl.cdiv(count, block) * block


def _specs(query, key, bias, words, tiles: Tiles, over: str | None):
    """Block specifications by kind of input, of a grid (blocks of ``over``, N, B): all of one row and head, but of ``over``
    (queries or keys) one block. q: like queries, k: like keys, b: the bias, w and h: of dropout, s: of each query."""
    width = query.shape[3]
    queries = tiles.queries if over == "queries" else _up(query.shape[1], tiles.queries)
    keys = tiles.keys if over == "keys" else _up(key.shape[1], tiles.keys)
    of_query, of_key = ((lambda i: i) if over == name else (lambda i: 0) for name in ("queries", "keys"))
    of_head = (lambda n: n) if bias.shape[1] > 1 else (lambda n: 0)
    if bias.shape[2] > 1:
        bias_spec = pl.BlockSpec((None, None, queries, keys), lambda i, n, b: (b, of_head(n), of_query(i), of_key(i)))
    else:
        bias_spec = pl.BlockSpec((None, None, None, keys), lambda i, n, b: (b, of_head(n), 0, of_key(i)))
    return {
        "q": pl.BlockSpec((None, queries, None, width), lambda i, n, b: (b, of_query(i), n, 0)),
        "k": pl.BlockSpec((None, keys, None, width), lambda i, n, b: (b, of_key(i), n, 0)),
        "b": bias_spec,
        "w": None if words is None else pl.BlockSpec((None, 2), lambda i, n, b: (b, 0)),
        "h": None if words is None else pl.BlockSpec((1,), lambda i, n, b: (n,)),
        "s": pl.BlockSpec((None, None, queries), lambda i, n, b: (b, n, of_query(i))),
    }


def _call(kernel, inputs, kinds, outputs, output_kinds, specs, grid, tiles: Tiles, interpret: bool):
    return pl.pallas_call(
        kernel, grid=grid, in_specs=[specs[kind] for kind in kinds], out_specs=[specs[kind] for kind in output_kinds],
        out_shape=outputs, interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
    )(*inputs)


def forward_call(query, key, value, bias, words, heads, *, rate: float, cut: Cut, interpret: bool):
    """Context [B, Q, N, H]; of every query's scores in base 2 the maximum, and the sum of exponentials below it [B, N, Q]."""
    tiles, (rows, queries, number, _) = cut.forward, query.shape
    specs = _specs(query, key, bias, words, tiles, "queries")
    kernel = functools.partial(_forward_kernel, sizes=_sizes(query, key), rate=rate, tiles=tiles)
    statistics = jax.ShapeDtypeStruct((rows, number, queries), jnp.float32)
    return tuple(_call(
        kernel, (query, key, value, bias, words, heads), "qkkbwh", [_like(query), statistics, statistics], "qss", specs,
        (pl.cdiv(queries, tiles.queries), number, rows), tiles, interpret,
    ))


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def backward_call(query, key, value, bias, words, heads, context, maxima, totals, gradient, *, rate, cut, interpret):
    rows, queries, number, _ = query.shape
    sizes = _sizes(query, key)
    inputs = (query, key, value, bias, words, heads, gradient, maxima, totals)
    if queries <= cut.whole.queries:
        kernel = functools.partial(_whole_kernel, sizes=sizes, rate=rate, tiles=cut.whole)
        specs = _specs(query, key, bias, words, cut.whole, None)
        return tuple(_call(
            kernel, (*inputs, context), "qkkbwhqssq", [_like(query), _like(key), _like(value)], "qkk", specs,
            (1, number, rows), cut.whole, interpret,
        ))
    kernel = functools.partial(_queries_kernel, sizes=sizes, rate=rate, tiles=cut.queries)
    specs = _specs(query, key, bias, words, cut.queries, "queries")
    d_query, inner = _call(
        kernel, (*inputs, context), "qkkbwhqssq", [_like(query), _like(maxima)], "qs", specs,
        (pl.cdiv(queries, cut.queries.queries), number, rows), cut.queries, interpret,
    )
    kernel = functools.partial(_keys_kernel, sizes=sizes, rate=rate, tiles=cut.keys)
    specs = _specs(query, key, bias, words, cut.keys, "keys")
    d_key, d_value = _call(
        kernel, (*inputs, inner), "qkkbwhqsss", [_like(key), _like(value)], "kk", specs,
        (pl.cdiv(key.shape[1], cut.keys.keys), number, rows), cut.keys, interpret,
    )
    return d_query, d_key, d_value


# In the kernels, a block of what stands in rows begins at ``start`` within its reference (``at``) and at ``first`` among all.


def _rows(ref, at, count: int, first, size: int, other: float = 0.0):
    """``count`` rows of ``ref`` [rows, H] or [rows] from ``at`` on, ``first`` being the number of the first of them among all;
    at ``size`` and beyond they are ``other``."""
    if size % count == 0:
        return ref[pl.ds(at, count)]
    inside = first + jnp.arange(count) < size
    inside = jnp.broadcast_to(inside[:, None], (count, ref.shape[1])) if len(ref.shape) == 2 else inside
    return triton.load(ref.at[pl.ds(at, count)], mask=inside, other=other)


def _put(ref, at, values, first, size: int):
    """Stores rows where :func:`_rows` reads them, none beyond ``size``."""
    count, values = values.shape[0], values.astype(ref.dtype)
    if size % count == 0:
        ref[pl.ds(at, count)] = values
        return
    inside = first + jnp.arange(count) < size
    inside = jnp.broadcast_to(inside[:, None], values.shape) if values.ndim == 2 else inside
    triton.store(ref.at[pl.ds(at, count)], values, mask=inside)


class _Block(NamedTuple):
    """Where a block of scores stands: ``query_at`` and ``key_at`` within the references, ``query`` and ``key`` among all."""

    query_at: Array | int
    query: Array | int
    key_at: Array | int
    key: Array | int


def _score(query, key, bias_ref, block: _Block, sizes: _Sizes, tiles: Tiles, *, across: bool):
    """Scores in base 2 [queries, keys] (``across``: [keys, queries]); beyond the last key minus infinity."""
    first, second = (key, query) if across else (query, key)
    scores = triton.dot(first, second, trans_b=True) * sizes.factor
    if len(bias_ref.shape) == 1:
        bias = _rows(bias_ref, block.key_at, tiles.keys, block.key, sizes.keys)
        bias = bias[:, None] if across else bias[None, :]
    else:
        part = bias_ref.at[pl.ds(block.query_at, tiles.queries), pl.ds(block.key_at, tiles.keys)]
        if sizes.queries % tiles.queries or sizes.keys % tiles.keys:
            inside = (block.query + jnp.arange(tiles.queries) < sizes.queries)[:, None]
            inside &= (block.key + jnp.arange(tiles.keys) < sizes.keys)[None, :]
            bias = triton.load(part, mask=inside, other=0.0)
        else:
            bias = part[...]
        bias = bias.T if across else bias
    scores += jnp.maximum(bias, HIDDEN) * np.float32(LOG2E)
    if sizes.keys % tiles.keys:
        inside = block.key + jnp.arange(tiles.keys) < sizes.keys
        inside = jnp.broadcast_to(inside[:, None] if across else inside[None, :], scores.shape)
        scores = jnp.where(inside, scores, -jnp.inf)
    return scores


def _mask(words_ref, heads_ref, block: _Block, sizes: _Sizes, tiles: Tiles, rate: float, *, across: bool):
    """Where dropout keeps, [queries, keys] (``across``: [keys, queries]); None: there is no dropout."""
    if words_ref is None:
        return None
    shape = (tiles.keys, tiles.queries) if across else (tiles.queries, tiles.keys)
    query = (block.query + jax.lax.broadcasted_iota(jnp.int32, shape, int(across))).astype(jnp.uint32)
    key = (block.key + jax.lax.broadcasted_iota(jnp.int32, shape, int(not across))).astype(jnp.uint32)
    place = heads_ref[0] + query * np.uint32(sizes.keys) + key
    return keeps(place, words_ref[0], words_ref[1], rate)


def _over(blocks: int, body, start):
    return jax.lax.fori_loop(0, blocks, body, start) if blocks > 1 else body(0, start)


def _forward_kernel(
    q_ref, k_ref, v_ref, bias_ref, words_ref, heads_ref, context_ref, maxima_ref, totals_ref, *, sizes, rate, tiles
):
    first = pl.program_id(0) * tiles.queries
    query = _rows(q_ref, 0, tiles.queries, first, sizes.queries)

    def body(number, carry):
        total, largest, context = carry
        at = number * tiles.keys
        block = _Block(0, first, at, at)
        key = _rows(k_ref, at, tiles.keys, at, sizes.keys)
        value = _rows(v_ref, at, tiles.keys, at, sizes.keys)
        scores = _score(query, key, bias_ref, block, sizes, tiles, across=False)
        larger = jnp.maximum(largest, scores.max(axis=1))
        weights = jnp.exp2(scores - larger[:, None])
        shrink = jnp.exp2(largest - larger)
        total = total * shrink + weights.sum(axis=1)
        mask = _mask(words_ref, heads_ref, block, sizes, tiles, rate, across=False)
        weights = drop(weights, mask).astype(value.dtype)
        return total, larger, context * shrink[:, None] + triton.dot(weights, value)

    start = (jnp.zeros(tiles.queries), jnp.full(tiles.queries, -jnp.inf), jnp.zeros(query.shape))
    start = jax.tree.map(lambda a: a.astype(jnp.float32), start)
    total, largest, context = _over(pl.cdiv(sizes.keys, tiles.keys), body, start)
    _put(context_ref, 0, context * (scale_of_kept(words_ref, rate) / total)[:, None], first, sizes.queries)
    _put(maxima_ref, 0, largest, first, sizes.queries)
    _put(totals_ref, 0, total, first, sizes.queries)


def _whole_kernel(
    q_ref, k_ref, v_ref, bias_ref, words_ref, heads_ref, gradient_ref, maxima_ref, totals_ref, context_ref,
    d_query_ref, d_key_ref, d_value_ref, *, sizes, rate, tiles,
):
    query = _rows(q_ref, 0, tiles.queries, 0, sizes.queries)
    gradient = _rows(gradient_ref, 0, tiles.queries, 0, sizes.queries)
    inner = _inner(_rows(context_ref, 0, tiles.queries, 0, sizes.queries), gradient)
    largest = _rows(maxima_ref, 0, tiles.queries, 0, sizes.queries)
    share = 1.0 / _rows(totals_ref, 0, tiles.queries, 0, sizes.queries, 1.0)
    kept, scale = scale_of_kept(words_ref, rate), sizes.factor / LOG2E

    def body(number, d_query):
        at = number * tiles.keys
        block = _Block(0, 0, at, at)
        key = _rows(k_ref, at, tiles.keys, at, sizes.keys)
        value = _rows(v_ref, at, tiles.keys, at, sizes.keys)
        scores = _score(query, key, bias_ref, block, sizes, tiles, across=True)
        weights = jnp.exp2(scores - largest[None, :]) * share[None, :]
        mask = _mask(words_ref, heads_ref, block, sizes, tiles, rate, across=True)
        dropped = drop(weights, mask).astype(value.dtype)
        _put(d_value_ref, at, triton.dot(dropped, gradient) * kept, at, sizes.keys)
        d_weights = drop(triton.dot(value, gradient, trans_b=True) * kept, mask)
        d_scores = (weights * (d_weights - inner[None, :])).astype(query.dtype)
        _put(d_key_ref, at, triton.dot(d_scores, query) * scale, at, sizes.keys)
        return d_query + triton.dot(d_scores, key, trans_a=True)

    d_query = _over(pl.cdiv(sizes.keys, tiles.keys), body, jnp.zeros(query.shape, jnp.float32))
    _put(d_query_ref, 0, d_query * scale, 0, sizes.queries)


def _inner(context, gradient):
    """Each query's sum of probabilities times their gradients, as context . gradient."""
    return (context.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(axis=1)


def _queries_kernel(
    q_ref, k_ref, v_ref, bias_ref, words_ref, heads_ref, gradient_ref, maxima_ref, totals_ref, context_ref,
    d_query_ref, inner_ref, *, sizes, rate, tiles,
):
    first = pl.program_id(0) * tiles.queries
    query = _rows(q_ref, 0, tiles.queries, first, sizes.queries)
    gradient = _rows(gradient_ref, 0, tiles.queries, first, sizes.queries)
    inner = _inner(_rows(context_ref, 0, tiles.queries, first, sizes.queries), gradient)
    largest = _rows(maxima_ref, 0, tiles.queries, first, sizes.queries)
    share = 1.0 / _rows(totals_ref, 0, tiles.queries, first, sizes.queries, 1.0)
    kept = scale_of_kept(words_ref, rate)

    def body(number, d_query):
        at = number * tiles.keys
        block = _Block(0, first, at, at)
        key = _rows(k_ref, at, tiles.keys, at, sizes.keys)
        value = _rows(v_ref, at, tiles.keys, at, sizes.keys)
        scores = _score(query, key, bias_ref, block, sizes, tiles, across=False)
        weights = jnp.exp2(scores - largest[:, None]) * share[:, None]
        mask = _mask(words_ref, heads_ref, block, sizes, tiles, rate, across=False)
        d_weights = drop(triton.dot(gradient, value, trans_b=True) * kept, mask)
        return d_query + triton.dot((weights * (d_weights - inner[:, None])).astype(key.dtype), key)

    d_query = _over(pl.cdiv(sizes.keys, tiles.keys), body, jnp.zeros(query.shape, jnp.float32))
    _put(d_query_ref, 0, d_query * (sizes.factor / LOG2E), first, sizes.queries)
    _put(inner_ref, 0, inner, first, sizes.queries)


def _keys_kernel(
    q_ref, k_ref, v_ref, bias_ref, words_ref, heads_ref, gradient_ref, maxima_ref, totals_ref, inner_ref,
    d_key_ref, d_value_ref, *, sizes, rate, tiles,
):
    first = pl.program_id(0) * tiles.keys
    key = _rows(k_ref, 0, tiles.keys, first, sizes.keys)
    value = _rows(v_ref, 0, tiles.keys, first, sizes.keys)
    kept = scale_of_kept(words_ref, rate)

    def body(number, carry):
        d_key, d_value = carry
        at = number * tiles.queries
        block = _Block(at, at, 0, first)
        query = _rows(q_ref, at, tiles.queries, at, sizes.queries)
        gradient = _rows(gradient_ref, at, tiles.queries, at, sizes.queries)
        largest = _rows(maxima_ref, at, tiles.queries, at, sizes.queries)
        share = 1.0 / _rows(totals_ref, at, tiles.queries, at, sizes.queries, 1.0)
        inner = _rows(inner_ref, at, tiles.queries, at, sizes.queries)
        scores = _score(query, key, bias_ref, block, sizes, tiles, across=True)
        weights = jnp.exp2(scores - largest[None, :]) * share[None, :]
        mask = _mask(words_ref, heads_ref, block, sizes, tiles, rate, across=True)
        dropped = drop(weights, mask).astype(value.dtype)
        d_value += triton.dot(dropped, gradient)
        d_weights = drop(triton.dot(value, gradient, trans_b=True) * kept, mask)
        d_scores = (weights * (d_weights - inner[None, :])).astype(query.dtype)
        return d_key + triton.dot(d_scores, query), d_value

    start = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32))
    d_key, d_value = _over(pl.cdiv(sizes.queries, tiles.queries), body, start)
    _put(d_key_ref, 0, d_key * (sizes.factor / LOG2E), first, sizes.keys)
    _put(d_value_ref, 0, d_value * kept, first, sizes.keys)
