"""Attention on a GPU: XLA's products, our fused kernels, cuDNN (which has no dropout), forward and with gradients, bfloat16.

  python benchmarks/attention.py --json attention.json               # about a minute on one GPU, most of it compilation
  python benchmarks/attention.py --json attention.json --seconds 200 --sizes 128,512,384

First the fused kernels must equal XLA on this device: context, gradients, and dropout's mask place for place. Then everything
is compiled, several programs at a time, and measured in turn: the median of five rounds, each of as many calls as take a tenth
of a second. ``--no-sweep`` leaves out the other block sizes (queries x keys, warps, stages).
"""

import argparse
import concurrent.futures
import functools
import json
import os
import statistics
import time
import warnings

import jax
import jax.numpy as jnp

from bert_jax import functional
from bert_jax.models import fused_attention
from bert_jax.models.fused_attention_gpu import CUTS, Cut, Tiles

RATE, WIDTH = 0.1, 64
# length -> rows, heads: as much as a large batch of BERT-base (128) and BERT-large (512) has in a layer
SIZES = {64: (1024, 12), 128: (512, 12), 256: (256, 12), 384: (64, 16), 512: (64, 16)}
FORWARD = [(64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 1), (64, 128, 4, 2), (64, 128, 8, 2), (128, 64, 4, 2), (128, 64, 8, 2),
           (128, 64, 8, 3), (128, 128, 8, 1), (128, 128, 8, 2), (128, 32, 4, 3), (128, 32, 8, 3)]
WHOLE = [(128, 128, 8, 1), (128, 128, 4, 1), (128, 64, 8, 1), (128, 64, 8, 2), (128, 32, 8, 2), (128, 32, 4, 2),
         (128, 16, 4, 2)]
SPLIT = Tiles(16, 16, 4, 1)  # a ``whole`` that takes no length: two kernels, so that they can be compared with one
QUERIES = [(64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 128, 4, 2)]
KEYS = [(64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 4, 3), (32, 128, 8, 2), (32, 128, 8, 3),
        (64, 128, 8, 2), (64, 128, 8, 3)]


def inputs(rows, length, heads, width, dtype=jnp.bfloat16, kind="padding"):
    """Queries, keys, values, a gradient of the context, bias and seed. With ``padding``, half of a row or less is that."""
    keys = jax.random.split(jax.random.key(0), 6)
    arrays = [jax.random.normal(key, (rows, length, heads, width), dtype) for key in keys[:4]]
    if kind == "padding":
        lengths = jax.random.randint(keys[4], (rows,), (length + 1) // 2, length + 1)
        mask = jnp.arange(length) < lengths[:, None]
    else:
        mask = jax.random.bernoulli(keys[5], 0.5, (rows, length, length)) | jnp.eye(length, dtype=bool)
    return *arrays, functional.attention_bias(mask), jnp.asarray([123, 456], jnp.uint32)


def xla(query, key, value, bias, seed, rate):
    return functional.attention(query, key, value, bias, rate=rate, seed=seed)[0]


def fused(query, key, value, bias, seed, rate, cut: Cut | None = None):
    return fused_attention.attention(query, key, value, bias, seed, rate, None, cut)


def cudnn(query, key, value, bias, seed, rate):
    lengths = (bias[:, 0, 0] == 0).sum(axis=-1).astype(jnp.int32)
    whole = jnp.full_like(lengths, query.shape[1])
    return jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn", query_seq_lengths=whole, key_value_seq_lengths=lengths
    )


def program(attend, rate: float, gradients: bool):
    """Context alone, or with the gradients of queries, keys and values."""
    def run(query, key, value, gradient, bias, seed):
        def context(query, key, value):
            return attend(query, key, value, bias, seed, rate)

        if not gradients:
            return (context(query, key, value),)
        result, back = jax.vjp(context, query, key, value)
        return result, *back(gradient)

    return jax.jit(run)


def check() -> list[dict]:
    """Root mean squares of errors over those of the results, context and three gradients, ours and those of XLA's products in
    the same dtype; right is what XLA's products say in float32.

    Raises:
      SystemExit: ours are larger than XLA's by more than half, or a mask differs.
    """
    cases = [
        (2, 128, 12, 64, jnp.bfloat16, "padding"), (2, 512, 4, 64, jnp.bfloat16, "padding"),
        (2, 384, 4, 64, jnp.bfloat16, "full"),
        (3, 77, 3, 64, jnp.bfloat16, "full"), (3, 200, 2, 32, jnp.bfloat16, "padding"), (2, 128, 2, 128, jnp.bfloat16, "full"),
        (2, 300, 2, 128, jnp.bfloat16, "full"), (2, 33, 2, 32, jnp.float32, "full"), (2, 160, 2, 64, jnp.float32, "padding"),
    ]

    def one(case):
        *shape, dtype, kind = case
        given = inputs(*shape, dtype, kind)
        with jax.default_matmul_precision("highest"):
            right = program(xla, RATE, True)(*(x.astype(jnp.float32) for x in given[:4]), *given[4:])

        def errors(attend):
            found = program(attend, RATE, True)(*given)
            return [float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
                    for a, b in zip(found, right, strict=True)]

        return {"case": [*shape, jnp.dtype(dtype).name, kind], "fused": errors(fused), "xla": errors(xla)}

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(one, cases))
    for result in results:
        print("check", *result["case"], *(f"{name} " + " ".join(f"{x:.1e}" for x in result[name]) for name in ("fused", "xla")))
    if any(not ours < 1.5 * theirs + 2e-3 for r in results for ours, theirs in zip(r["fused"], r["xla"], strict=True)):
        raise SystemExit("fused attention differs from XLA's on this device")

    # With the unit matrix for values, the context shows the probabilities: what dropout took is 0.
    query, key, _, _, _, seed = inputs(4, 64, 3, 64)
    values, bias = jnp.broadcast_to(jnp.eye(64, dtype=jnp.bfloat16)[None, :, None], query.shape), jnp.zeros((4, 1, 1, 64))
    masks = [program(attend, 0.5, False)(query * 0.1, key, values, None, bias, seed)[0] == 0 for attend in (fused, xla)]
    if not (masks[0] == masks[1]).all():
        raise SystemExit("fused attention drops other places than XLA's")
    print(f"check masks: equal, {float(masks[0].mean()):.4f} dropped at rate 0.5", flush=True)
    return results


