"""Every pre-training objective side by side: the same small encoder, data, steps and seeds; held-out MLM, probes, fine-tuning.

    python benchmarks/objectives.py run --data ../shared/data --dir runs/objectives     # goes on where it was interrupted
    python benchmarks/objectives.py run --data ../shared/data --dir runs/objectives --only bert,albert --jobs 2
    python benchmarks/objectives.py run --data ../shared/data --dir runs/objectives --size gpu --jobs 10 --deadline 540
    python benchmarks/objectives.py run --data ../shared/data --dir runs/objectives --published    # what is published stays
    python benchmarks/objectives.py report --dir runs/objectives                        # docs/results/objectives_cpu.md

Each recipe is pre-trained once on public-domain books (text/books.txt.gz) by the very command of a user, then

- its masked-language-model head, where it has one, is scored on held-out text with 15% of the pieces masked 80/10/10;
- its frozen encoder is probed for sentence order and next sentences: a logistic regression on the first token's final state;
- it is fine-tuned on SST-2, MRPC, CoLA, RTE and STS-B with three seeds each.

``--size gpu`` takes four layers of width 256 instead of what two cores can do in hours; there ``--jobs`` processes share the
accelerator. ``--deadline`` stops after so many seconds, everything saved.
"""

import argparse
import dataclasses
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import processes

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
PROBE_EXAMPLES, HELDOUT_EXAMPLES = 8192, 2048
FREQUENT = {"SST-2": 50.9, "MRPC": 81.8, "CoLA": 0.0, "RTE": 52.7}  # of always the most frequent label of training; tested


@dataclasses.dataclass(frozen=True)
class Size:
    """The encoder's layers, width D (heads D / 64, F = 4 D), V, L; updates, rows of an update, peak learning rates; dtype of
    products; lengths to which batches are padded in fine-tuning, each of which is a program; rows of SST-2, where not all;
    epochs of the other tasks; how positions are known: with absolute ones so small a model predicts no better after 8 million
    tokens than from the frequencies of pieces, with relative ones it does after 1 million."""

    layers: int
    width: int
    vocabulary: int
    length: int
    steps: int
    batch: int
    rate: float
    finetuning_rate: float
    dtype: str = "float32"
    lengths: tuple[int, ...] = ()
    sst2_rows: int | None = None
    epochs: int = 3
    positions: str = "absolute"


