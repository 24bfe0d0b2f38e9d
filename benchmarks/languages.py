"""Pre-training in four languages: what translations add (TLM), and what sampling languages by a power of their shares does.

    python benchmarks/languages.py run --data ../shared/data --dir runs/languages --jobs 2    # goes on where it was interrupted
    python benchmarks/languages.py report --dir runs/languages                              # docs/results/languages_cpu.md

A manual in English, German, Spanish and French (text/help-*.txt.gz), one document in twenty held out in all four, is prepared
as translations. A small encoder is pre-trained on it by masked language modelling alone, and by turns with translation
language modelling; and on a store in which each language has a quarter of the documents that the one before it has, with
languages in their shares and in powers of them. Each has three seeds. Measured, all on held-out documents:

- accuracy at 15% masking of text in each language;
- of pairs of translations; and of such rows when the lines of one side are moved by half a document, so that they are of
  one subject, but no translations;
- retrieval: whose vector, the mean of the last states, is nearest to that of an English line among 1,000 of another
  language; beside it the encoder before training, which knows shared pieces alone. The same with sentences of news
  and Wikipedia (syntax/pud).
"""

import argparse
import dataclasses
import gzip
import statistics
import subprocess
import sys
from pathlib import Path

import processes

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {"en": "en-us", "de": "de", "es": "es", "fr": "fr"}
SEEDS = (0, 1, 2)
RETRIEVED = 1_000
ROWS = {
    "mlm": "text alone (MLM)", "tlm": "text and translations by turns (MLM + TLM)",
    "as_they_are": "as they are", "power_0.7": "to the power 0.7 (mBERT)", "power_0.3": "to the power 0.3",
}

TRANSLATIONS, POWERS = tuple(ROWS)[:2], tuple(ROWS)[2:]  # the rows of each table


@dataclasses.dataclass(frozen=True)
class Size:
    """As in ``objectives.py``: layers, width D (heads D / 64, F = 4 D), V, L; updates, rows of an update, peak rate; and of
    how many documents one is taken."""

    layers: int
    width: int
    vocabulary: int
    length: int
    steps: int
    batch: int
    rate: float
    documents: int = 1


SIZES = {"cpu": Size(2, 128, 8192, 64, 1_000, 32, 2e-3), "test": Size(1, 64, 1024, 32, 8, 8, 1e-3, documents=20)}


def documents(data: Path) -> list[dict[str, list[str]]]:
    """The manual's documents in all languages, line by line translations of each other; those that are not are left out."""
    read: dict[str, dict[str, list[str]]] = {}
    for language, file in LANGUAGES.items():
        lines = read[language] = {}
        with gzip.open(data / f"text/help-{file}.txt.gz", "rt", encoding="utf-8") as text:
            for line in text:
                if line.startswith("# doc: "):
                    name = line.strip()
                    lines[name] = []
                elif line.strip():
                    lines[name].append(line.strip())
    every = ({language: read[language].get(name, []) for language in LANGUAGES} for name in read["en"])
    return [one for one in every if len({len(lines) for lines in one.values()}) == 1 and one["en"]]


