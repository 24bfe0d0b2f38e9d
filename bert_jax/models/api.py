"""The functional boundary: what the rest of the package does with models, it does through functions of this module, ``init``,
``apply`` and ``logical_axes`` first of all.

Linen modules describe one layer. Here the layers are stacked with ``jax.vmap`` over ``init`` and run with ``jax.lax.scan``
over ``apply``: one compiled body whatever the depth, for private, partly shared and fully shared parameters alike
(docs/architecture.md says why not ``nn.scan``).
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models.config import EncoderConfig
from bert_jax.models.embeddings import Embeddings
from bert_jax.models.heads import HEADS, Inputs
from bert_jax.models.layers import LOW_RANK, FeedForward, LayerMix, LowRank, SelfAttention
from bert_jax.models.relative import RelativeSelfAttention, relate

Params = dict[str, Any]
Heads = Mapping[str, nn.Module]  # name -> a head as in ``HEADS``, but made for one objective and no part of the encoder
Collect = Literal["hidden_states", "attentions", "queries", "keys", "values"]

# What a layer keeps for the backward pass under each remat policy, by the names that its parts give their results; the
# layer's input is always kept. Everything else is computed again. Cheapest policy first.
_PROJECTIONS = ("query", "key", "value", "context", "output")
STORED = {
    "masks": (*_PROJECTIONS, "intermediate", "probabilities", "activated", "normalised"),
    "elementwise": (*_PROJECTIONS, "intermediate", "probabilities"),
    "attention": (*_PROJECTIONS, "intermediate"),
    "feed_forward": _PROJECTIONS,
    "full": (),
}

sharding_rules = nn.logical_axis_rules
"""Context manager: while a function is traced under it, activations are constrained by these (name, mesh axis) rules."""


class Outputs(NamedTuple):
    """What :func:`apply` returns.

    Attributes:
      hidden: the states that heads read [B, L, D], compute dtype: of the last layer, unless ``read_layers`` says otherwise;
        [B, L, K * D] where K layers are concatenated.
      pooled: [B, D], or None without a pooler; [B, P, D] of packed rows, and likewise what heads make of it.
      logits: by head, float32; :mod:`bert_jax.models.heads` has the shapes. Those of ``mlm`` are [B, M, V padded] at
        ``masked_positions``, or at all L positions when the batch has none.
      collected: what ``collect`` asked for: hidden_states [1 + depth, B, L, D] (embeddings first), attentions
        [depth, B, N, L, K] float32, queries [depth, B, L, N, H], keys, values [depth, B, K, N, H] (K is L unless ``visibility``
        has fewer keys).
    """

    hidden: Array
    pooled: Array | None
    logits: dict[str, Array]
    collected: dict[str, Array]


def init_heads(config: EncoderConfig, heads: Heads, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters of further heads."""
    keys = jax.random.split(key, max(len(heads), 1))
    inputs = _head_inputs(config)
    return {
        name: nn.unbox(head.init(head_key, inputs, None))["params"]
        for (name, head), head_key in zip(heads.items(), keys, strict=False)
    }


def head_axes(config: EncoderConfig, heads: Heads) -> Params:
    """The tree of :func:`init_heads` with logical axis names, as :func:`logical_axes`."""
    inputs = jax.eval_shape(lambda: _head_inputs(config))
    return {name: _axes(head, inputs, None) for name, head in heads.items()}


@functools.partial(jax.jit, static_argnums=0)  # operation by operation it takes ten times as long
def init(config: EncoderConfig, key: Key[Array, ""]) -> Params:
    """Fresh float32 parameters. Layers that are not shared are stacked along a leading axis."""
    embeddings, attention, feed_forward, *heads = jax.random.split(key, 3 + len(config.with_heads))
    x, bias = jnp.zeros((1, 1, config.hidden_width)), jnp.zeros((1, 1, 1, 1))
    ids = jnp.zeros((1, 1), jnp.int32)
    relation = _relation(config, None, ids, 1)

    def stack(module, part, key, *inputs):
        keys = jax.random.split(key, config.copies(part))
        return jax.vmap(lambda k: nn.unbox(module.init(k, *inputs))["params"])(keys)

    params = {
        "embeddings": nn.unbox(Embeddings(config).init(embeddings, ids, ids, None, None))["params"],
        "attention": stack(_attention(config), "attention", attention, x, bias, None, *relation),
        "feed_forward": stack(FeedForward(config), "feed_forward", feed_forward, x, None),
    }
    if config.lora_rank:
        params["lora"] = stack(LowRank(config), "attention", jax.random.fold_in(key, 2**31))  # below, that of a split
    if _mixes(config):
        params["mix"] = nn.unbox(LayerMix().init(key, jnp.zeros((len(config.read_layers), *x.shape))))["params"]
    for name, head_key in zip(config.with_heads, heads, strict=True):
        params[name] = nn.unbox(HEADS[name](config).init(head_key, _head_inputs(config), None))["params"]
    return params