SIZES = {
    "cpu": Size(2, 128, 8192, 64, 2_000, 32, 2e-3, 2e-4, lengths=(16, 32, 64), sst2_rows=16_384, epochs=2,
                positions="relative"),
    "gpu": Size(4, 256, 8192, 128, 10_000, 64, 1e-3, 1e-4, "bfloat16", (32, 64, 128)),
    "test": Size(1, 64, 8192, 32, 8, 8, 1e-3, 2e-4, lengths=(32,), sst2_rows=64, positions="relative"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One row of the table.

    Attributes:
      group: the section of the table. what: the row's words.
      objectives, examples, turns: as in ``Pretraining``. encoder: fields that differ from the common one.
      compute_of: train for as many operations as this other recipe takes, instead of as many updates.
    """

    group: str
    what: str
    objectives: tuple
    examples: object
    turns: tuple = ()
    encoder: dict = dataclasses.field(default_factory=dict)
    compute_of: str | None = None


def recipes(size: Size) -> dict[str, Recipe]:
    """Every row, by name."""
    from bert_jax import objectives as o
    from bert_jax.data.pairs import PairSpec
    from bert_jax.data.reordered import Reordered
    from bert_jax.data.streams import Streams
    from bert_jax.objectives.pretraining import Turn

    def pairs(kind: str, **changes) -> PairSpec:
        return PairSpec(length=size.length, pairs=kind, **changes)

    alone, mlm = pairs("none"), o.MaskedLM()
    bare, discriminator = {"with_heads": ("pooler", "mlm")}, {"with_heads": ("pooler", "discriminator")}
    how, what, where, instead, sentences = "how to mask", "what to mask", "where", "instead of masking", "instead of NSP"
    return {
        "mlm": Recipe(how, "15% of pieces, 80/10/10", (mlm,), alone, encoder=bare),
        "mlm_40": Recipe(how, "40% of pieces", (o.MaskedLM(rate=0.4),), alone, encoder=bare),
        "falling": Recipe(how, "from 30% to 15%", (o.MaskedLM(rate=0.3, final_rate=0.15, rate_steps=size.steps),), alone,
                          encoder=bare),
        "all_mask": Recipe(how, "always [MASK]", (o.MaskedLM(mask=1.0, random=0.0),), alone, encoder=bare),
        "unknown": Recipe(how, "[UNK] instead of [MASK]", (o.MaskedLM(mask=0.0, unknown=0.8),), alone, encoder=bare),
        "static": Recipe(how, "static, a single copy", (mlm,), pairs("none", copies=1), encoder=bare),
        "word": Recipe(what, "whole words", (o.MaskedLM(unit="word"),), alone, encoder=bare),
        "ngram": Recipe(what, "n-grams (ALBERT)", (o.MaskedLM(unit="word", max_ngram=3),), alone, encoder=bare),
        "span": Recipe(what, "spans (SpanBERT)", (o.MaskedLM(unit="span", replace="unit"),), alone, encoder=bare),
        "spanbert": Recipe(what, "spans + boundary objective (SpanBERT)",
                           (o.MaskedLM(unit="span", replace="unit"), o.SpanBoundary()), alone, encoder=bare),
        "phrase": Recipe(what, "phrases by PMI", (o.MaskedLM(unit="phrase"),), alone, encoder=bare),
        "full": Recipe(where, "full sentences (RoBERTa)", (mlm,), Streams(length=size.length), encoder=bare),
        "tokens": Recipe(where, "arbitrary streams (XLM)", (mlm,), Streams(length=size.length, unit="token"), encoder=bare),
        "pmlm": Recipe(where, "pseudo-masked, partially autoregressive (UniLMv2)", (o.PseudoMasked(),), alone, encoder=bare),
        "electra": Recipe(instead, "replaced tokens (ELECTRA)", (o.ReplacedTokens(),), alone, encoder=discriminator),
        "electra_drawn_again": Recipe(instead, "ELECTRA, positions may repeat (its code)", (o.ReplacedTokens(compat=True),),
                                      alone, encoder=discriminator),
        "mlm_as_electra": Recipe(instead, "MLM for as many operations as ELECTRA", (mlm,), alone, encoder=bare,
                                 compute_of="electra"),
        "plm": Recipe(instead, "permutations, positions absolute", (o.PermutationLM(),), alone,
                      encoder=bare | {"positions": "absolute"}),
        "xlnet": Recipe(instead, "permutations (XLNet)", (o.PermutationLM(),), alone,
                        encoder=bare | {"positions": "relative"}),
        "bart": Recipe(instead, "infilling + sentence permutation (BART)", (o.Denoising(decoder_layers=size.layers),), alone,
                       encoder={"with_heads": ("pooler",)}),
        "deletion": Recipe(instead, "token deletion (BART)",
                           (o.Denoising(permute=False, infill=0.0, delete=0.15, decoder_layers=size.layers),), alone,
                           encoder={"with_heads": ("pooler",)}),
        "bert": Recipe(sentences, "MLM + NSP (BERT)", (mlm, o.NextSentence()), pairs("nsp")),
        "albert": Recipe(sentences, "MLM + SOP (ALBERT's)", (mlm, o.SentenceOrder()), pairs("sop")),
        "structbert": Recipe(sentences, "MLM + three-way + word order (StructBERT)", (mlm, o.Structural(), o.WordOrder()),
                             pairs("structural"), encoder=bare),
        "word_order": Recipe(sentences, "MLM + word order", (mlm, o.WordOrder()), alone, encoder=bare),
        "reordering": Recipe(sentences, "MLM + sentence reordering (ERNIE 2.0)", (mlm, o.Reordering()),
                             Reordered(length=size.length), encoder=bare),
        "distance": Recipe(sentences, "MLM + sentence distance (ERNIE 2.0)", (mlm, o.Distance()), pairs("distance"),
                           encoder=bare),
        "capitals": Recipe(sentences, "MLM + capitalisation (ERNIE 2.0)", (mlm, o.Capitalisation()), alone, encoder=bare),
        "relation": Recipe(sentences, "MLM + token-document relation (ERNIE 2.0)", (mlm, o.TokenDocument()), alone,
                           encoder=bare),
        "turns": Recipe(sentences, "MLM + NSP, MLM + reordering by turns", (mlm, o.NextSentence()), pairs("nsp"), turns=(
            Turn("order", (mlm, o.Reordering()), Reordered(length=size.length)),
        )),
    }


def experiment(name: str, size: Size, recipe_of: dict[str, Recipe]):
    """The experiment of a recipe."""
    from bert_jax.models.config import EncoderConfig
    from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
    from bert_jax.planning.flops import task_work
    from bert_jax.training.experiment import Experiment, TrainConfig
    from bert_jax.training.optimizer import AdamW

    def task(recipe: Recipe) -> Pretraining:
        encoder = EncoderConfig(
            vocab_size=size.vocabulary, embedding_width=size.width, hidden_width=size.width, layers=size.layers,
            heads=size.width // 64, ffn_width=4 * size.width, max_length=size.length, dropout=0.0, attention_dropout=0.0,
            compute_dtype=size.dtype, positions=size.positions,
        )
        return Pretraining(
            dataclasses.replace(encoder, **recipe.encoder), recipe.objectives, recipe.examples, recipe.turns
        )

    recipe, steps = recipe_of[name], size.steps
    if recipe.compute_of:
        other, own = (task_work(PretrainingTask(task(r), None)).useful for r in (recipe_of[recipe.compute_of], recipe))
        steps = round(steps * other / own)
    return Experiment(
        task(recipe),
        AdamW(learning_rate=size.rate, warmup_steps=max(1, steps // 15), beta2=0.98, bias_correction=True),
        TrainConfig(
            steps=steps, batch_size=size.batch, eval_every=max(1, steps // 5), save_every=max(500, steps // 5), log_every=50,
            eval_batches=20,
        ),
    )


def glue(data: Path, directory: Path, sst2_rows: int | None = None) -> dict[str, tuple]:
    """Task -> (training table, of SST-2 the first ``sst2_rows``, held-out table, labels, score)."""
    from bert_jax.tasks.tables import Table

    folder, joined = data / "glue", directory / "cola-dev.tsv"
    if not joined.exists():  # GLUE's development set is both
        parts = (folder / "cola/raw" / f"{kind}_domain_dev.tsv" for kind in ("in", "out_of"))
        joined.write_text("".join(part.read_text(encoding="utf-8").rstrip("\n") + "\n" for part in parts), encoding="utf-8")

    def tables(train: Path, dev: Path, texts: tuple[str, ...], label: str) -> tuple[Table, Table]:
        return Table(str(train), texts, label), Table(str(dev), texts, label)

    sentences, heldout = tables(folder / "sst2/train.tsv", folder / "sst2/dev.tsv", ("sentence",), "label")
    sentences = dataclasses.replace(sentences, rows=(0, sst2_rows) if sst2_rows else ())
    return {
        "SST-2": (sentences, heldout, ("0", "1"), "accuracy"),
        "MRPC": (*tables(folder / "mrpc/msr-para-train.tsv", folder / "mrpc/msr-para-val.tsv", ("#1 String", "#2 String"),
                         "Quality"), ("0", "1"), "f1"),
        "CoLA": (*tables(folder / "cola/raw/in_domain_train.tsv", joined, ("3",), "1"), ("0", "1"), "matthews"),
        "RTE": (*tables(folder / "rte/train.tsv", folder / "rte/dev.tsv", ("sentence1", "sentence2"), "label"),
                ("not_entailment", "entailment"), "accuracy"),
        "STS-B": (*tables(data / "sts/stsb/stsb-en-train.csv", data / "sts/stsb/stsb-en-dev.csv", ("0", "1"), "2"),
                  ("similarity",), "spearman"),
    }


def measure(name: str, setting: processes.Setting) -> None:
    """Everything of one recipe that is not in its JSON file yet."""
    from bert_jax.objectives.pretraining import PretrainingTask
    from bert_jax.planning.flops import task_work
    from bert_jax.training.pretrain import pretrain
    from bert_jax.training.record import read

    size, data, directory, _ = setting
    value, run, path = experiment(name, size, recipes(size)), directory / name, directory / f"{name}.json"
    found = processes.found(path, dataclasses.asdict(size))

    def keep(**more) -> None:
        found.update(more)
        processes.keep(path, found)

    if "operations" not in found:
        before, started = time.process_time(), time.monotonic()
        result = pretrain(value, directory / "store", run)
        if not result.finished:
            sys.exit(processes.CONTINUES)
        work = task_work(PretrainingTask(value.task, None))
        speeds = [row["sequences_per_second"] for row in read(run / "metrics.jsonl") if "sequences_per_second" in row]
        keep(
            machine=processes.machine("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn"),
            size=dataclasses.asdict(size), steps=value.train.steps, operations=work.useful * size.batch * value.train.steps,
            cpu_seconds=time.process_time() - before,
            wall_seconds=time.monotonic() - started,
            sequences_per_second=statistics.median(speeds) if speeds else None,
            last={k: v for k, v in result.evaluation.items()},
        )
    measure_heldout(value, directory, run, size, found, keep)
    finetune_all(data, directory, run, size, found, keep)


def measure_heldout(value, directory: Path, run: Path, size: Size, found: dict, keep) -> None:
    """Held-out MLM at 15%, and probes of the frozen encoder."""
    import jax
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from bert_jax.data.loader import heldout_batches, train_batches
    from bert_jax.data.pairs import LABELS, PairSpec
    from bert_jax.data.store import TokenStore
    from bert_jax.model import load
    from bert_jax.models import api
    from bert_jax.objectives import MaskedLM
    from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
    from bert_jax.parallel.mesh import MeshConfig, make_mesh
    from bert_jax.training.evaluation import evaluate
    from bert_jax.training.step import make_eval_step

    store, model = TokenStore(directory / "store", verify=False), load(run)
    if "mlm" not in found:
        scores = {}
        head = model if "mlm" in model.config.with_heads else None
        if head is None and any(objective.name == "rtd" for objective in value.task.objectives):
            head = load(f"{run}#generator")
            scores["of"] = "generator"
        if head is not None:
            task = PretrainingTask(Pretraining(head.config, (MaskedLM(),), PairSpec(size.length, "none")), store)
            mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
            with jax.set_mesh(mesh):
                scores |= evaluate(task, make_eval_step(task, mesh), head.params, mesh, task.eval_batches(64, 40))
        keep(mlm=scores)
    probe = {}
    for pairs in ("nsp", "sop"):
        if "probe" in found:
            break
        spec, label = PairSpec(size.length, pairs), LABELS[pairs]
        features = jax.jit(lambda params, batch: api.apply(params, model.config, batch).hidden[:, 0])
        heads = jax.jit(lambda params, batch: api.apply(params, model.config, batch).logits["pair"])
        sides = []
        training = train_batches(store.split("train"), spec, batch_size=64, seed=7)
        some = [next(training) for _ in range(PROBE_EXAMPLES // 64)]
        rest = list(heldout_batches(store.split("heldout"), spec, batch_size=64, limit=HELDOUT_EXAMPLES))
        for batches in (some, rest):
            x = np.concatenate([np.asarray(features(model.params, batch)) for batch in batches])
            y = np.concatenate([batch[label] for batch in batches])
            sides.append((x[y >= 0], y[y >= 0]))
        # Balanced: a chunk of one sentence always gets a random next one, so the labels of NSP are not even.
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
        classifier.fit(*sides[0])
        probe[pairs] = float(balanced_accuracy_score(sides[1][1], classifier.predict(sides[1][0])))
        if "pair" in model.config.with_heads:  # its own head, as it is: 1 is "not what comes next" in both
            logits = np.concatenate([np.asarray(heads(model.params, batch)) for batch in rest])
            y = np.concatenate([batch[label] for batch in rest])
            probe[f"{pairs}_own_head"] = float(balanced_accuracy_score(y[y >= 0], logits.argmax(1)[y >= 0]))
    if probe:
        keep(probe=probe)


def finetune_all(data: Path, directory: Path, run: Path, size: Size, found: dict, keep) -> None:
    """Five tasks, three seeds each."""
    from bert_jax.model import load
    from bert_jax.tasks import Classification, Regression, finetuning_task
    from bert_jax.tasks.base import finetuned_encoder
    from bert_jax.training.experiment import Experiment, TrainConfig
    from bert_jax.training.optimizer import AdamW
    from bert_jax.training.train import train

    model = load(run)
    scores = found.get("glue", {})
    tasks = glue(data, directory, size.sst2_rows)
    first = list(recipes(size)).index(run.name) % len(tasks)  # recipes that begin together do not all compile the same
    for task in [*tasks, *tasks][first : first + len(tasks)]:
        training, heldout, labels, score = tasks[task]
        epochs = 1 if task == "SST-2" else size.epochs
        if len(scores.get(task, [])) == len(SEEDS):
            continue
        encoder = finetuned_encoder(model.config, labels, dropout=0.1, attention_dropout=0.1)
        if len(labels) == 1:
            config = Regression(encoder, str(run), training, heldout, size.lengths, offset=2.5, scale=1.5, packing=False)
        else:
            config = Classification(encoder, str(run), training, heldout, size.lengths, packing=False)  # as the first rows had
        steps = max(8, len(training.read().labels) * epochs // 32) if size is not SIZES["test"] else 8
        shared = finetuning_task(config, model)  # by the seeds, which find its texts read and its programs compiled
        for seed in SEEDS[len(scores.get(task, [])) :]:
            settings = TrainConfig(
                steps=steps, batch_size=32, eval_every=steps, save_every=steps, log_every=50, eval_batches=None, keep=1,
                seed=seed,
            )
            work = directory / "finetuning" / f"{run.name}-{task}-{seed}"
            optimizer = AdamW(learning_rate=size.finetuning_rate, warmup_steps=max(1, steps // 10), bias_correction=True)
            result = train(shared, Experiment(config, optimizer, settings), work)
            if not result.finished:
                sys.exit(processes.CONTINUES)
            shutil.rmtree(work)
            scores[task] = [*scores.get(task, []), result.evaluation[score]]
            keep(glue=scores)


def stages(setting: processes.Setting, arguments: argparse.Namespace) -> list[processes.Stage]:
    """Every recipe in a process of its own."""
    size, data, directory, _ = setting
    names = processes.chosen(arguments.only, recipes(size))
    command = [sys.executable, "-m", "bert_jax"]
    text, tokenizer, store = data / "text/books.txt.gz", directory / "tokenizer", directory / "store"
    if not tokenizer.exists():
        subprocess.run([*command, "tokenizer", text, "--documents", "formfeed", "--vocab-size", str(size.vocabulary),
                        "--out", tokenizer], check=True, cwd=ROOT)
    if not store.exists():
        subprocess.run([*command, "prepare", text, "--documents", "formfeed", "--heldout", "0.03", "--case", "--tokenizer",
                        tokenizer, "--out", store], check=True, cwd=ROOT)
        subprocess.run([*command, "annotate", store, "--phrases"], check=True, cwd=ROOT)
    return [processes.Stage(arguments.jobs, [[name] for name in names])]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="recipes, with commas between; default: all")


COLUMNS = ("SST-2", "MRPC", "CoLA", "RTE", "STS-B")


def whole(row: dict) -> bool:
    """Whether nothing of a recipe is left to measure: what is left would need the model, which is not published."""
    return all(len(row.get("glue", {}).get(task, ())) == len(SEEDS) for task in COLUMNS)


def report(directory: Path) -> None:
    """Gathers what is there, writes the JSON file, the page and its picture."""
    size_name, rows = processes.gathered(directory, SIZES)
    size = SIZES[size_name]
    results, page = processes.published("objectives", size_name, directory)
    known = recipes(size)
    rows = {name: rows[name] for name in known if name in rows}
    processes.check_nothing_lost(results, rows)
    machine = processes.machines(list(rows.values()))
    base = rows["mlm"]["operations"] if "mlm" in rows else None
    lines = []
    for group in dict.fromkeys(recipe.group for recipe in known.values()):
        names = [name for name in rows if known[name].group == group]
        if not names:
            continue
        lines += [f"## {group[0].upper()}{group[1:]}", "", "| | compute | MLM acc. | NSP probe | SOP probe | "
                  + " | ".join(COLUMNS) + " | mean |", "|---" * (6 + len(COLUMNS)) + "|"]
        lines += [_line(known[name].what, rows[name], base) for name in names] + [""]
    page.parent.mkdir(parents=True, exist_ok=True)
    _draw({name: rows[name] for name in rows if rows[name].get("glue")}, known, page.with_suffix(".png"))
    missing = [name for name in known if name not in rows]
    partial = [name for name in rows if not whole(rows[name])]
    processes.publish(results, page, rows, INTRODUCTION.format(
        size=size, sst2=f" ({size.sst2_rows:,} of its rows)" if size.sst2_rows else "", seeds=len(SEEDS), machine=machine,
        frequent=", ".join(f"{score:.1f} in {task}" for task, score in FREQUENT.items()),
        probes=f"{PROBE_EXAMPLES:,}", heldout=f"{HELDOUT_EXAMPLES:,}",
        missing="\n".join(
            [f"Not measured yet: {', '.join(missing)}."] * bool(missing)
            + [f"Fewer than {len(SEEDS)} seeds of fine-tuning, or none, in some column: {', '.join(partial)}."] * bool(partial)
        ), size_name=size_name, name=page.stem, tables="\n".join(lines), claims=_claims(rows),
    ))


def _line(what: str, row: dict, base: float | None) -> str:
    mlm, probe, glue = row.get("mlm", {}), row.get("probe", {}), row.get("glue", {})
    cells = [what, f"{row['operations'] / base:.2f}" if base else "-"]
    cells.append(f"{mlm['mlm_accuracy']:.3f}{' (generator)' if 'of' in mlm else ''}" if mlm else "-")
    cells += [f"{probe[name]:.3f}" if name in probe else "" for name in ("nsp", "sop")]
    cells += [_spread(glue.get(task, [])) for task in COLUMNS]
    return "| " + " | ".join([*cells, _spread(_means(glue))]) + " |"


def _means(glue: dict[str, list[float]]) -> list[float]:
    """The mean of the tasks for each seed; empty where a score is missing."""
    if any(len(glue.get(task, ())) < len(SEEDS) for task in COLUMNS):
        return []
    return [statistics.mean(scores) for scores in zip(*(glue[task] for task in COLUMNS), strict=True)]


def _spread(scores: list[float]) -> str:
    if not scores:
        return ""
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}" + (f" ({len(scores)})" if len(scores) < len(SEEDS) else "")


def _claims(rows: dict[str, dict]) -> str:
    """What the measurements say of two claims of the literature, in numbers."""
    text = []
    if all("probe" in rows.get(name, {}) for name in ("mlm", "bert", "albert")):
        text += [
            "**NSP against SOP** (ALBERT, table 5: trained with NSP 52.0% on sentence order; trained with SOP 86.5% on it and "
            "78.9% on NSP). Here, in percent:", "",
            "| pre-trained with | NSP, own head | SOP, own head | NSP, probe | SOP, probe |", "|---|---|---|---|---|",
        ]
        for name, what in (("mlm", "MLM alone"), ("bert", "MLM + NSP"), ("albert", "MLM + SOP")):
            probe = rows[name]["probe"]
            keys = ("nsp_own_head", "sop_own_head", "nsp", "sop")
            cells = [f"{100 * probe[key]:.1f}" if key in probe else "-" for key in keys]
            text.append(f"| {what} | " + " | ".join(cells) + " |")
        text.append("")
    compared = [rows.get(name, {}).get("glue", {}) for name in ("electra", "mlm_as_electra", "mlm")]
    if all(len(glue) == len(COLUMNS) for glue in compared):
        means = [_means(glue) for glue in compared]
        text += [
            "**ELECTRA against MLM at equal compute** (Clark et al. 2020: ELECTRA is better). Mean of the five tasks: ELECTRA "
            f"{_spread(means[0])}; MLM with as many operations {_spread(means[1])}; with as many updates {_spread(means[2])}.",
        ]
        last = rows["electra"]["last"]
        text += [
            f"In the end ELECTRA's discriminator finds {last['rtd_recall']:.1%} of the replaced tokens, which are "
            f"{last['rtd_replaced']:.1%} of all (held out)"
            + (": it has hardly begun to learn, and the comparison says nothing of runs in which it has." if
               last["rtd_recall"] < 0.1 else "."),
        ]
    return "\n".join(text)


def _draw(rows: dict[str, dict], known: dict[str, Recipe], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not rows:
        return
    figure, axes = pyplot.subplots(1, len(COLUMNS), figsize=(3 * len(COLUMNS), 1.2 + 0.28 * len(rows)), sharey=True)
    places = range(len(rows))
    for panel, task in zip(axes, COLUMNS, strict=True):
        for place, row in zip(places, rows.values(), strict=True):
            scores = [100 * score for score in row["glue"].get(task, ())]
            panel.plot(scores, [place] * len(scores), "o", color="C0", alpha=0.4, markersize=4)
            if scores:
                panel.plot(statistics.mean(scores), place, "|", color="C1", markersize=14, markeredgewidth=2)
        panel.set(title=task)
        panel.grid(alpha=0.3)
    axes[0].set_yticks(list(places), [known[name].what for name in rows])
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)


INTRODUCTION = """# Pre-training objectives side by side

The same encoder ({size.layers} layers, D {size.width}, F {size.width}x4, V {size.vocabulary:,}), data (109 public-domain
books, 3% held out), updates ({size.steps:,} of {size.batch} rows of {size.length} tokens, AdamW with bias
correction and beta2 0.98, peak rate {size.rate:g}, no dropout, products in {size.dtype}) and seed (0) for every row; positions
are {size.positions} where a row says nothing else.

- `compute`: products of matrices of the whole pre-training, generators and decoders included, relative to the first row.
- `MLM acc.`: held-out accuracy at 15% masking, 80/10/10, where the model has a masked-language-model head; a model of
  permutations has one, but has never read a [MASK].
- `NSP probe`, `SOP probe`: a logistic regression on the frozen encoder's first state, {probes} examples, balanced accuracy
  on {heldout} held-out ones; chance is 0.5.
- The tasks, times 100: accuracy (SST-2, RTE), F1 (MRPC), Matthews correlation (CoLA, both development sets) and Spearman
  correlation (STS-B) on the development sets after fine-tuning: mean and standard deviation over {seeds} seeds of the
  fine-tuning (head, order, dropout 0.1); rate {size.finetuning_rate:g}, batch 32, one epoch of SST-2{sst2}
  and {size.epochs} of the others, the last parameters, nothing chosen by the development set. Who always gives the label that
  is most frequent in training has {frequent}: where a column does not leave
  that, nothing was learnt of the task, and its differences are noise.

One pre-training seed: differences between rows within a deviation or two say nothing. A deviation here is that of fine-tuning
seeds alone, in parentheses how many there are where they are not {seeds}.

![fine-tuning scores]({name}.png)

{tables}
{missing}

## Two claims

{claims}

Machine: {machine}.

```
python benchmarks/objectives.py run --data ../shared/data --dir runs/objectives --size {size_name}
python benchmarks/objectives.py report --dir runs/objectives
```
"""


BENCHMARK = processes.Benchmark(
    "objectives", __doc__, SIZES, "text/, glue/ and sts/", stages, measure, report, options, whole
)

if __name__ == "__main__":
    processes.main(BENCHMARK)
