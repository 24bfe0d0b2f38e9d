"""A few ratios in under two minutes, each beside the committed one: has something become slower?

    python benchmarks/quick.py                    # or: make bench-quick
    python benchmarks/quick.py --commit           # what is measured becomes what later runs are compared with

- ``step``: a pre-training step of the tiny model against transformers with sdpa (:mod:`step`).
- ``encode``: 400 sentences against sentence-transformers (:mod:`encode`), where data and weights are there.

Only ratios to a peer that took turns with ours are compared: they mean something on a busy machine too. Ends with status 1
where the median over rounds is below every round of the committed run. That run has more rounds: by chance alone, were rounds
independent, a median of 5 is below all of 9 in one run of 36.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import contest
import encode
import provenance
import step
import weights

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/quick.json"
ROUNDS, COMMITTED = 5, 9  # of a run that is compared, and of one that others are compared with


def measure(data: Path, rounds: int) -> dict[str, dict[str, dict]]:
    """Name -> contestant -> figures."""
    found = {"step": step.compare("tiny", ["torch-sdpa"], rounds, 3)}
    if not (weights.weights_dir() / encode.MODEL / "config.json").exists():
        print(f"encode: left out, no weights (python benchmarks/weights.py {encode.MODEL})", file=sys.stderr)
    elif not (data / "sts/stsb").is_dir():
        print(f"encode: left out, no {data}/sts/stsb (--data)", file=sys.stderr)
    else:
        found["encode"] = encode.compare(data, 400, ["torch"], rounds, 32)
    return found


def ratio(rows: dict[str, dict]) -> list[float]:
    """How many times as fast as the peer ours is: median over rounds, smallest, largest."""
    return next(row["ours_over_it"] for name, row in rows.items() if name != "ours")


def verdict(found: Sequence[float], committed: Sequence[float]) -> str:
    """What a ratio is beside the committed one, both as :func:`ratio` gives them."""
    if found[0] < committed[1]:
        return "fallen"
    return "lower than it has been, within noise" if found[2] < committed[0] else "as it was"


def main() -> None:
    """Reads the command line, prints a line for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="folder with sts/")
    parser.add_argument("--commit", action="store_true", help="write benchmarks/results/quick.json")
    arguments = parser.parse_args()
    before = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    run, began, rounds = provenance.begin(), time.monotonic(), COMMITTED if arguments.commit else ROUNDS
    found, fallen = measure(arguments.data.resolve(), rounds), []
    for name, rows in found.items():
        middle, low, high = ratio(rows)
        line = f"{name:8s} {middle:.2f} x ({low:.2f} to {high:.2f})"
        if name not in before:
            print(f"{line}, nothing to compare with")
            continue
        old = ratio(before[name])
        word = verdict(ratio(rows), old)
        print(f"{line}, committed {old[0]:.2f} x ({old[1]:.2f} to {old[2]:.2f}): {word}")
        fallen += [name] * (word == "fallen")
    if arguments.commit:
        if missing := before.keys() - found.keys():
            sys.exit(f"{', '.join(sorted(missing))} would be lost: nothing is written, see above what it needs")
        versions = contest.environment("jax", "flax", "optax", "torch", "transformers", "sentence-transformers", "numpy")
        settings = {"environment": versions, "rounds": rounds, "seconds": round(time.monotonic() - began)}
        RESULTS.write_text(json.dumps(provenance.ended(run) | settings | {"results": found}, indent=1) + "\n")
    elif fallen:
        sys.exit(f"slower than before against the same peer: {', '.join(fallen)}")


if __name__ == "__main__":
    main()
