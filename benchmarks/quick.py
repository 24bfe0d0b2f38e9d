"""A few ratios in under two minutes, each beside the committed one: has something become slower?

    python benchmarks/quick.py                    # or: make bench-quick
    python benchmarks/quick.py --commit           # what is measured becomes what later runs are compared with

- ``step``: a pre-training step of the tiny model against transformers with sdpa (:mod:`step`).
- ``encode``: 400 sentences against sentence-transformers (:mod:`encode`), where data and weights are there.

Only ratios to a peer that took turns with ours are compared: they mean something on a busy machine too. Ends with status 1
where one has fallen below ``FALLEN`` of the committed one.
"""

import argparse
import json
import sys
from pathlib import Path

import contest
import encode
import step
import weights

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FALLEN = ROOT / "benchmarks/results/quick.json", 0.7


def measure(data: Path) -> dict[str, tuple[float, float, float]]:
    """Name -> ratio: median over rounds, smallest, largest."""
    found = {"step": step.compare("tiny", ["torch-sdpa"], 3, 3)["torch-sdpa"]["ours_over_it"]}
    if not (weights.weights_dir() / encode.MODEL / "config.json").exists():
        print(f"encode: left out, no weights (python benchmarks/weights.py {encode.MODEL})", file=sys.stderr)
    elif not (data / "sts/stsb").is_dir():
        print(f"encode: left out, no {data}/sts/stsb (--data)", file=sys.stderr)
    else:
        found["encode"] = encode.compare(data, 400, ["torch"], 5, 32)["torch"]["ours_over_it"]
    return found


def main() -> None:
    """Reads the command line, prints a line for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder with sts/")
    parser.add_argument("--commit", action="store_true", help="write benchmarks/results/quick.json")
    arguments = parser.parse_args()
    before = json.loads(RESULTS.read_text())["ratios"] if RESULTS.exists() else {}
    found, fallen = measure(arguments.data.resolve()), []
    for name, (middle, low, high) in found.items():
        old = before.get(name, [None])[0]
        line = f"{name:8s} {middle:.2f} x ({low:.2f} to {high:.2f})"
        if old is None:
            print(f"{line}, nothing to compare with")
            continue
        word = "fallen" if middle < FALLEN * old else "lower than it has been, within noise" if high < old else "as it was"
        print(f"{line}, committed {old:.2f} x: {word}")
        fallen += [name] * (word == "fallen")
    if arguments.commit:
        versions = contest.environment("jax", "flax", "optax", "torch", "transformers", "sentence-transformers", "numpy")
        RESULTS.write_text(json.dumps({"environment": versions, "ratios": found}, indent=2) + "\n")
    elif fallen:
        sys.exit(f"slower than before against the same peer: {', '.join(fallen)}")


if __name__ == "__main__":
    main()
