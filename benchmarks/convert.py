"""What it costs to convert a checkpoint of BERT-large's size: seconds and peak memory of the whole process.

Makes a random BERT-large (pre-training heads, 1.34 GB of float32) as a Hugging Face directory, then runs ``bert-jax convert``
on it in every direction, and transformers' own load and save beside it, each in a process of its own, in turns.

    python benchmarks/convert.py --rounds 3 --json benchmarks/results/convert.json
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import provenance

TRANSFORMERS = (
    "import sys; from transformers import AutoModelForPreTraining as M; "
    "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
)


def make_checkpoint(folder: Path, layers: int) -> int:
    """Random weights written with the exporter itself; returns their bytes."""
    import jax
    import numpy as np

    import bert_jax
    from bert_jax.model import Model
    from bert_jax.models import api
    from bert_jax.models.config import preset
    from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

    config = preset("bert-large", layers=layers)
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape, np.float32), shapes)
    tokenizer = WordPieceTokenizer([*SPECIALS, *(f"w{i}" for i in range(config.vocab_size - len(SPECIALS)))])
    bert_jax.save(Model(params, config, tokenizer), folder)
    return (folder / "model.safetensors").stat().st_size


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds of a process, and its peak resident memory in bytes."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{' '.join(command)} failed: {errors.decode()[-500:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each conversion runs")
    parser.add_argument("--layers", type=int, default=24, help="layers of the checkpoint; 24 is BERT-large")
    parser.add_argument("--folder", default=None, help="where to write (about 5 GB); default: a temporary folder")
    parser.add_argument("--json", default=None, help="file for the figures")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        size = make_checkpoint(folder / "hf", arguments.layers)
        convert = [sys.executable, "-m", "bert_jax", "convert", "--from"]
        runs = {
            "hf -> hf": [*convert, str(folder / "hf"), "--format", "hf"],
            "hf -> hf, bfloat16": [*convert, str(folder / "hf"), "--format", "hf", "--dtype", "bf16"],
            "hf -> sentence-transformers": [*convert, str(folder / "hf"), "--format", "sentence-transformers"],
            "hf -> bert_jax": [*convert, str(folder / "hf"), "--format", "bert_jax"],
            "bert_jax -> hf": [*convert, str(folder / "native"), "--format", "hf"],
        }
        measure([*convert, str(folder / "hf"), "--format", "bert_jax", "--to", str(folder / "native")])
        try:
            import transformers

            runs[f"transformers {transformers.__version__}"] = [sys.executable, "-c", TRANSFORMERS, str(folder / "hf")]
        except ImportError:
            print("transformers is not installed: no comparison", file=sys.stderr)
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
        for _ in range(arguments.rounds):
            for name, command in runs.items():
                out = folder / "out"
                to = [str(out)] if name.startswith("transformers") else ["--to", str(out)]
                found[name].append(measure([*command, *to]))
                shutil.rmtree(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = {
        "command": " ".join(["python", *sys.argv]), "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "code": provenance.code(), "python": platform.python_version(), "checkpoint_bytes": size, "runs": {},
    }  # fmt: skip
    print(f"checkpoint {size / 1e9:.2f} GB; limits: 15 s, 1.4 x size + 400 MB = {(1.4 * size + 400e6) / 1e9:.2f} GB")
    for name, values in found.items():
        seconds, peaks = [s for s, _ in values], [p for _, p in values]
        report["runs"][name] = {"seconds": seconds, "peak_bytes": peaks}
        print(f"{name:30} {statistics.median(seconds):6.1f} s (from {min(seconds):.1f})   peak {max(peaks) / 1e9:.2f} GB, "
              f"{(max(peaks) - 400e6) / size:.2f} x size + 400 MB")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