def prepare(data: Path, directory: Path, size: Size) -> None:
    """A tokenizer, and the stores: ``even`` of translations, ``uneven``; held-out ``pairs``, ``moved``, and each language."""
    every = documents(data)[:: size.documents]
    heldout, training = every[::20], [one for number, one in enumerate(every) if number % 20]
    texts, command = directory / "texts", [sys.executable, "-m", "bert_jax"]

    def write(folder: str, which: dict[str, list[list[str]]]) -> list[str]:
        (texts / folder).mkdir(parents=True, exist_ok=True)
        for language, some in which.items():
            text = "\n\n".join("\n".join(lines) for lines in some)
            (texts / folder / f"{language}.txt").write_text(text + "\n", encoding="utf-8")
        return [f"{language}={texts / folder / language}.txt" for language in which]

    def of(some: list[dict[str, list[str]]]) -> dict[str, list[list[str]]]:
        return {language: [one[language] for one in some] for language in LANGUAGES}

    uneven = {language: [one[language] for one in training[:: 4**place]] for place, language in enumerate(LANGUAGES)}
    moved = of(heldout) | {language: [lines[len(lines) // 2 :] + lines[: len(lines) // 2] for lines in some]
                           for language, some in of(heldout).items() if language != "en"}
    sources = {"even": (of(training), ["--parallel", "--heldout", "0.01"]),
               "uneven": (uneven, ["--heldout", "0.01", "--sentences", "line"]),
               "pairs": ({name: of(heldout)[name] for name in LANGUAGES}, ["--parallel", "--heldout", "0"]),
               "moved": (moved, ["--parallel", "--heldout", "0"])}
    sources |= {language: ({language: of(heldout)[language]}, ["--heldout", "0", "--sentences", "line"])
                for language in LANGUAGES}
    tokenizer = directory / "tokenizer"
    for name, (which, options) in sources.items():
        if (directory / name).exists():
            continue
        files = write(name, which)
        if not tokenizer.exists():  # of as much text in every language
            subprocess.run([*command, "tokenizer", *files, "--vocab-size", str(size.vocabulary), "--out", tokenizer],
                           check=True, cwd=ROOT)
        subprocess.run([*command, "prepare", *files, *options, "--tokenizer", tokenizer, "--out", directory / name],
                       check=True, cwd=ROOT)


def experiment(row: str, size: Size, seed: int):
    """The experiment of a row of the tables, and the name of its store."""
    from bert_jax.data.streams import Streams
    from bert_jax.data.translations import Translations
    from bert_jax.models.config import EncoderConfig
    from bert_jax.objectives import MaskedLM
    from bert_jax.objectives.pretraining import Pretraining, Turn
    from bert_jax.training.experiment import Experiment, TrainConfig
    from bert_jax.training.optimizer import AdamW

    encoder = EncoderConfig(
        vocab_size=size.vocabulary, embedding_width=size.width, hidden_width=size.width, layers=size.layers,
        heads=size.width // 64, ffn_width=4 * size.width, max_length=size.length, dropout=0.0, attention_dropout=0.0,
        positions="relative", with_heads=("mlm",),
    )
    power = float(row.removeprefix("power_")) if row.startswith("power_") else None
    turn = Turn("tlm", (MaskedLM(),), Translations(size.length, language_segments=False), share=0.5)
    task = Pretraining(
        encoder, (MaskedLM(),), Streams(length=size.length, unit="token", language_exponent=power),
        (turn,) if row == "tlm" else (),
    )
    optimizer = AdamW(learning_rate=size.rate, warmup_steps=max(1, size.steps // 15), beta2=0.98, bias_correction=True)
    settings = TrainConfig(
        steps=size.steps, batch_size=size.batch, eval_every=size.steps, save_every=max(1, size.steps // 4), log_every=50,
        eval_batches=20, keep=1, seed=seed,
    )
    return Experiment(task, optimizer, settings), "even" if row in TRANSLATIONS else "uneven"


def lines_of_the_manual(data: Path, documents_of: int) -> dict[str, list[str]]:
    """Held-out lines of five words or more, different in every language, and their translations."""
    lines: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    seen: dict[str, set[str]] = {language: set() for language in LANGUAGES}
    for one in documents(data)[::documents_of][::20]:
        for group in zip(*(one[language] for language in LANGUAGES), strict=True):
            known = any(text in seen[language] for language, text in zip(LANGUAGES, group, strict=True))
            if len(group[0].split()) >= 5 and not known and len(lines["en"]) < RETRIEVED:
                for language, text in zip(LANGUAGES, group, strict=True):
                    lines[language].append(text)
                    seen[language].add(text)
    return lines


def sentences_of_pud(data: Path) -> dict[str, list[str]]:
    """PUD's 1,000 sentences and their translations, in the order of their numbers."""
    found = {}
    for language in LANGUAGES:
        text = (data / f"syntax/pud/{language}_pud-ud-test.conllu").read_text(encoding="utf-8").splitlines()
        names = [line.removeprefix("# sent_id = ") for line in text if line.startswith("# sent_id = ")]
        texts = [line.removeprefix("# text = ") for line in text if line.startswith("# text = ")]
        found[language] = [text for _, text in sorted(zip(names, texts, strict=True))]
    return found


def measure(cell: str, setting: processes.Setting) -> None:
    """Pre-trains one row with one seed, measures it, and keeps what was found."""
    import jax
    import numpy as np

    from bert_jax.data.loader import heldout_batches
    from bert_jax.data.store import TokenStore
    from bert_jax.data.streams import Streams
    from bert_jax.data.translations import Translations
    from bert_jax.embedding.sentence import embed
    from bert_jax.embedding.settings import SentenceSettings
    from bert_jax.model import load
    from bert_jax.models import api
    from bert_jax.objectives import MaskedLM
    from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
    from bert_jax.parallel.mesh import MeshConfig, make_mesh
    from bert_jax.training.evaluation import evaluate
    from bert_jax.training.pretrain import pretrain
    from bert_jax.training.step import make_eval_step

    size, data, directory, _ = setting
    path = directory / f"{cell}.json"
    if processes.found(path, dataclasses.asdict(size)):
        return
    row, seed = cell.rsplit("-", 1)
    value, store = experiment(row, size, int(seed))
    if not pretrain(value, directory / store, directory / "runs" / cell).finished:
        sys.exit(processes.CONTINUES)
    model = load(directory / "runs" / cell)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    text, pairs = Streams(length=size.length, unit="token"), Translations(size.length, language_segments=False)
    accuracy = {}
    with jax.set_mesh(mesh):
        for name in (*LANGUAGES, "pairs", "moved"):
            examples = text if name in LANGUAGES else pairs
            task = PretrainingTask(Pretraining(model.config, (MaskedLM(),), examples), None)
            batches = heldout_batches(TokenStore(directory / name, verify=False).split("train"), examples, batch_size=64,
                                      limit=2_048)
            accuracy[name] = evaluate(task, make_eval_step(task, mesh), model.params, mesh, batches)["mlm_accuracy"]

    def nearest(params, texts: dict[str, list[str]]) -> dict[str, float]:
        """The share of English texts whose translation is the nearest."""
        settings = SentenceSettings(pooling=("mean",), normalize=True, max_length=size.length)
        vectors = {language: embed(params, model.config, model.tokenizer, settings, some, progress=False)
                   for language, some in texts.items()}
        return {language: float(((vectors["en"] @ vectors[language].T).argmax(1) == np.arange(len(texts["en"]))).mean())
                for language in LANGUAGES if language != "en"}

    retrieval = {}
    before = api.init(model.config, jax.random.key(int(seed)))
    read = {"manual": lines_of_the_manual(data, size.documents), "pud": sentences_of_pud(data)}
    for name, texts in read.items() if row in TRANSLATIONS else ():
        retrieval[name] = {"of": len(texts["en"]), "before": nearest(before, texts), "after": nearest(model.params, texts)}
    split = TokenStore(directory / store, verify=False).split("train")
    tokens = np.bincount(np.asarray(split.document_language), weights=np.diff(split.documents), minlength=len(LANGUAGES))
    found = {
        "machine": processes.machine("jax", "jaxlib", "flax", "optax", "numpy"), "size": dataclasses.asdict(size),
        "accuracy": accuracy, "retrieval": retrieval, "tokens": dict(zip(split.languages, tokens.tolist(), strict=True)),
    }
    processes.keep(path, found)


def stages(setting: processes.Setting, arguments: argparse.Namespace) -> list[processes.Stage]:
    """Every row and seed in a process of its own."""
    prepare(setting.data, setting.directory, setting.size)
    return [processes.Stage(arguments.jobs, [[f"{row}-{seed}"] for seed in SEEDS for row in ROWS])]


def report(directory: Path) -> None:
    """Gathers what is there, writes the JSON file and the page."""
    size_name, rows = processes.gathered(directory, SIZES)
    size = SIZES[size_name]
    results, page = processes.published("languages", size_name, directory)

    def cells(row: str) -> list[dict]:
        return [rows[name] for name in sorted(rows) if name.rsplit("-", 1)[0] == row]

    def spread(values: list[float]) -> str:
        return f"{100 * statistics.mean(values):.1f}" + (f" ± {100 * statistics.stdev(values):.1f}" if values[1:] else "")

    def line(name: str, *columns: list[float]) -> str:
        return "| " + " | ".join([name, *map(spread, columns)]) + " |"

    def accuracy(row: str, *names: str) -> list[list[float]]:
        return [[cell["accuracy"][name] for cell in cells(row)] for name in names]

    def retrieval(row: str, when: str) -> list[list[float]]:
        return [[cell["retrieval"][text][when][name] for cell in cells(row)] for text in ("manual", "pud")
                for name in LANGUAGES if name != "en"]

    others = [name for name in LANGUAGES if name != "en"]
    translations = [row for row in TRANSLATIONS if cells(row)]
    powers = [row for row in POWERS if cells(row)]
    lines = []
    if translations:
        of = cells(translations[0])[0]["retrieval"]
        lines += [
            "## Translations", "",
            "| | " + " | ".join(LANGUAGES) + " | pairs | pairs, moved | difference |", "|---" * (len(LANGUAGES) + 4) + "|",
            *(line(ROWS[row], *accuracy(row, *LANGUAGES, "pairs", "moved"),
                   [a - b for a, b in zip(*accuracy(row, "pairs", "moved"), strict=True)]) for row in translations), "",
            f"Nearest to the English one, of {of['manual']['of']:,} lines of the manual and {of['pud']['of']:,} of PUD:", "",
            "| | " + " | ".join([*others, *(f"PUD {name}" for name in others)]) + " |", "|---" * (2 * len(others) + 1) + "|",
            line("before training", *retrieval(translations[0], "before")),
            *(line(ROWS[row], *retrieval(row, "after")) for row in translations), "",
        ]
    if powers:
        tokens = cells(powers[0])[0]["tokens"]
        lines += ["## Shares of languages", "",
                  "| languages | " + " | ".join(f"{name}, share | {name}" for name in LANGUAGES) + " | mean |",
                  "|---" * (2 * len(LANGUAGES) + 2) + "|"]
        for row in powers:
            power = 1.0 if row == "as_they_are" else float(row.removeprefix("power_"))
            weights = {name: tokens[name] ** power for name in LANGUAGES}
            columns = accuracy(row, *LANGUAGES)
            both = " | ".join(f"{weights[name] / sum(weights.values()):.3f} | {spread(column)}"
                              for name, column in zip(LANGUAGES, columns, strict=True))
            mean = spread([statistics.mean(one) for one in zip(*columns, strict=True)])
            lines.append(f"| {ROWS[row]} | {both} | {mean} |")
    missing = [f"{row}-{seed}" for row in ROWS for seed in SEEDS if f"{row}-{seed}" not in rows]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    processes.publish(results, page, rows, INTRODUCTION.format(
        size=size, seeds=len(SEEDS), tables="\n".join(lines).rstrip(), machine=processes.machines(list(rows.values())),
        size_name=size_name,
    ))


INTRODUCTION = """# Several languages

The same encoder ({size.layers} layers, D {size.width}, V {size.vocabulary:,} shared by all languages, relative positions,
nothing that tells it the language), {size.steps:,} updates of {size.batch} rows of {size.length} tokens, AdamW with peak
rate {size.rate:g}, no dropout. Text: a software manual in English, German, Spanish and French, one document in twenty held
out. Everything but shares is in percent, mean and standard deviation over {seeds} seeds of the whole run.

- `en` to `fr`: held-out accuracy of MLM at 15%, 80/10/10, on text in that language.
- `pairs`: the same on rows that hold lines and their translations; `pairs, moved`: one side's lines moved by half a document,
  so that it is about the same things and translates nothing. These are other rows, and easier ones: how much, is seen in the
  `difference` of the model that has only met single texts. What the other model's difference is above that, translations give.
- Nearest: the translation has the nearest vector (mean of the last states, cosine) among all candidates of its language.

{tables}

Machine: {machine}.

```
python benchmarks/languages.py run --data ../shared/data --dir runs/languages --size {size_name} --jobs 2
python benchmarks/languages.py report --dir runs/languages
```
"""


BENCHMARK = processes.Benchmark("languages", __doc__, SIZES, "text/ and syntax/", stages, measure, report)

if __name__ == "__main__":
    processes.main(BENCHMARK)
