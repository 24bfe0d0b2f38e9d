"""How much of what the device computes in fine-tuning is padding, and for how many lengths its step is compiled.

    python benchmarks/padding.py --data DIR --weights DIR      # a minute; writes docs/results/padding.md

`--data` is the folder of real data (its README says what is in it), `--weights` one with the Hugging Face directories
all-MiniLM-L6-v2 and rxnfp-pretrained, of which only the tokenizers are used: rxnfp's vocabulary as its SMILES tokenizer reads
it. What is counted are the attention masks of the
batches that training and evaluation are given: of the second epoch, as the lengths are chosen by the first.

The folder has no data set of choices. Two are made of what it has, in the forms of SWAG and RACE: a sentence with the one that
follows it and three others, and a paragraph with a question and four of the answers about it.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from yields import smiles_tokenizer  # noqa: E402

from bert_jax import tokenizers  # noqa: E402
from bert_jax.models.config import EncoderConfig  # noqa: E402
from bert_jax.tasks.base import Finetuning  # noqa: E402
from bert_jax.tasks.batches import STRETCH, STRETCHES, Encoded, EvalBatches, TrainBatches, encode  # noqa: E402
from bert_jax.tasks.choice import Chooses  # noqa: E402
from bert_jax.tasks.columns import Columns, conllu, wikiann  # noqa: E402
from bert_jax.tasks.datasets import Named  # noqa: E402
from bert_jax.tasks.question_answering import WINDOW, AnswersQuestions  # noqa: E402
from bert_jax.tasks.shared_rows import LONGEST, QUESTION, SharedRows, batches_for_training  # noqa: E402
from bert_jax.tasks.squad import Squad  # noqa: E402
from bert_jax.tasks.tables import Rows, Table  # noqa: E402
from bert_jax.tasks.tagging import Tags  # noqa: E402

PAGE = ROOT / "docs" / "results" / "padding.md"
BATCHES = (16, 32)
MINILM, RXNFP = "all-MiniLM-L6-v2", "rxnfp-pretrained"


@dataclasses.dataclass(frozen=True)
class Continuations:
    """Questions in SWAG's form: which of four sentences follows a first one."""

    source: Columns

    def read(self) -> Rows:
        sentences = [" ".join(words) for words in self.source.read().texts]
        others = np.random.default_rng(0).integers(0, len(sentences), (len(sentences), 3))
        pairs = itertools.pairwise(sentences)
        return Rows([(*pair, *(sentences[k] for k in row)) for pair, row in zip(pairs, others, strict=False)], [])


@dataclasses.dataclass(frozen=True)
class Options:
    """Questions in RACE's form: which of four answers, all about one paragraph, is that of a question."""

    source: Squad

    def read(self) -> Rows:
        rows, made = self.source.read(), []
        for context, numbers in itertools.groupby(range(len(rows.texts)), lambda k: rows.texts[k][1]):
            asked = [(rows.texts[k][0], rows.labels[k].answers[0].text) for k in numbers]
            answers = list(dict.fromkeys(answer for _, answer in asked))
            for question, answer in asked if len(answers) >= 4 else ():
                options = [answer, *[other for other in answers if other != answer][:3]]
                made.append((context, *(f"{question} {option}" for option in options)))
        return Rows(made, [])


def sources(data: Path) -> dict[str, tuple]:
    """Tokenizer, longest sequence, what to train and to evaluate on."""
    glue = {name: (MINILM, 128, *(Named(f"glue/{name}", split, str(data / "glue" / name)) for split in ("train", "validation")))
            for name in ("sst2", "mrpc", "cola", "rte")}
    stsb = [Table(str(data / "sts" / "stsb" / f"stsb-en-{split}.csv"), ("0", "1"), "2") for split in ("train", "dev")]
    suzuki = str(data / "chem" / "suzuki_random_split_0.tsv")
    yields = [Table(suzuki, ("rxn",), "y", rows) for rows in ((0, 4032), (4032, 5760))]
    ner = [wikiann(str(data / "ner" / "wikiann" / "de" / split), "de") for split in ("train", "dev")]
    ewt = [conllu(str(data / "syntax" / "ewt" / f"en_ewt-ud-{split}.conllu")) for split in ("train", "dev")]
    squad = [Squad(str(data / "qa" / "squad" / "dev-v1.1.json"), part) for part in ((0.0, 0.75), (0.75, 1.0))]
    return glue | {
        "stsb": (MINILM, 128, *stsb), "WikiANN de": (MINILM, 128, *ner), "UD EWT": (MINILM, 128, *ewt),
        "Suzuki yields": (RXNFP, 300, *yields), "SQuAD": (MINILM, WINDOW, *squad),
        "choices: sentences of UD EWT": (MINILM, 128, *map(Continuations, ewt)),
        "choices: answers of SQuAD": (MINILM, WINDOW, *map(Options, squad)),
    }


def encoded(source: object, tokenizer: tokenizers.Tokenizer, longest: int) -> Encoded:
    """What a kind of fine-tuning makes of its data."""
    kinds = {Columns: Tags, Squad: AnswersQuestions, Continuations: Chooses, Options: Chooses}
    kind = kinds.get(type(source))
    texts = source.read().texts
    return kind(EncoderConfig(), tokenizer, longest).encode(texts) if kind else encode(tokenizer, texts, longest)


def tokenizer_of(folder: Path) -> tokenizers.Tokenizer:
    """Of a Hugging Face directory; rxnfp's has a list of pieces alone, which look like those of word pieces."""
    if folder.name != RXNFP:
        return tokenizers.load(folder)
    content = smiles_tokenizer((folder / "vocab.txt").read_text(encoding="utf-8").split())
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "tokenizer.json").write_text(json.dumps(content))
        return tokenizers.load(made)


