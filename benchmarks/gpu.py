"""Whole training steps on one GPU against transformers in PyTorch (sdpa, torch.compile, bf16 autocast, fused AdamW).

    python -m benchmarks.gpu --out benchmarks/results/gpu_h100.json                 # nine minutes; again for what is left out
    python -m benchmarks.gpu --out gpu.json --cases base-128 --profile              # and the kernels that take the time
    python -m benchmarks.gpu --render                          # docs/results/gpu.md, of every benchmarks/results/gpu_*.json

Nothing has to be installed but jax, torch and transformers, and flax, optax and jaxtyping where the image lacks them
(``pip install flax optax jaxtyping``); bert_jax is imported from the repository.

Every contestant is a process of its own, alone on the GPU: BERT with MLM and NSP, 15% of the positions predicted, dropout 0.1,
AdamW and clipping, bf16 products with float32 parameters, all rows full, the batch on the device. The figure is the median of
five windows, each of as many updates as take about a second. MFU counts forward and backward products (6 x parameters of
matrices a token and attention, predicted positions only for the vocabulary, nothing for recomputation) against the device's
dense bf16 peak.

A file is of one device; where two would meet in one, nothing is measured. It is written after every contestant. What it has is
not measured again, but for errors: these come last. Nothing is begun that will not be done within ``--seconds``, as far as
former contestants tell; what is not done by then is killed. Where something is left out, the last line says what, the status
is 75, and the same command continues.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # as for the other scripts

from benchmarks import provenance
from benchmarks.processes import CONTINUES, chosen, keep

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results/gpu_h100.json", ROOT / "docs/results/gpu.md"
# Dense bf16, NVIDIA's data sheets; the first name that a device's has counts.
PEAK = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
# Of the issue this was built for, on one H100 SXM: sequences a second, and how many times PyTorch.
TARGETS = {"base-128": (6300, 1.3), "large-128": (1850, 1.3), "large-512": (436, None)}
DROPOUT_TARGET = 0.05
VOCABULARY = 30522
UPDATES = 5  # of the first look at the speed
LEAST = 60  # seconds for a contestant where none of its side has been measured
SIDES = ("ours", "torch")
# case -> preset, length, batches, sides; most important first, and the best batch of each side counts
CASES = {
    "base-128": ("bert-base", 128, (512, 256), SIDES),
    "large-512": ("bert-large", 512, (64, 32), SIDES),
    "large-128": ("bert-large", 128, (256, 128), SIDES),
    "xxlarge-512": ("albert-xxlarge-v2", 512, (16,), ("ours",)),
    "base-128-no-dropout": ("bert-base", 128, (512,), ("ours",)),
}
TRIAL = {"test": ("bert-tiny", 32, (8,), SIDES)}  # for a processor
OURS = {"remat": "masks", "unroll": True, "vocab_multiple": 128}


def contestants(names: list[str]) -> list[str]:
    """``SIDE CASE BATCH``, ours and theirs by turns; first the first batch of every case."""
    cases = {name: (CASES | TRIAL)[name] for name in names}
    return [
        f"{side} {name} {batch}"
        for rank in range(max(len(batches) for _, _, batches, _ in cases.values()))
        for name, (_, _, batches, sides) in cases.items()
        for batch in batches[rank : rank + 1]
        for side in sides
    ]


def batch_of(rows: int, length: int) -> dict:
    """A full batch of ordinary ids, the same for everybody."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids = rng.integers(1000, VOCABULARY, (rows, length), dtype=np.int32)
    ids[:, 0], ids[:, -1] = 101, 102
    return {
        "input_ids": ids, "segment_ids": (np.arange(length) > length // 2).astype(np.int32) + np.zeros((rows, 1), np.int32),
        "attention_mask": np.ones((rows, length), bool), "next_sentence_label": rng.integers(0, 2, rows, dtype=np.int32),
    }


def task_of(name: str, changes: dict):
    """Our task of a case."""
    from bert_jax.data.pairs import PairSpec
    from bert_jax.models.config import preset
    from bert_jax.objectives import MaskedLM, NextSentence
    from bert_jax.objectives.base import Pieces
    from bert_jax.objectives.pretraining import Pretraining, PretrainingTask

    model, length, *_ = (CASES | TRIAL)[name]
    rate = 0.0 if name.endswith("no-dropout") else 0.1
    encoder = preset(model, compute_dtype="bfloat16", dropout=rate, attention_dropout=rate, **changes)
    task = PretrainingTask(Pretraining(encoder, (MaskedLM(), NextSentence()), PairSpec(length, "nsp")), None)
    task._pieces = Pieces(encoder.vocab_size, 0, 100, 101, 102, 103, (0, 100, 101, 102, 103))  # there is no store
    return task


def ours(name: str, rows: int, changes: dict, profile: bool) -> dict:
    """Our step, as train() makes it."""
    import jax
    import numpy as np

    from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
    from bert_jax.planning.flops import task_work
    from bert_jax.training.optimizer import AdamW, make_optimizer
    from bert_jax.training.step import abstract_state, init_state, make_train_step

    task, length = task_of(name, changes), (CASES | TRIAL)[name][1]
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(AdamW(warmup_steps=10), 100_000, task.logical_axes())
    abstract = abstract_state(task, optimizer, mesh)
    batch = {key: value % task.config.encoder.vocab_size if key == "input_ids" else value
             for key, value in batch_of(rows, length).items()}
    with jax.set_mesh(mesh):
        state = init_state(task, optimizer, abstract, jax.random.key(0))
        step = make_train_step(task, optimizer, mesh, abstract, accumulate=1)
        batch = to_devices(batch | {"word_starts": np.ones((rows, length), bool)}, mesh)

        def run(updates: int) -> float:
            nonlocal state
            for _ in range(updates):
                state, metrics = step(state, batch)
            return float(metrics["loss"].sum)

        found = measure(run, rows)
        if profile:
            with jax.profiler.trace("/tmp/bert_jax_trace"):
                run(3)
            found["kernels"] = kernels("/tmp/bert_jax_trace", 3)
    stats = jax.local_devices()[0].memory_stats() or {}
    return found | {
        "changes": changes, "device": jax.devices()[0].device_kind, "useful_flops": task_work(task).useful,
        "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
    }


def theirs(name: str, rows: int) -> dict:
    """The same in PyTorch, as a good user writes it. It has its masks ready-made."""
    import torch
    from transformers import BertConfig, BertForPreTraining

    from bert_jax.models.config import preset

    model, length, *_ = (CASES | TRIAL)[name]
    config, device = preset(model), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    net = BertForPreTraining._from_config(BertConfig(
        vocab_size=VOCABULARY, hidden_size=config.hidden_width, num_hidden_layers=config.depth,
        num_attention_heads=config.heads, intermediate_size=config.ffn_width, attn_implementation="sdpa",
    )).train().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, eps=1e-6, fused=device == "cuda")
    tensors = {key: torch.from_numpy(value).to(device) for key, value in batch_of(rows, length).items()}
    labels = torch.full((rows, length), -100, device=device)
    predicted = round(0.15 * length)
    labels[:, 1 : 1 + predicted] = tensors["input_ids"][:, 1 : 1 + predicted].long()
    arguments = {
        "input_ids": tensors["input_ids"].long(), "token_type_ids": tensors["segment_ids"].long(), "labels": labels,
        "next_sentence_label": tensors["next_sentence_label"].long(),  # no attention_mask: all rows are full, the faster path
    }
    forward = torch.compile(net) if device == "cuda" else net

    def run(updates: int) -> float:
        for _ in range(updates):
            with torch.autocast(device, torch.bfloat16):
                loss = forward(**arguments).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        return float(loss.detach())

    found = measure(run, rows)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return found | {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "peak_gib": peak}


