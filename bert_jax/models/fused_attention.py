"""Attention in which the scores [B, N, Q, K] never leave the chip: kernels for NVIDIA's GPUs and for TPUs, one interface.

The forward pass keeps the maximum and the total of every query's scores; the backward pass makes the probabilities again from
them. Their dropout is a hash of the place, :func:`bert_jax.functional.random_bits`, so that every kernel makes the same mask
wherever it meets a score, on any mesh, and the result is that of :func:`bert_jax.functional.attention`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, UInt32

from bert_jax import functional
from bert_jax.errors import BertJaxError
from bert_jax.models import fused_attention_gpu as gpu
from bert_jax.models import fused_attention_tpu as tpu
from bert_jax.models.fused_attention_gpu import Cut


def available() -> bool:
    """Whether the devices of the mesh in context, or those of this process, are of the kind that the kernels were measured on
    and block sizes chosen for: Hopper. (They are too large for the shared memory of some others.)"""
    device = jax.devices()[0]
    return device.platform == "gpu" and "NVIDIA" in device_kind() and device.compute_capability == "9.0"


def device_kind() -> str:
    """Of the devices of the mesh in context, which may be a planner's, or else of this process."""
    meant = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if meant is None else meant).device_kind


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def attention(
    query: Float[Array, "B Q N H"], key: Float[Array, "B K N H"], value: Float[Array, "B K N H"],
    bias: Float[Array, "B #N #Q K"], seed: UInt32[Array, "2"] | None = None, rate: float = 0.0,
    spec: PartitionSpec | None = None, cut: Cut | None = None,
) -> Float[Array, "B Q N H"]:
    """The context of :func:`bert_jax.functional.attention`, in the dtype of ``value``. (On processors interpreted: for tests.)

    Scores, softmax and sums are float32; products are those of the inputs' dtype (on GPUs TF32 for float32, as XLA's are). What
    is kept for the backward pass beside the inputs has the name "context".

    Args:
      query, key, value: bfloat16 or float32; H is one of :data:`bert_jax.models.config.FUSED_WIDTHS`.
      bias: float32, finite; says what a query sees.
      seed, rate: of dropout, none without a seed.
      spec: how ``query`` lies on the mesh in context, on the axes of B and N; None: on one device.
      cut: sizes of a GPU's blocks; None: those of ``CUTS`` for these lengths.

    Raises:
      BertJaxError: a gradient of ``bias`` is asked for; there is none. Shapes that the kernels for TPUs do not take, on a TPU.
    """
    return _run(query, key, value, bias, seed, rate, spec, cut)[0]


def _forward(query, key, value, bias, seed, rate, spec, cut):
    if bias.perturbed:
        raise BertJaxError("fused attention has no gradient of its bias: use attention=xla")
    query, key, value, bias, seed = (x if x is None else x.value for x in (query, key, value, bias, seed))
    context, *statistics = _run(query, key, value, bias, seed, rate, spec, cut)
    return context, (query, key, value, bias, seed, context, *statistics)


def _run(query, key, value, bias, seed, rate, spec, cut):
    """The context, and of every query's scores in base 2 the maximum and the sum of exponentials below it [B, N, Q]."""
    words, heads = _places(query, key, seed, rate)
    call = _everywhere(gpu.forward_call, tpu.forward_call, rate, cut)
    results = _shared(call, spec, outputs="qss")(query, key, value, bias, words, heads)
    return tuple(checkpoint_name(result, "context") for result in results)


def _backward(rate, spec, cut, kept, gradient):
    query, key, value, bias, seed, context, maxima, totals = kept
    words, heads = _places(query, key, seed, rate)
    call = _everywhere(gpu.backward_call, tpu.backward_call, rate, cut)
    gradients = _shared(call, spec, outputs="qqq")(
        query, key, value, bias, words, heads, context, maxima, totals, gradient
    )
    return *gradients, None, None


attention.defvjp(_forward, _backward, symbolic_zeros=True)


def _places(query, key, seed, rate):
    """What dropout's hash needs of rows, [B, 2], and of heads, the place of the first score of each [N]; None without."""
    if seed is None or rate == 0.0:
        return None, None
    stride = query.shape[1] * key.shape[1] % 2**32
    heads = jax.lax.iota(jnp.uint32, query.shape[2]) * np.uint32(stride)
    return jnp.stack(functional.row_words(seed, query.shape[0]), axis=-1), heads


def _everywhere(on_gpu, on_tpu, rate: float, cut: Cut | None):
    """The kernel of the device that it is lowered for, the GPU's interpreted on a processor."""

    def call(query, key, value, bias, *more):
        for_gpu = functools.partial(on_gpu, rate=rate, cut=cut or gpu.cut_for(query, key))
        kernels = {"cuda": functools.partial(for_gpu, interpret=False)}
        if (problem := tpu.problem(query, key, bias)) is None:
            kernels["tpu"] = functools.partial(on_tpu, rate=rate, interpret=False)
        elif "TPU" in device_kind():
            raise BertJaxError(f"fused attention on a TPU: {problem}; here {query.shape[1]} tokens, {query.shape[2]} heads of "
                               f"width {query.shape[3]} on a device. Use encoder.attention=xla")
        inputs = (query, key, value, bias, *more)
        return jax.lax.platform_dependent(*inputs, **kernels, default=functools.partial(for_gpu, interpret=True))

    return call


def _shared(call, spec, outputs):
    """``call`` on every device's rows and heads. An output is like the queries (q), or [B, N, Q] (s)."""
    if spec is None:
        return call
    rows, _, heads, _ = spec
    scores = PartitionSpec(rows, heads)

    def run(query, key, value, bias, words, first, *kept):
        bias_spec = PartitionSpec(rows, heads if bias.shape[1] > 1 else None)
        inputs = (spec, spec, spec, bias_spec, PartitionSpec(rows), PartitionSpec(heads), spec, scores, scores, spec)
        shared = jax.shard_map(
            call, in_specs=inputs[: 6 + len(kept)], out_specs=tuple({"q": spec, "s": scores}[o] for o in outputs),
            check_vma=False,
        )
        return shared(query, key, value, bias, words, first, *kept)

    return run