def init_parts(init: Callable[[Key[Array, ""]], Params], key: Key[Array, ""], names: Collection[str]) -> Params:
    """Host arrays of the parts ``names`` of the tree that ``init`` makes, by one program that leaves the others out: what takes
    a checkpoint's place costs a second, where the whole tree, operation by operation, cost thirteen (MiniLM, two cores)."""
    if not names:
        return {}
    return jax.device_get(jax.jit(lambda key: {name: part for name, part in init(key).items() if name in names})(key))


def logical_axes(config: EncoderConfig) -> Params:
    """The tree of :func:`init` with a tuple of logical axis names (or None) for every array."""
    x = jax.ShapeDtypeStruct((1, 1, config.hidden_width), jnp.float32)
    bias, ids = jax.ShapeDtypeStruct((1, 1, 1, 1), jnp.float32), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    relation = jax.eval_shape(lambda ids: _relation(config, None, ids, 1), ids)
    further = {"lora": _axes(LowRank(config), stacked=True)} if config.lora_rank else {}
    if _mixes(config):
        further["mix"] = _axes(LayerMix(), jax.ShapeDtypeStruct((len(config.read_layers), *x.shape), jnp.float32))
    return {
        "embeddings": _axes(Embeddings(config), ids, ids, None, None),
        "attention": _axes(_attention(config), x, bias, None, *relation, stacked=True),
        "feed_forward": _axes(FeedForward(config), x, None, stacked=True),
    } | further | head_axes(config, {name: HEADS[name](config) for name in config.with_heads})


def apply(
    params: Params,
    config: EncoderConfig,
    batch: dict[str, Array],
    *,
    key: Key[Array, ""] | None = None,
    collect: tuple[Collect, ...] = (),
    heads: Heads = MappingProxyType({}),
) -> Outputs:
    """Runs the encoder and every head it has.

    Args:
      params: as :func:`init` makes them.
      config: what ``params`` belong to.
      batch: ``input_ids`` int32 [B, L]; optional ``attention_mask`` bool [B, L] (real keys) or [B, L, L] (what each query
        sees; default: all), ``visibility`` bool [B, L, K] (in its place; with K < L nobody sees the slots from K on, which
        makes queries of them at less cost than K = L), ``segment_ids`` int32 [B, L] (default 0; all count as 0 where the table
        has one row), ``position_ids`` int32 [B, L] (default 0..L-1), ``example_ids`` int32 [B, L] and ``example_starts`` int32
        [B, P] (rows of up to P examples, which see themselves alone, and where each begins: :mod:`bert_jax.data.packing`; the
        mask is then [B, L]), ``query_slots`` bool [B, L] (with relative positions: slots that begin with the query vector),
        ``masked_positions`` int32 [B, M]: with it, only those positions reach the vocabulary product; ``perturbation`` float32
        [B, L, E], added to the word embeddings before positions, segments and layer norm (adversarial training).
        Ids must lie in their tables: of those beyond JAX makes NaN without a word, and segments beyond add nothing, so
        whoever makes a batch checks it on the host.
      key: for dropout; None means inference.
      collect: which intermediates to return.
      heads: further ones, with their parameters beside the encoder's, whose results join ``logits``.

    Raises:
      BertJaxError: L exceeds ``max_length``; ``token_type_ids``, as transformers calls ``segment_ids``.
    """
    ids = batch["input_ids"]
    if "token_type_ids" in batch:
        raise BertJaxError("token_type_ids of a batch are called segment_ids here")
    if config.positions == "absolute" and "position_ids" not in batch and ids.shape[1] > config.max_length:
        raise BertJaxError(f"sequences of {ids.shape[1]} tokens exceed the position table of {config.max_length}")
    mask = batch.get("visibility", batch.get("attention_mask"))
    mask = jnp.ones(ids.shape, bool) if mask is None else mask
    if "example_ids" in batch:
        mask = functional.block_diagonal(batch["example_ids"], mask)
    segment_ids = batch.get("segment_ids")
    segment_ids = jnp.zeros_like(ids) if segment_ids is None else segment_ids
    seed = None if key is None else jax.random.bits(key, (2,), jnp.uint32)
    embedding_seed, layers_seed, heads_seed = (None,) * 3 if seed is None else functional.fold(seed, jnp.arange(3))

    x = Embeddings(config).apply(
        {"params": params["embeddings"]}, ids, segment_ids, batch.get("position_ids"), embedding_seed,
        batch.get("query_slots"), batch.get("perturbation"),
    )
    relation = _relation(config, batch.get("position_ids"), segment_ids, mask.shape[-1])
    wanted = collect if len(config.read_layers) < 2 else {*collect, "hidden_states"}
    hidden, collected = _encode(params, config, x, mask, relation, layers_seed, wanted)
    if len(config.read_layers) > 1:
        read = collected["hidden_states"][jnp.asarray(config.read_layers)]
        hidden = LayerMix().apply({"params": params["mix"]}, read) if _mixes(config) else jnp.concatenate(read, axis=-1)
        collected = {name: collected[name] for name in collect}

    positions = batch.get("masked_positions")
    chosen = hidden if positions is None else functional.gather_positions(hidden, positions)
    inputs, logits = Inputs(hidden, chosen, None, params["embeddings"]["token"], batch), {}
    made = {name: head(config) for name, head in HEADS.items()} | dict(heads)  # the pooler first: others read what it makes
    for number, (name, head) in enumerate(made.items()):
        if name in params:
            head_seed = None if heads_seed is None else functional.fold(heads_seed, number)
            result = head.apply({"params": params[name]}, inputs, head_seed)
            if name == "pooler":
                inputs = inputs._replace(pooled=result)
            else:
                logits[name] = result
    return Outputs(hidden, inputs.pooled, logits, collected)


