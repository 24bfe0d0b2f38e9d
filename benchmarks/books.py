"""The real run: a BERT and an ALBERT of equal depth, width, data and updates, pre-trained on public-domain books.

  python benchmarks/books.py run --text books.txt.gz --dir runs/books       # tokenizer, store, both runs side by side
  python benchmarks/books.py report --dir runs/books --out docs/results     # figures, table and curves from what they left

``run`` may be interrupted and called again: what is done is kept, the runs continue from their checkpoints. Both models train at
the same time, so that they meet the same machine; the CPU seconds of each are recorded beside the wall time.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("bert", "albert")


def run(text: Path, directory: Path) -> None:
    """Does everything that is not done yet."""
    directory.mkdir(parents=True, exist_ok=True)
    # Large pages for glibc's heap: without them a step on CPU spends a quarter of its time in page faults.
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [sys.executable, "-m", "bert_jax"]
    tokenizer, store = directory / "tokenizer", directory / "store"
    if not tokenizer.exists():
        subprocess.run([*command, "tokenizer", text, "--documents", "formfeed", "--vocab-size", "8192", "--out", tokenizer],
                       check=True, cwd=ROOT)
    if not store.exists():
        subprocess.run([*command, "prepare", text, "--documents", "formfeed", "--heldout", "0.03", "--tokenizer", tokenizer,
                        "--out", store], check=True, cwd=ROOT)
    running = []
    for model in MODELS:
        log = (directory / f"{model}.log").open("a")
        running.append(subprocess.Popen(
            [sys.executable, __file__, "one", "--model", model, "--dir", str(directory)],
            cwd=ROOT, env=environment, stdout=log, stderr=log,
        ))
    if any([process.wait() for process in running]):
        sys.exit("a run failed: see the .log files")


def one(model: str, directory: Path) -> None:
    """One model, with its CPU time and wall time appended to usage.jsonl."""
    started = time.time()
    status = subprocess.run(
        [sys.executable, "-m", "bert_jax", "pretrain", "--config", f"configs/pretrain/{model}_books.py",
         "--data", directory / "store", "--workdir", directory / model], cwd=ROOT
    ).returncode
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (directory / "usage.jsonl").open("a") as file:
        file.write(json.dumps({
            "model": model, "status": status, "wall_seconds": round(time.time() - started, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "peak_mb": usage.ru_maxrss // 1024,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }) + "\n")
    sys.exit(status)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name in ("run", "one", "report"):
        sub = commands.add_parser(name)
        sub.add_argument("--dir", type=Path, default=Path("runs/books"), help="folder of tokenizer, store and work directories")
        if name == "run":
            sub.add_argument("--text", type=Path, required=True, help="books, separated by form feeds")
        if name == "one":
            sub.add_argument("--model", choices=MODELS, required=True)
        if name == "report":
            sub.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder for books.md and pictures")
    arguments = parser.parse_args()
    directory = arguments.dir.resolve()
    if arguments.command == "run":
        run(arguments.text.resolve(), directory)
    elif arguments.command == "one":
        one(arguments.model, directory)
    else:
        report(directory, arguments.out)


if __name__ == "__main__":
    main()
