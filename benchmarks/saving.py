"""What a checkpoint costs: how long ``save`` holds up training, how long writing takes behind it, and the peak memory.

The state is that of ``--model`` with AdamW, random, on the devices of this machine. Between two saves a compiled update runs
that donates its input, as the training step does. A second process does the same without saving: the memory of the rest.

    PYTHONPATH=. python benchmarks/saving.py --json benchmarks/results/saving.json
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest
import provenance


def measure(model: str, rounds: int, folder: Path, save: bool) -> dict:
    """Saves ``rounds`` times; seconds each, and the peak resident memory of this process in bytes."""
    import jax
    import jax.numpy as jnp

    from bert_jax.checkpoint import Checkpoints
    from bert_jax.models import api
    from bert_jax.models.config import preset

    config, device = preset(model), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))

    def random(key):
        leaves, form = jax.tree.flatten(shapes)
        keys = jax.random.split(key, len(leaves))
        return form.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])

    state = {name: jax.jit(random)(jax.random.key(i)) for i, name in enumerate(("params", "mu", "nu"))}
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0.999, tree), donate_argnums=0)
    state = jax.block_until_ready(update(state))
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    times: dict[str, list[float]] = {"blocked": [], "written": [], "restored": []}
    updates = []
    if save:
        checkpoints = Checkpoints(folder, keep=1)
        for step in range(rounds + 1):
            jax.block_until_ready(state)
            begun = time.monotonic()
            checkpoints.save(step, {"params": state["params"], "optimizer": {"mu": state["mu"], "nu": state["nu"]}}, {})
            blocked, count = time.monotonic() - begun, 0
            while step not in checkpoints.steps():
                state = jax.block_until_ready(update(state))
                count += 1
                time.sleep(0.05)  # leaves a processor to the writer, as a step on an accelerator does
            checkpoints.wait()
            if step:  # the first one compiles the fingerprints
                times["blocked"].append(blocked)
                times["written"].append(time.monotonic() - begun)
                updates.append(count)
    else:
        for _ in range(rounds):
            state = jax.block_until_ready(update(state))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if save:
        del state
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=device), shapes)
        begun = time.monotonic()
        checkpoints.restore({"params": abstract, "optimizer": {"mu": abstract, "nu": abstract}})
        times["restored"].append(time.monotonic() - begun)
        checkpoints.close()
    return {"bytes": size, "peak_bytes": peak, "seconds": times, "updates_meanwhile": updates,
            "on_disk": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base", help="preset")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--inside", choices=("save", "nothing"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        if arguments.inside:
            print(json.dumps(measure(arguments.model, arguments.rounds, folder, arguments.inside == "save")))
            return
        versions = contest.environment("jax", "orbax-checkpoint", "numpy")
        result = provenance.begin() | {"environment": versions, "model": arguments.model, "rounds": arguments.rounds}
        for what in ("nothing", "save"):
            settings = ["--model", arguments.model, "--rounds", str(arguments.rounds), "--inside", what]
            command = [sys.executable, __file__, *settings]
            result[what] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    saved, rest = result["save"], result["nothing"]
    for name, seconds in saved["seconds"].items():
        print(f"{name:9} {statistics.median(seconds):6.2f} s  ({', '.join(f'{s:.2f}' for s in seconds)})")
    print(f"state {saved['bytes'] / 1e9:.2f} GB, on disk {saved['on_disk'] / 1e9:.2f} GB; "
          f"peak memory {saved['peak_bytes'] / 1e9:.2f} GB, without saving {rest['peak_bytes'] / 1e9:.2f} GB")
    if arguments.json:
        arguments.json.write_text(json.dumps(provenance.ended(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