def contestants(length: int, sweep: bool) -> list[tuple[str, object, float, bool]]:
    """Name, function, rate, whether with gradients."""
    found = [
        (f"{name}{' no dropout' if not rate else ''}", attend, rate, gradients)
        for gradients in (False, True)
        for name, attend, rate in (("xla", xla, RATE), ("xla", xla, 0.0), ("fused", fused, RATE), ("fused", fused, 0.0),
                                   ("cudnn", cudnn, 0.0))
    ]
    if not sweep:
        return found
    default = next(cut for most, cut in CUTS if length <= most)
    split = default._replace(whole=SPLIT)
    several = [("forward", FORWARD, default, False)]
    if length <= 128:
        several += [("whole", WHOLE, default, True), ("queries", QUERIES[:1], split, True)]
    else:
        several += [("queries", QUERIES, split, True), ("keys", KEYS, split, True)]
    for part, tiles, cut, gradients in several:
        for tile in tiles:
            changed = cut._replace(**{part: Tiles(*tile)})
            found.append((f"{part} {'x'.join(map(str, tile[:2]))} w{tile[2]} s{tile[3]}",
                          functools.partial(fused, cut=changed), RATE, gradients))
    return found


def milliseconds(call) -> float:
    jax.block_until_ready(call())
    began = time.perf_counter()
    jax.block_until_ready([call() for _ in range(3)])
    calls = max(3, round(0.1 / ((time.perf_counter() - began) / 3)))
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(calls):
            last = call()
        jax.block_until_ready(last)
        rounds.append((time.perf_counter() - began) / calls)
    return 1e3 * statistics.median(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="where to write the results")
    parser.add_argument("--sizes", default="128,512", help=f"lengths, of {', '.join(map(str, SIZES))}")
    parser.add_argument("--seconds", type=float, default=80, help="nothing is begun after this many")
    parser.add_argument("--no-sweep", dest="sweep", action="store_false", help="only the block sizes in use")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*Pallas Triton backend is deprecated.*")
    began = time.monotonic()
    if not fused_attention.available():
        raise SystemExit(f"no Hopper GPU here, but {jax.devices()[0].device_kind}")
    record = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rate": RATE, "width": WIDTH, "checks": check(),
              "milliseconds": {}}
    print(f"checked after {time.monotonic() - began:.0f} s", flush=True)

    lengths = [int(length) for length in options.sizes.split(",")]
    data = {length: inputs(SIZES[length][0], length, SIZES[length][1], WIDTH) for length in lengths}

    def build(length, attend, rate, gradients):
        return program(attend, rate, gradients).lower(*data[length]).compile()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(length, name, gradients, pool.submit(build, length, attend, rate, gradients))
                for length in lengths for name, attend, rate, gradients in contestants(length, options.sweep)]
        for *_, job in jobs:  # all of them before anything is measured
            concurrent.futures.wait([job])
    print(f"compiled after {time.monotonic() - began:.0f} s", flush=True)

    for length, name, gradients, job in jobs:
        rows, heads = SIZES[length]
        part = record["milliseconds"].setdefault(f"{length} tokens, {rows} rows, {heads} heads", {}).setdefault(
            "forward and backward" if gradients else "forward", {}
        )
        if time.monotonic() - began > options.seconds:
            part[name] = "not measured: out of time"
        elif job.exception():
            part[name] = f"{type(job.exception()).__name__}: {str(job.exception()).splitlines()[0][:200]}"
        else:
            compiled = job.result()
            part[name] = round(milliseconds(lambda: compiled(*data[length])), 4)  # noqa: B023 (used at once)
        print(f"{length:4} {'both' if gradients else 'forward':8} {name:24} {part[name]}", flush=True)
        with open(options.json, "w") as file:
            json.dump(record, file, indent=1)
    for size, parts in record["milliseconds"].items():
        for part, times in parts.items():
            measured = sorted((time, name) for name, time in times.items() if isinstance(time, float))
            print(f"{size}, {part}: " + ", ".join(f"{name} {time:.3f}" for time, name in measured[:4]))
    print(f"done after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
