"""Kills one of several training processes again and again, and compares the end with a run that nobody disturbed.

python benchmarks/kills.py WORKDIR [--kills 20] [--processes 2] [--steps 420] [--json benchmarks/results/kills.json]

A random process is killed (SIGKILL) at a random step, the others are waited for, all are started again with the same command,
until the run is over. Called again with the same arguments it goes on where it was. Every process notes the positions and
the bits of the examples that it trains on.

What is asserted: survivors end with status 75 within a minute; parameters and optimiser state are bit for bit those of the
undisturbed run; so are the examples, of which every attempt continues exactly where the checkpoint it began from ends.
"""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from importlib.metadata import version

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = "the a cat dog bird sat ran sang on in under mat road tree he she it said why not one two red blue and but".split()
TEMPORARY = 75
FLAGS = " ".join([  # quick compilation instead of quick code; the last one XLA knows no more since 0.11
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
    *(["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
      if version("jaxlib").startswith("0.10.") else []),
])


def note_examples(path: str) -> None:
    """From now on, this process writes for every batch it trains on: position, rows, and a digest of its share."""
    from bert_jax.data.loader import TrainBatches

    original = TrainBatches.__next__

    def noting(self):
        position, batch = self.get_state()["examples"], original(self)
        state = hashlib.blake2b(digest_size=8)
        for name in sorted(batch):
            state.update(batch[name].tobytes())
        with open(path, "a") as file:
            print(position, *self._rows[[0, -1]], state.hexdigest(), file=file)
        return batch

    TrainBatches.__next__ = noting


def start(
    workdir: pathlib.Path, store: pathlib.Path, processes: int, settings: list[str], *, config: pathlib.Path,
    devices: int = 1, notes: pathlib.Path | None = None, preludes: dict[int, str] | None = None, code: pathlib.Path = ROOT,
) -> list[subprocess.Popen]:
    """Starts ``bert-jax pretrain`` as a cluster on this machine, or as one process.

    Args:
      settings: for --set. notes: folder for what ``note_examples`` writes, a file an attempt.
    """
    command = ["pretrain", "--config", str(config), "--data", str(store), "--workdir", str(workdir)]
    for setting in settings:
        command += ["--set", setting]
    attempt = len(list(notes.glob("0-*"))) if notes else 0
    firsts = dict(preludes or {})
    for index in range(processes if notes else 0):
        notes.mkdir(parents=True, exist_ok=True)
        (notes / f"{index}-{attempt:03d}").touch()
        noting = f"import kills\nkills.note_examples({str(notes / f'{index}-{attempt:03d}')!r})"
        firsts[index] = f"{firsts.get(index, '')}\n{noting}"
    return cluster(command, processes, devices=devices, preludes=firsts, code=code)


def cluster(
    command: list[str], processes: int, *, devices: int = 1, preludes: dict[int, str] | None = None, code: pathlib.Path = ROOT
) -> list[subprocess.Popen]:
    """Starts ``bert-jax`` with the words of ``command`` as a cluster on this machine, or as one process.

    Args:
      devices: of each process. preludes: Python that a process runs first. code: the folder that holds the package.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(code), str(ROOT / "benchmarks")]), "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
    }
    started = []
    for index in range(processes):
        place = ["--coordinator", f"localhost:{port}", "--processes", str(processes), "--process", str(index)]
        lines = ["import gc, sys", "gc.set_threshold(50_000, 20, 10)", (preludes or {}).get(index, ""),
                 "from bert_jax.cli import main", f"sys.exit(main({command + (place if processes > 1 else [])!r}))"]
        started.append(subprocess.Popen(
            [sys.executable, "-c", "\n".join(lines)], env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ))
    return started


def finish(processes: list[subprocess.Popen], seconds: float = 300.0) -> list[tuple[int, str]]:
    """Exit status and stderr of each process; all are killed when one takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    try:
        errors = [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def reached(workdir: pathlib.Path) -> int:
    """The last step in the record."""
    from bert_jax.training.record import read

    return max((row["step"] for row in read(workdir / "metrics.jsonl")), default=0)


def wait_for_step(workdir: pathlib.Path, step: int, processes: list[subprocess.Popen], seconds: float = 300.0) -> None:
    """Until the record has ``step``, or a process has ended."""
    deadline = time.monotonic() + seconds
    while reached(workdir) < step and all(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{workdir} is at step {reached(workdir)}, {step} was waited for")
        time.sleep(0.02)


def final_state(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
    """The bits of every array of a checkpoint, by path, read onto one device."""
    import jax
    import numpy as np

    from bert_jax import config
    from bert_jax.checkpoint import Checkpoints
    from bert_jax.objectives.pretraining import PretrainingTask
    from bert_jax.parallel.mesh import MeshConfig, make_mesh
    from bert_jax.training.experiment import Experiment
    from bert_jax.training.optimizer import make_optimizer
    from bert_jax.training.step import abstract_state

    experiment = config.load(Experiment, workdir / "experiment.json")
    task = PretrainingTask(experiment.task, None)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps, task.logical_axes())
    abstract = abstract_state(task, optimizer, make_mesh(MeshConfig(), jax.devices()[:1]))
    checkpoints = Checkpoints(workdir / "checkpoints")
    items = checkpoints.restore({"params": abstract.params, "optimizer": abstract.optimizer}, step).items
    checkpoints.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(items)}


def examples_of(notes: pathlib.Path, checkpoints: list[int]) -> dict[tuple[int, int], str]:
    """Digest of every (position, first row) trained on; checks attempt after attempt.

    Args:
      checkpoints: the position that each attempt has to begin at.
    """
    seen: dict[tuple[int, int], str] = {}
    for path in sorted(notes.iterdir()):
        index, attempt = path.name.split("-")
        expected = checkpoints[int(attempt)]
        for line in path.read_text().splitlines():
            position, first, last, digest = line.split()
            assert int(position) == expected, f"{path}: at example {position}, not {expected}"
            assert seen.setdefault((int(position), int(first)), digest) == digest, f"{path}: other examples at {position}"
            expected += batch_size(notes)
    return seen


def batch_size(notes: pathlib.Path) -> int:
    """Of a run whose processes have noted what they trained on."""
    return max(int(line.split()[2]) for path in notes.iterdir() for line in path.read_text().splitlines()) + 1


def make_store(folder: pathlib.Path) -> pathlib.Path:
    """A small store of random sentences."""
    from bert_jax.data.prepare import prepare
    from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

    chance, lines = random.Random(0), []
    for _ in range(400):
        lines += [" ".join(chance.choices(WORDS, k=chance.randint(3, 9))) + " ." for _ in range(chance.randint(3, 12))] + [""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("\n".join(lines))
    letters = [*string.ascii_lowercase, "."]
    pieces = [*SPECIALS, *letters, *(f"##{letter}" for letter in letters), *(word for word in WORDS if word not in letters)]
    prepare([folder / "text.txt"], folder / "store", WordPieceTokenizer(pieces), sentences="line", heldout=0.1, workers=1)
    return folder / "store"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=pathlib.Path, help="folder for the runs; what is in it is continued")
    parser.add_argument("--kills", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--processes", type=int, default=2, help="of the cluster (default 2)")
    parser.add_argument("--steps", type=int, default=420, help="of the run (default 420)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    options = parser.parse_args()

    from bert_jax.checkpoint import Checkpoints

    folder = options.workdir.resolve()
    code = folder / "code"  # a copy: a file edited meanwhile would be refused as other code
    if not code.exists():
        shutil.copytree(ROOT / "bert_jax", code / "bert_jax", ignore=shutil.ignore_patterns("__pycache__"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
    store = folder / "store" if (folder / "store").exists() else make_store(folder)
    settings = [
        f"train.steps={options.steps}", "train.batch_size=32", "train.save_every=5", "train.log_every=1", "train.keep=3",
        f"train.eval_every={options.steps}", "optimizer.warmup_steps=50", "task.encoder.vocab_size=96",
        "task.encoder.max_length=32", "task.examples.length=32",
    ]

    def begin(name: str) -> list[subprocess.Popen]:
        return start(folder / name, store, options.processes, settings, notes=folder / f"{name}.notes", code=code,
                     config=ROOT / "configs" / "pretrain" / "bert_tiny.py")

    if reached(folder / "whole") < options.steps:
        results = finish(begin("whole"), 600)
        assert [status for status, _ in results] == [0] * options.processes, results

    state = folder / "state.json"
    done = json.loads(state.read_text()) if state.exists() else {"began": [0], "kills": []}
    chance, broken = random.Random(), folder / "broken"
    while len(done["kills"]) < options.kills:
        number = len(done["kills"])
        aim = int((number + chance.uniform(0.6, 1.0)) * options.steps / (options.kills + 1))
        processes = begin("broken")
        wait_for_step(broken, max(aim, reached(broken) + 1), processes)
        time.sleep(chance.uniform(0, 0.1))
        victim = chance.randrange(options.processes)
        processes[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        results = finish(processes, 60)
        survivors = {i: status for i, (status, _) in enumerate(results) if i != victim}
        step = reached(broken)
        saved = max(Checkpoints(broken / "checkpoints").steps(), default=0)
        entry = {"victim": victim, "recorded": step, "saved": saved, "survivors": list(survivors.values()),
                 "seconds": round(time.monotonic() - began, 2)}
        print(json.dumps(entry), flush=True)
        assert results[victim][0] == -signal.SIGKILL and step < options.steps, results
        assert set(survivors.values()) == {TEMPORARY}, results
        done["kills"].append(entry)
        done["began"].append(saved * 32)
        state.write_text(json.dumps(done))
    if reached(broken) < options.steps:
        results = finish(begin("broken"), 600)
        assert [status for status, _ in results] == [0] * options.processes, results

    whole, again = final_state(folder / "whole", options.steps), final_state(broken, options.steps)
    different = [name for name, bits in whole.items() if again[name] != bits]
    assert whole.keys() == again.keys() and not different, different
    examples = examples_of(folder / "whole.notes", [0])
    assert examples_of(folder / "broken.notes", done["began"]) == examples
    result = {
        "processes": options.processes, "steps": options.steps, "kills": done["kills"], "arrays_identical": len(whole),
        "batches_identical": len(examples), "seconds_to_the_end_of_the_others": max(k["seconds"] for k in done["kills"]),
        "python": platform.python_version(), "cores": os.cpu_count(),
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "kills"}))


if __name__ == "__main__":
    main()
