"""Writes the tables of docs/results/performance.md anew, from what benchmarks/results has.

    python benchmarks/performance.py

A table stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``; what is outside is written by hand. A test compares
the page with what this makes of it, so that no table has a figure that no file has.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import finetuning
import processes
import provenance
import quick
import step
from provenance import NOT_RECORDED, listed

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "docs/results/performance.md"
STEP_TARGETS, DROPOUT_TARGET = {"tiny": 3.0, "base4": 1.8}, 0.05
STEP_LABELS = {
    "ours": "ours", "ours-no-dropout": "ours without dropout", "torch-eager": "transformers, eager",
    "torch-sdpa": "transformers, sdpa", "torch-compile": "transformers, torch.compile",
    "torch-sdpa-bf16": "transformers, sdpa, bf16 autocast", "torch-compile-bf16": "transformers, torch.compile, bf16 autocast",
    "ours-bf16": "ours, bfloat16",
    "flax": "the last BERT of transformers in Flax", "keras": "keras-hub on JAX, masked language model alone",
}
PREPARE_LABELS = {
    "prepare": "`bert-jax prepare`", "threads documents": "tokenizers, its threads, whole documents",
    "threads paragraphs": "tokenizers, its threads, paragraphs",
    "processes documents": "tokenizers, processes, whole documents",
    "processes paragraphs": "tokenizers, processes, paragraphs",
}
ENCODE_LABELS = {"ours": "ours", "torch": "sentence-transformers",
                 "onnxruntime": "ONNX Runtime, sorted by length, tokenizers library"}

PREDICT_LABELS = {
    "ours": "ours", "pipeline": "transformers' pipeline", "pipeline-sorted": "transformers' pipeline, texts sorted by length",
    "onnxruntime": "ONNX Runtime, sorted by length, tokenizers library",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def times(ratio: Sequence[float]) -> str:
    """A median with its range."""
    middle, low, high = ratio
    return f"{middle:.2f} x ({low:.2f} to {high:.2f})"


def spread(ratios: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(ratios), min(ratios), max(ratios)


def made(run: Mapping) -> str:
    """How a run of figures came about."""
    steps = f" of {run['steps']} steps" if "steps" in run else ""
    rounds = [f"{run['rounds']} rounds{steps}"] if "rounds" in run else []
    return "; ".join([provenance.described(run), *rounds, environment(run)])


def environment(run: Mapping) -> str:
    """Machine and versions."""
    found = dict(run["environment"])
    machine = f"{found.pop('machine')}, {found.pop('cores')} cores"
    return ", ".join([machine, *(f"{'Python' if name == 'python' else name} {version}" for name, version in found.items())])


class Contest:
    """The runs of a contest, see :func:`contest.keep`: of each contestant the newest figures."""

    def __init__(self, runs: Sequence[Mapping]):
        self.runs = runs
        self.measured = list(dict.fromkeys(what for run in runs for what in run["results"]))

    def row(self, what: str, name: str) -> tuple[int, Mapping] | None:
        """The number of the run and the figures."""
        return next(((number, run["results"][what][name]) for number, run in enumerate(self.runs)
                     if name in run["results"].get(what, {})), None)

    def cells(self, what: str, name: str, figure: Callable[[Mapping], str]) -> list[str]:
        """``figure`` of a contestant, and how many times as fast ours is."""
        found = self.row(what, name)
        if found is None:
            return ["not measured yet", ""]
        number, row = found
        return [figure(row) + (f" (run {number + 1})" if number else ""), "" if name == "ours" else times(row["ours_over_it"])]

    def best(self, what: str, names: Sequence[str]) -> list[float] | None:
        """The ratio to the fastest of ``names``."""
        ratios = [found[1]["ours_over_it"] for name in names if (found := self.row(what, name))]
        return min(ratios, default=None)

    def described(self) -> str:
        """A paragraph for each run."""
        return "\n\n".join(self._described(number) for number in range(len(self.runs)))

    def _described(self, number: int) -> str:
        run, head = self.runs[number], "Measured"
        if number:
            held = [f"{what}: {', '.join(name for name in rows if name != 'ours')}" for what, rows in run["results"].items()]
            head = f"Run {number + 1}, in which ratios are to ours of that day ({'; '.join(held)})"
        versions = {
            name.partition("-")[0]: ", ".join(f"{package} {version}" for package, version in row["versions"].items())
            for rows in run["results"].values() for name, row in rows.items() if "versions" in row
        }
        packages = [f"{name}: {known}" for name, known in versions.items()]
        recorded = all("turns" in row for rows in run["results"].values() for row in rows.values())
        return f"{head}: {'; '.join([made(run), *packages, *single_turns(recorded)])}.{noted(run)}"


def single_turns(recorded: bool) -> list[str]:
    return [] if recorded else [f"single turns {NOT_RECORDED}"]


def noted(run: Mapping) -> str:
    return f" {run['note']}" if "note" in run else ""


def training_step(found: Mapping) -> str:
    contest = Contest(found["runs"])
    head, rows = [""], []
    for model in contest.measured:
        layers, width, batch = step.MODELS[model]
        head += [f"{model}: {layers} layers, width {width}, batch {batch}", "ours over it"]
    for name, label in STEP_LABELS.items():
        cells = [contest.cells(model, name, lambda row: f"{row['sequences_per_second']:.1f} sequences/s")
                 for model in contest.measured]
        rows.append([label, *(cell for pair in cells for cell in pair)])
    against, halved, shares = [], [], []
    peers = [name for name in STEP_LABELS if name.startswith("torch")]
    for model in contest.measured:
        if best := contest.best(model, [name for name in peers if not name.endswith("bf16")]):
            against.append(f"{best[0]:.2f} x for {model} (target {STEP_TARGETS[model]})")
        if best := contest.best(model, [name for name in peers if name.endswith("bf16")]):
            halved.append(f"{times(best)} for {model}")
        if without := contest.row(model, "ours-no-dropout"):
            middle, low, high = (1 - value for value in without[1]["ours_over_it"])
            shares.append(f"{middle:.1%} of a step of {model} ({high:.1%} to {low:.1%})")
    dropout = f"Dropout takes {listed(shares)}" if shares else "What dropout takes of a step is not measured yet"
    best = [f"Against the best of transformers in PyTorch that is {listed(against)}."] if against else []
    if halved:
        best.append(f"Ours in float32 against the best of transformers in PyTorch in bf16: {listed(halved)}.")
    return "\n\n".join([
        table(head, rows), *best, f"{dropout} (target: below {DROPOUT_TARGET:.0%}).", contest.described(),
    ])


def sentence_vectors(found: Mapping) -> str:
    return of_texts(found, "sentences", ENCODE_LABELS, "Against the faster of the two that is {:.2f} x (target 1.0).")


def classes_of_texts(found: Mapping) -> str:
    return of_texts(found, "texts", PREDICT_LABELS, "Against the fastest of the others that is {:.2f} x.")


def of_texts(found: Mapping, unit: str, labels: Mapping[str, str], said: str) -> str:
    """A table for each kind of text. ``said``: of the ratio to the fastest of the others."""
    contest, parts = Contest(found["runs"]), []
    for what in contest.measured:
        rows = []
        for name, label in labels.items():
            cells = contest.cells(what, name, lambda row: f"{row[f'{unit}_per_second']:.0f}")
            first = contest.row(what, name)
            rows.append([label, *cells, f"{first[1]['first_seconds']:.1f} s" if first else ""])
        best = contest.best(what, [name for name in labels if name != "ours"])
        parts.append(table([what, f"{unit}/s", "ours over it", f"first call, all {unit}"], rows))
        if best:
            parts.append(said.format(best[0]))
    return "\n\n".join([*parts, contest.described()])


def quick_ratios(found: Mapping) -> str:
    rows = [[name, next(peer for peer in rows if peer != "ours"), times(quick.ratio(rows))]
            for name, rows in found["results"].items()]
    seconds = f"; {found['seconds']} s in all" if "seconds" in found else ""
    return f"{table(['', 'peer', 'ours over it'], rows)}\n\nMeasured: {made(found)}{seconds}.{noted(found)}"


def fine_tuning(found: Mapping) -> str:
    cells = [row for row in found["rows"].values() if row["task"] == "speed"]
    rows, runs = [], []
    for side, label in ((finetuning.BY_DEFAULT, "by default"), ("trainer", "told to group by length")):
        timing = finetuning.timing(cells, "speed", side)
        if timing is None:
            continue
        rows.append([label, *(f"{value:.1f} s" for value in timing.epoch), times(spread(timing.epochs)),
                     *(f"{value:.0f} s" for value in timing.run), times(spread(timing.runs)),
                     *(f"{value:,.0f} MiB" for value in timing.peak)])
    for side in ("ours", finetuning.BY_DEFAULT, "trainer"):
        seconds = [f"{row['seconds']:.0f}" for row in sorted(cells, key=lambda row: row["seed"]) if row["side"] == side]
        runs.append(f"{side} {', '.join(seconds)}")
    head = ["the Trainer", "an epoch, ours", "Trainer", "ratio of epochs", f"a run of {finetuning.SPEED_EPOCHS} epochs, ours",
            "Trainer", "ratio of runs", "memory, ours", "Trainer"]
    return "\n\n".join([
        table(head, rows), f"The runs one by one, in seconds: {'; '.join(runs)}. The first of ours compiles.",
        f"Measured: code {processes.codes(cells)}; {processes.machines(cells)}.",
    ])


def loader(found: Mapping) -> str:
    kinds, lengths = (list(dict.fromkeys(row[key] for row in found["rows"])) for key in ("examples", "length"))
    by = {(row["examples"], row["length"]): row for row in found["rows"]}
    rows = []
    for kind in kinds:
        cells = []
        for length in lengths:
            row = by.get((kind, length), {})
            turns = row.get("turns", [])
            spread = f" ({min(turns):,} to {max(turns):,})" if turns else ""
            cells += [f"{row['sequences_per_second']:,}{spread}", f"{row['filled']:.1%}",
                      str(row.get("batch_ms_of_a_core", NOT_RECORDED))] if row else [""] * 3
        rows.append([kind, *cells])
    head = ["examples"]
    for length in lengths:
        head += [f"{length} tokens: sequences/s", "filled", "ms of a core a batch"]
    size = f"batches of {found['rows'][0]['batch_size']} from {found['tokens']:,} tokens"
    turns = single_turns(all("turns" in row for row in found["rows"]))
    return f"{table(head, rows)}\n\nMeasured: {'; '.join([made(found), size, *turns])}.{noted(found)}"


def waiting(found: Mapping) -> str:
    row = found.get("waiting")
    if row is None:
        return "What a training loop waits for its batches is not measured yet."
    size = f"{row['layers']} layers, width {row['width']}, {row['batch_size']} x {row['length']} tokens, NSP"
    return (
        f"A training loop of {row['model']} ({size}) waits {row['wait_ms']:.2f} ms for a batch (median; at most "
        f"{max(row['waits_ms']):.2f}) of an update of {row['update_ms']:.0f} ms: {row['share']:.2%} of the time of "
        f"{len(row['waits_ms'])} updates."
    )


def preparing(found: Mapping) -> str:
    library, rows = found["library"], []
    for name, row in library["rows"].items():
        ratios = ["" if name == "prepare" else times(row[key]) for key in ("ours_over_it", "ours_over_it_processor")]
        seconds = [f"{row[key]:.1f} s" for key in ("seconds", "processor_seconds")]
        rows.append([PREPARE_LABELS[name], f"{row['mb_per_second']:.1f} MB/s", *seconds, *ratios])
    best = library["rows"][library["best_of_library"]]["ours_over_it"][0]
    head = ["", "text", "wall time", "processor time", "ours over it", "by processor time"]
    machine = {"machine": found["machine"]["processor"], "cores": found["machine"]["cores"]}
    run = found | {"rounds": library["rounds"], "environment": machine | found["versions"]}
    return "\n\n".join([
        table(head, rows),
        f"Against the best of the library that is {best:.2f} x (target 0.8). {found['text_mb']} MB of text make a store of "
        f"{found['store_mb']} MB; memory is {found['peak_mb_main']} MB in the process that reads and writes, "
        f"{found['peak_mb_largest_worker']} in the largest of {library['workers']} workers. Sentences alone are found at "
        f"{found['sentence_splitting_mb_per_second']:.1f} MB a second of processor time.",
        f"Measured: {made(run)}.{noted(found)}",
    ])


def saving(found: Mapping) -> str:
    saved, seconds = found["save"], found["save"]["seconds"]
    rows = [
        [label, f"{statistics.median(seconds[key]):.1f} s", ", ".join(f"{value:.1f}" for value in seconds[key])]
        for label, key in (("`save()` blocks", "blocked"), ("until on disk", "written"))
    ]
    meanwhile = saved["updates_meanwhile"]
    rows += [
        ["updates meanwhile", f"{statistics.median(meanwhile):.0f}", ", ".join(map(str, meanwhile))],
        ["restore, fingerprints checked", f"{seconds['restored'][0]:.1f} s", "one reading"],
    ]
    return "\n\n".join([
        table(["", "median", "each save"], rows),
        f"The state has {saved['bytes'] / 1e9:.2f} GB. {saved['peak_bytes'] / 1e9:.2f} GB of memory at most, "
        f"{found['nothing']['peak_bytes'] / 1e9:.2f} GB for the same process without saving.",
        f"Measured: {made(found)}.{noted(found)}",
    ])


def starting(found: Mapping) -> str:
    labels = {
        "traced": "traced and lowered", "compiled": "compiled for this processor", "kept": "the next time, from what was kept",
        "chip": "all of it for a v5e chip, with XLA's TPU compiler",
    }
    idle = {"help": "`bert-jax --help`", "python": "Python that does nothing"}
    rows = [[label, *_readings(found[key], 2)] for key, label in idle.items()]
    for name, readings in found["programs"].items():
        for key, label in labels.items():
            if key in readings[0]:
                rows.append([f"the step of `{name}`: {label}", *_readings([reading[key] for reading in readings], 1)])
    text = f"Steps are those of the configurations with a batch of {found['batch_size']} for one device."
    return f"{table(['', 'median', 'each'], rows)}\n\n{text}\n\nMeasured: {made(found)}.{noted(found)}"


def _readings(seconds: Sequence[float], digits: int) -> list[str]:
    return [f"{statistics.median(seconds):.{digits}f} s", ", ".join(f"{value:.{digits}f}" for value in seconds)]


# name of the markers -> file of results, what makes the text of it
SECTIONS: dict[str, tuple[str, Callable[[Mapping], str]]] = {
    "step": ("step_cpu", training_step), "encode": ("encode_cpu", sentence_vectors),
    "predict": ("predict_cpu", classes_of_texts), "quick": ("quick", quick_ratios),
    "finetuning": ("finetuning_cpu", fine_tuning), "loader": ("loader_cpu", loader), "waiting": ("loader_cpu", waiting),
    "preparing": ("prepare_cpu", preparing), "saving": ("saving", saving), "starting": ("starting", starting),
}


def rendered(page: str, results: Path = RESULTS) -> str:
    """``page`` with every table made anew.

    Raises:
      SystemExit: the page lacks the place of one, or has it twice.
    """
    for name, (file, make) in SECTIONS.items():
        place = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", flags=re.S)
        if len(place.findall(page)) != 1:
            sys.exit(f"the page must have <!-- {name}: begin --> and <!-- {name}: end --> once")
        text = make(json.loads((results / f"{file}.json").read_text(encoding="utf-8")))
        page = place.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
    return page


def main() -> None:
    """Writes the page."""
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