def measure(run, rows: int) -> dict:
    """Seconds of the first update, compilation included, and of an update afterwards."""
    began = time.perf_counter()
    first_loss = run(1)
    first = time.perf_counter() - began
    run(2)
    began = time.perf_counter()
    run(UPDATES)
    updates = max(2, round(UPDATES / (time.perf_counter() - began)))
    windows = []
    for _ in range(5):
        began = time.perf_counter()
        last_loss = run(updates)
        windows.append((time.perf_counter() - began) / updates)
    seconds = statistics.median(windows)
    return {"first_seconds": first, "seconds": seconds, "sequences_per_second": rows / seconds, "windows": windows,
            "losses": [first_loss, last_loss]}


def kernels(folder: str, updates: int) -> list:
    """Milliseconds of an update and calls of every kernel on the device, longest first."""
    import collections

    import jax

    path = max(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    times, calls = collections.Counter(), collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines if "GPU" in plane.name else ():
            for event in line.events if "Stream" in line.name else ():
                times[event.name[:90]] += event.duration_ns / 1e6 / updates
                calls[event.name[:90]] += 1
    return [[name, round(milliseconds, 4), calls[name] // updates] for name, milliseconds in times.most_common(60)]


def one(side: str, name: str, rows: int, changes: dict, profile: bool) -> dict:
    """What a contestant measures; an error is a result as well."""
    try:
        return ours(name, rows, changes, profile) if side == "ours" else theirs(name, rows)
    except Exception as error:  # out of memory has a different type on either side
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def process_of(command: list[str], seconds: float) -> dict:
    """What the process of a contestant has found; it is killed, with what it has begun, after ``seconds``."""
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, complaint = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"error": f"killed after {seconds:.0f} s", "killed": True}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # PyTorch's compiler has processes of its own
    lines = said.strip().splitlines()
    return json.loads(lines[-1]) if process.returncode == 0 and lines else {"error": complaint[-300:]}


def needed(contestant: str, results: dict) -> float:
    """Seconds that a contestant will take: as many as the longest of its side so far."""
    side = contestant.split()[0]
    return max((row["took"] for one, row in results.items() if one.split()[0] == side and "took" in row and "error" not in row),
               default=LEAST)


def device_here() -> str | None:
    """The first GPU's name, without any process on it; None where NVIDIA's driver is not."""
    line = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _check_device(out: Path, results: dict, here: str | None) -> None:
    others = {row["device"] for row in results.values() if "device" in row} - {here}
    if others and here:
        sys.exit(f"{out} was measured on {', '.join(others)}, this is {here}: name another file (--out)")


def run(out: Path, names: list[str], profile: bool, changes: dict, seconds: float) -> list[str]:
    """Every contestant that ``out`` has nothing of, then those that failed, until ``seconds`` are over; those left out."""
    began = time.monotonic()
    record = json.loads(out.read_text()) if out.exists() else {"results": {}}
    results, versions = record["results"], {}
    for package in ("jax", "jaxlib", "flax", "optax", "torch", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    for what, here in (("versions", versions), ("changes", changes)):
        if results and record.get(what, here) != here:
            sys.exit(f"{out} was measured with {what} {record[what]}, these are {here}: name another file (--out)")
    _check_device(out, results, device_here())
    record |= {"versions": versions, "changes": changes, "command": "python -m benchmarks.gpu " + " ".join(sys.argv[1:])}
    todo = [one for one in contestants(names) if "error" in results.get(one, {"error": "not there"})]
    left_out = []
    for number, contestant in enumerate(sorted(todo, key=lambda one: one in results), start=1):
        start = time.monotonic()
        left = seconds - (start - began)
        if left < needed(contestant, results):
            left_out.append(contestant)
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", "--one", contestant, "--changes", json.dumps(changes)]
        found = process_of(command + ["--profile"] * profile, left)
        _check_device(out, results, found.get("device"))
        left_out += [contestant] * found.pop("killed", False)
        begun = provenance.begin()
        results[contestant] = found | {"took": time.monotonic() - start, "date": begun["date"], "code": begun["code"]}
        keep(out, record)
        said = found.get("error") or (
            f"{found['sequences_per_second']:,.0f} sequences/s, {1e3 * found['seconds']:.2f} ms, first update "
            f"{found['first_seconds']:.0f} s, {found['peak_gib']:.1f} GiB"
        )
        print(f"{number}/{len(todo)} {contestant}: {said}", flush=True)
        for name, milliseconds, calls in found.get("kernels", [])[:40]:
            print(f"{milliseconds:9.3f} ms {calls:5d} {name}")
    return left_out


def render(files: list[Path]) -> None:
    """The page, a section for each file of results, one below another."""
    peaks = ", ".join(f"{key} {value / 1e12:.0f}" for key, value in PEAK.items())
    PAGE.write_text(f"""# A training step on a GPU

Whole updates (forward, backward, clipping, AdamW; MLM and NSP, 15% of the positions predicted, dropout 0.1 everywhere, bf16
with float32 parameters), alone on the GPU; the best batch of each side. PyTorch: transformers
with sdpa, torch.compile, bf16 autocast and fused AdamW; it has its masks ready-made and no padding mask, ours draws masks in
the step. It computes the vocabulary for all positions, as its users do.

MFU: 6 x parameters of matrices a token and attention, predicted positions only for the vocabulary, nothing for what is
computed again, over the dense bf16 peak of the data sheet ({peaks} TFLOP/s).

{chr(10).join(_section(file) for file in files)}""")
    print(PAGE)


def _section(results: Path) -> str:
    """What a file has of its device."""
    record = json.loads(results.read_text())
    lines = ["| case | ours, batch | sequences/s | target | ms | MFU | peak memory | first update | PyTorch, batch | "
             "sequences/s | ours over PyTorch | target |", "|---" * 12 + "|"]
    reached, missed = [], []
    best = {name: {side: row for side in SIDES if (row := _best(record["results"], side, name))} for name in CASES}
    rows = [sides["ours"][1] for sides in best.values() if "ours" in sides]
    device = rows[0]["device"] if rows else "no device"
    aims = TARGETS if "H100" in device and not any(key in device for key in ("PCIe", "NVL")) else {}
    for name, sides in best.items():
        if "ours" not in sides or name.endswith("no-dropout"):
            continue
        batch, row = sides["ours"]
        speed, times = row["sequences_per_second"], None
        speed_aim, times_aim = aims.get(name, (None, None))
        peak = next((value for key, value in PEAK.items() if key in device), None)
        cells = [name, str(batch), f"{speed:,.0f}", f"{speed_aim:,}" if speed_aim else "-", f"{1e3 * row['seconds']:.1f}",
                 f"{row['useful_flops'] * speed / peak:.1%}" if peak else "-", f"{row['peak_gib']:.1f} GiB",
                 f"{row['first_seconds']:.0f} s"]
        if "torch" in sides:
            batch, other = sides["torch"]
            times = speed / other["sequences_per_second"]
            cells += [str(batch), f"{other['sequences_per_second']:,.0f}", f"{times:.2f} x"]
            cells.append(f"{times_aim} x" if times_aim else "-")
        else:
            cells += ["-", "-", "-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
        for value, aim, unit in ((speed, speed_aim, "sequences/s"), (times, times_aim, "x PyTorch")):
            if value and aim:
                shown = f"{value:,.0f} of {aim:,}" if unit == "sequences/s" else f"{value:.2f} of {aim}"
                (reached if value >= aim else missed).append(f"{name} {shown} {unit}")
    said = [f"Targets reached: {'; '.join(reached) or 'none'}. **Missed: {'; '.join(missed) or 'none'}.**"] if aims else []
    with_, without = (best[name].get("ours") for name in ("base-128", "base-128-no-dropout"))
    if with_ and without and with_[0] == without[0]:
        share = 1 - with_[1]["sequences_per_second"] / without[1]["sequences_per_second"]
        said.append(f"Dropout takes {share:.1%} of a step of base-128 (target: below {DROPOUT_TARGET:.0%}).")
    else:
        said.append("What dropout takes of a step is not measured on this device.")
    changes = sorted({json.dumps(row["changes"]) for row in rows})
    everybody = {one: record["results"].get(one) for one in contestants(list(CASES))}
    tried = "; ".join(f"{what}: {', '.join(which) or 'none'}" for what, which in (
        ("measured", [f"{one} ({_made(row)})" for one, row in everybody.items() if row and "error" not in row]),
        ("failed", [f"{one} ({row['error'][:80]})" for one, row in everybody.items() if row and "error" in row]),
        ("not measured", [one for one, row in everybody.items() if row is None]),
    ))
    which = "the rows without a date" if any("date" in row for row in record["results"].values()) else "these rows"
    note = f"\n**How {which} were made.** {record['note']}\n" if "note" in record else ""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"""## {device}

Ours: `{"`, `".join(changes)}`.

{chr(10).join(lines)}

{chr(10).join(said)}

Sides, cases and batches {tried}.
{note}
{versions}. `{record['command']}`;
[all figures](../../benchmarks/results/{results.name}), [what was tried](../../benchmarks/NOTES.md).
{_attention(results.with_name(results.name.replace("gpu_", "attention_")))}"""


def _best(results: dict, side: str, name: str) -> tuple[int, dict] | None:
    """The fastest batch of a side, and its row."""
    mine = {int(key.split()[2]): row for key, row in results.items() if key.split()[:2] == [side, name] and "error" not in row}
    return max(mine.items(), key=lambda item: item[1]["sequences_per_second"], default=None)


def _made(row: dict) -> str:
    """When, and by which code."""
    said = [row[what] if what == "date" else f"code {row[what]}" for what in ("date", "code") if row.get(what)]
    return ", ".join(said) or f"date and code {provenance.NOT_RECORDED}"


def _attention(file: Path) -> str:
    """Attention alone, where it was measured on that device."""
    if not file.exists():
        return ""
    record = json.loads(file.read_text())
    columns = ("xla", "fused", "xla no dropout", "fused no dropout", "cudnn no dropout")
    lines = ["| | xla | fused | xla, no dropout | fused, no dropout | cuDNN, no dropout |", "|---" * 6 + "|"]
    for size, parts in record["milliseconds"].items():
        for part, times in parts.items():
            lines.append(f"| {size}, {part} | " + " | ".join(
                f"{times[column]:.2f}" if isinstance(times[column], float) else "-" for column in columns) + " |")
    return f"""
### Attention alone, {record["device"]}

Milliseconds, heads of width 64, bf16, the second half of a row padded at random (`benchmarks/attention.py`,
[all figures](../../benchmarks/results/{file.name}); block sizes at 128 tokens were changed afterwards by this sweep).

{chr(10).join(lines)}
"""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file, extended if it is there")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES | TRIAL)}; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=540, help="after which all has ended; default: %(default)s")
    parser.add_argument("--profile", action="store_true", help="trace three updates of ours and list their kernels")
    parser.add_argument("--changes", type=json.loads, default=OURS, help="JSON: fields of our encoder")
    parser.add_argument("--render", action="store_true", help="only write the page")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, name, rows = arguments.one.split()
        print(json.dumps(one(side, name, int(rows), arguments.changes, arguments.profile)))
    elif arguments.render:
        render(sorted(RESULTS.parent.glob("gpu_*.json")))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the contestant ends, too
        names = chosen(arguments.cases, CASES | TRIAL)
        if left_out := run(arguments.out.resolve(), names, arguments.profile, arguments.changes, arguments.seconds):
            print(f"left out, the same command continues: {', '.join(left_out)}")
            sys.exit(CONTINUES)


if __name__ == "__main__":
    main()