def padding(batches: Iterable[dict[str, np.ndarray]]) -> float:
    """Share of positions."""
    masks = [(batch["attention_mask"].sum(), batch["attention_mask"].size) for batch in batches]
    real, places = np.sum(masks, axis=0)
    return 1 - real / places


def unsorted(batches: TrainBatches) -> float:
    """The same of batches in random order, each padded to its own longest example."""
    size, count = batches.batch_size, len(batches.sizes)
    order = np.random.default_rng(0).permutation(count)[: count // size * size].reshape(-1, size)
    return 1 - batches.tokens[order].sum() / (batches.sizes[order].max(axis=1).sum() * size * choices_of(batches.data))


def choices_of(data: Encoded) -> int:
    """How many rows an example has side by side."""
    return int(np.prod(data.tokens["input_ids"][0].shape[:-1]))


def second_epoch(batches: TrainBatches) -> list[dict[str, np.ndarray]]:
    count = batches.epoch // batches.batch_size
    batches.set_state({"examples": count * batches.batch_size})
    return [{"attention_mask": batch["attention_mask"]} for batch in itertools.islice(batches, count)]


def measure(name: str, train: Encoded, heldout: Encoded, longest: int, batch_size: int, packs: bool) -> str:
    """A row of the table. ``packs``: whether the kind may share rows."""
    by_length = TrainBatches(train, (longest,), batch_size, None, 0, 0, Finetuning.shapes)
    held = EvalBatches(heldout, (longest,), batch_size, None, 0, None, Finetuning.shapes)
    tokens = by_length.tokens.mean() / choices_of(train)
    shared, shapes, column = "-", "-", 4
    if packs:
        made = second_epoch(SharedRows(train, batch_size, None, 0, 0))
        shared = f"{padding(made):.1%}"
        shapes = ", ".join(f"{rows} x {length}" for rows, length in sorted({mask["attention_mask"].shape for mask in made}))
        taken = batches_for_training(train, batch_size, None, 0, 0, longest, Finetuning.shapes)
        column = 0 if isinstance(taken, SharedRows) else 4
    columns = [shared, shapes, f"{1 - tokens / longest:.1%}", f"{unsorted(by_length):.1%}",
               f"{padding(second_epoch(by_length)):.1%}", f"{padding(held):.1%}"]
    columns[column] = f"**{columns[column]}**"
    lengths = ", ".join(map(str, by_length.lengths))
    return " | ".join([f"| {name}", f"{tokens:.1f}", str(batch_size), *columns, str(len(by_length.lengths)),
                       str(len(held.lengths)), f"{lengths} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    arguments = parser.parse_args()
    logging.getLogger("bert_jax").setLevel(logging.ERROR)
    rows = []
    for name, (folder, longest, *parts) in sources(arguments.data).items():
        tokenizer = tokenizer_of(arguments.weights / folder)
        train, heldout = (encoded(part, tokenizer, longest) for part in parts)
        for batch_size in BATCHES:
            rows.append(measure(name, train, heldout, longest, batch_size, not isinstance(parts[0], Squad)))
            print(rows[-1], flush=True)
    PAGE.write_text(f"""# Padding in fine-tuning

What part of all positions is padding, with the tokenizers of all-MiniLM-L6-v2 and, for the Suzuki reactions, rxnfp; longest
sequence 128, of reactions 300, with contexts {WINDOW}. Target: below 10%. Regenerate with `python benchmarks/padding.py --data
DIR --weights DIR`.

"All to the longest" pads every row as run_classifier.py of google-research/bert does; "unsorted" pads each batch of a random
order to its own longest row, which compiles a step for each length that occurs. "Shared" is the second epoch as this package
makes batches of sentences and pairs, to be tagged as well, and of questions with choices: examples share rows, of the shape or
shapes beside it (rows x tokens); a step is compiled for each. "By length" is
the same with a row for each example (`task.packing=false`, and windows of contexts), and "evaluation" the held-out set:
stretches of up to {STRETCH} batches, {STRETCHES} or more to an epoch, sorted by length, and the fewest lengths that do
it, at most {Finetuning.shapes}, of evaluation one for every four batches. Bold is what a run takes by default: shared rows,
unless they need over a tenth more positions, as those of reactions do, of which hardly two fit into one; unless over a tenth
of them is padding, and by length less; and unless the choices of a question have more than {QUESTION:,} tokens together, or
{LONGEST} on average.
"Lengths" is their number in training, "its" in evaluation, whose padding includes the empty rows that fill a batch.

Of choices "tokens a row" are those of one choice with its first text, and padding is also what a choice lacks beside the
longest of its question. The two data sets are made of others, in the forms of SWAG (a sentence, the one that follows it and
three others, which differ in length more than SWAG's do) and of RACE (a paragraph and a question, with four answers).

| data | tokens a row | batch | shared | in | to the longest | unsorted | by length | evaluation | lengths | its | which |
|---|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Multiples of 8 are taken where they do it, since TPUs are said to lay out arrays so (not measured here). They do not for
SST-2, CoLA and STS-B, whose rows of 11 to 28 tokens lose too much in rounding alone, so that other lengths are used there.
The length of the stretches, the goal of 9% and the 16 lengths were chosen by these same training sets: the table shows what
was chosen, not how it does on other data. That evaluation has fewer lengths rests on the assumption that to compile a step
costs as much as several batches.

Where runs are short, and compiling is most of their time, `--set task.shapes=4` trades padding for fewer lengths.
""")


if __name__ == "__main__":
    main()