def merged(params: Params, config: EncoderConfig) -> tuple[Params, EncoderConfig]:
    """The same function without LoRA: its products added to the maps of queries and values (Hu et al. 2021)."""
    if not config.lora_rank:
        return params, config
    attention = dict(params["attention"])
    for name in LOW_RANK:
        factors = params["lora"][name]
        change = jnp.einsum("ldr,lrnh->ldnh", factors["down"], factors["up"], precision="highest")
        kernel = attention[name]["kernel"] + config.lora_alpha / config.lora_rank * change
        attention[name] = attention[name] | {"kernel": kernel}
    params = {name: part for name, part in params.items() if name != "lora"} | {"attention": attention}
    return params, dataclasses.replace(config, lora_rank=0, lora_alpha=EncoderConfig.lora_alpha)


def plain(params: Params, config: EncoderConfig) -> tuple[Params, EncoderConfig]:
    """The same function as an encoder whose heads read its last layer, without LoRA: what other libraries can say.

    Raises:
      BertJaxError: its heads read several layers.
    """
    params, config = merged(params, config)
    if len(config.read_layers) > 1:
        raise BertJaxError(
            f"heads that read several layers (encoder.read_layers {config.read_layers}) have no form outside bert_jax: "
            "bert-jax convert --format bert_jax keeps them"
        )
    if not config.read_layers:
        return params, dataclasses.replace(config, combine=EncoderConfig.combine)
    changes = {"layers": config.depth}
    if config.share != "none":
        steps, odd = divmod(config.depth, config.inner_layers)
        if config.groups == 1 and not odd:
            changes = {"layers": steps}
        else:  # not all of the shared sets are used alike any more: one for each layer
            changes |= {"share": "none", "groups": 1, "inner_layers": 1}
            index = jnp.asarray(config.shared_index)
            for part in ("attention", "feed_forward"):
                if config.share in (part, "all"):
                    params = params | {part: jax.tree.map(lambda a: jnp.asarray(a)[index], params[part])}
    return params, dataclasses.replace(config, read_layers=(), combine=EncoderConfig.combine, **changes)


def count_parameters(config: EncoderConfig) -> int:
    """Number of values, rows that only pad the token table left out."""
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    padding = config.padded_vocab_size - config.vocab_size
    return total - padding * (config.embedding_width + ("mlm" in config.with_heads))


