"""How long it takes until something happens: the command line's help, and compiling a training step, as published.

Every reading is of a process of its own. For this processor the step of a configuration is compiled twice, with a compilation
cache that is empty at first, as `bert-jax pretrain` keeps it; for a TPU, where libtpu is installed, as `bert-jax plan` does,
without a cache.

    python benchmarks/starting.py --json benchmarks/results/starting.json
"""

import argparse
import importlib.util
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest
import provenance

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("bert_base_128", "bert_large_512", "albert_xxlarge_v2")
CHIP = "v5e:1x1"
BATCH = 8  # with which all three fit on the chip
SMALLER = (f"train.batch_size={BATCH}", f"train.eval_batch_size={BATCH}", "train.accumulate=1", "mesh.data=1", "mesh.fsdp=1",
           "mesh.tensor=1")  # one device's share: sizes of arrays are all that it changes


def timed(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of a process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def compiled(name: str) -> dict[str, float]:
    """Seconds of this process for the step of a configuration: until its program is known, and until it can run."""
    import jax

    from bert_jax.compilation import keep_programs
    from bert_jax.config import override
    from bert_jax.objectives.pretraining import PretrainingTask
    from bert_jax.parallel.mesh import batch_sharding, make_mesh
    from bert_jax.training.pretrain import load_config
    from bert_jax.training.step import make_update

    keep_programs()
    experiment = override(load_config(ROOT / "configs/pretrain" / f"{name}.py"), SMALLER)
    task, mesh = PretrainingTask(experiment.task, None), make_mesh(experiment.mesh, jax.devices()[:1])
    began = time.perf_counter()
    _, state, step = make_update(
        task, mesh, experiment.optimizer, experiment.train.steps, accumulate=1, reduce_dtype=experiment.train.reduce_dtype
    )
    rows = batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in task.batch_shapes(BATCH).items()}
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch)
        traced = time.perf_counter()
        lowered.compile()
    return {"traced": traced - began, "compiled": time.perf_counter() - traced}


def main() -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="*", choices=CONFIGS, default=list(CONFIGS), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="readings of each (default 3)")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(compiled(arguments.inside)))
        return
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    plain |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    help_of = [sys.executable, "-m", "bert_jax", "--help"]
    result = provenance.begin() | {"environment": contest.environment("jax", "jaxlib", "flax", "optax", "libtpu")}
    result |= {"rounds": arguments.rounds, "batch_size": BATCH}
    timed(help_of, plain)  # writes what Python compiles
    result["help"] = [timed(help_of, plain) for _ in range(arguments.rounds)]
    result["python"] = [timed([sys.executable, "-c", "pass"], plain) for _ in range(arguments.rounds)]
    for name in ("help", "python"):
        print(f"{name} {statistics.median(result[name]):.2f} s", flush=True)
    result["programs"] = {name: [] for name in arguments.configs}
    for number in range(arguments.rounds):
        for name, readings in result["programs"].items():
            readings.append(reading := steps(name, plain))
            said = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in reading.items())
            print(f"round {number + 1} of {arguments.rounds}: {name}: {said}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(provenance.ended(result), indent=1) + "\n")


def steps(name: str, plain: dict[str, str]) -> dict[str, float]:
    """Seconds: `traced` and `compiled` for this processor; `kept`: compiled again, with the cache; `chip`: for a TPU."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, __file__, "--inside", name]
        first, again = (said(line, plain | {"XDG_CACHE_HOME": folder}) for _ in range(2))
    found = {**first, "kept": again["compiled"]}
    if importlib.util.find_spec("libtpu"):
        sets = [word for setting in SMALLER for word in ("--set", setting)]
        config = str(ROOT / "configs/pretrain" / f"{name}.py")
        line = [sys.executable, "-m", "bert_jax", "plan", "--config", config, "--topology", CHIP, "--json", *sets]
        found["chip"] = said(line, plain)["compile_seconds"]
    return found


def said(command: list[str], environment: dict[str, str]) -> dict:
    """The JSON that a process prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with status {done.returncode}: see above; nothing was written")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