def _mixes(config: EncoderConfig) -> bool:
    return len(config.read_layers) > 1 and config.combine == "mix"


def _head_inputs(config: EncoderConfig) -> Inputs:
    hidden = jnp.zeros((1, 1, config.hidden_width * config.concatenated))
    ids = jnp.zeros((1, 1), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": jnp.ones((1, 1), bool), "masked_positions": ids,
             "decoder_input_ids": ids}
    pooled = jnp.zeros((1, config.hidden_width))
    return Inputs(hidden, hidden, pooled, jnp.zeros((config.padded_vocab_size, config.embedding_width)), batch)


def _axes(module: nn.Module, *inputs: Any, stacked: bool = False) -> Params:
    """Logical axes of a module's parameters. Shapes only: the planner asks under a mesh of devices that do not exist."""
    shapes = jax.eval_shape(module.init, jax.eval_shape(jax.random.key, 0), *inputs)["params"]
    prefix = ("layers",) if stacked else ()
    return jax.tree.map(
        lambda box: prefix + tuple(box.names), shapes, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )


def _attention(config: EncoderConfig) -> nn.Module:
    return RelativeSelfAttention(config) if config.positions == "relative" else SelfAttention(config)


def _relation(config: EncoderConfig, position_ids: Array | None, segment_ids: Array, keys: int) -> tuple:
    """What attention has to know of positions and segments beside the states: its last arguments."""
    return (relate(config, position_ids, segment_ids, keys),) if config.positions == "relative" else ()


def _encode(
    params: Params, config: EncoderConfig, x: Array, mask: Array, relation: tuple, seed: Array | None, collect: tuple[str, ...]
):
    """All layers. A block's parameters reach the scan in one of three ways: sliced by it (one set a layer), as a constant
    (one set in all), or picked by index (several shared sets: groups, inner layers)."""
    bias = functional.attention_bias(mask)
    attention, feed_forward = _attention(config), FeedForward(config)
    wanted = [name for name in collect if name != "hidden_states"]

    def layer(x, inputs):
        sliced, index, layer_seed = inputs
        picked = sliced | constant | {part: jax.tree.map(lambda a: a[index], sets) for part, sets in several.items()}
        maps = picked["attention"]
        for name, factors in picked.get("lora", {}).items():
            maps = maps | {name: maps[name] | factors}
        attention_seed, ffn_seed = (None, None) if layer_seed is None else functional.fold(layer_seed, jnp.arange(2))
        x, inside = attention.apply({"params": maps}, x, bias, attention_seed, *relation)
        x = feed_forward.apply({"params": picked["feed_forward"]}, x, ffn_seed)
        x = nn.with_logical_constraint(x, ("batch", "length", "act_model"))
        collected = {name: inside[name] for name in wanted}
        if "hidden_states" in collect:
            collected["hidden_states"] = x
        return x, collected

    policy = jax.checkpoint_policies.save_only_these_names(*STORED[config.remat])
    layer = jax.checkpoint(layer, policy=policy, prevent_cse=config.unroll)

    blocks = {"attention": "attention", "feed_forward": "feed_forward"} | ({"lora": "attention"} if "lora" in params else {})
    sliced = {part: params[part] for part, block in blocks.items() if config.in_order(block)}
    shared = {part: jax.tree.map(jnp.asarray, params[part]) for part in blocks if part not in sliced}
    constant = {part: jax.tree.map(lambda a: a[0], sets) for part, sets in shared.items() if config.copies(blocks[part]) == 1}
    several = {part: sets for part, sets in shared.items() if part not in constant}
    seeds = None if seed is None else functional.fold(seed, jnp.arange(config.depth))
    first = x
    if config.unroll:
        everything = []
        for step in range(config.depth):
            inputs = (sliced, jnp.asarray(config.shared_index), seeds)
            x, collected = layer(x, jax.tree.map(lambda a: a[step], inputs))  # noqa: B023 (used at once)
            everything.append(collected)
        collected = jax.tree.map(lambda *a: jnp.stack(a), *everything)
    else:
        x, collected = jax.lax.scan(layer, x, (sliced, jnp.asarray(config.shared_index), seeds))
    if "hidden_states" in collect:
        collected["hidden_states"] = jnp.concatenate([first[None], collected["hidden_states"]])
    return x, collected
