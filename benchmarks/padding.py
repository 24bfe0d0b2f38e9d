"""How much of what the device computes in fine-tuning is padding, and for how many lengths its step is compiled.

    python benchmarks/padding.py --data DIR --weights DIR      # half a minute; writes docs/results/padding.md

`--data` is the folder of real data (its README says what is in it), `--weights` one with the Hugging Face directories
all-MiniLM-L6-v2 and rxnfp-pretrained, of which only the tokenizers are used: rxnfp's vocabulary as its SMILES tokenizer reads
it. What is counted are the attention masks of the
batches that training and evaluation are given: of the second epoch, as the lengths are chosen by the first.
"""

import argparse
import functools
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
from bert_jax.tasks.columns import Columns, conllu, wikiann  # noqa: E402
from bert_jax.tasks.datasets import Named  # noqa: E402
from bert_jax.tasks.shared_rows import SharedRows, batches_for_training  # noqa: E402
from bert_jax.tasks.tables import Table  # noqa: E402
from bert_jax.tasks.tagging import Tags  # noqa: E402

PAGE = ROOT / "docs" / "results" / "padding.md"
BATCHES = (16, 32)
MINILM, RXNFP = "all-MiniLM-L6-v2", "rxnfp-pretrained"


def sources(data: Path) -> dict[str, tuple]:
    """Tokenizer, longest sequence, what to train and to evaluate on."""
    glue = {name: (MINILM, 128, *(Named(f"glue/{name}", split, str(data / "glue" / name)) for split in ("train", "validation")))
            for name in ("sst2", "mrpc", "cola", "rte")}
    stsb = [Table(str(data / "sts" / "stsb" / f"stsb-en-{split}.csv"), ("0", "1"), "2") for split in ("train", "dev")]
    suzuki = str(data / "chem" / "suzuki_random_split_0.tsv")
    yields = [Table(suzuki, ("rxn",), "y", rows) for rows in ((0, 4032), (4032, 5760))]
    ner = [wikiann(str(data / "ner" / "wikiann" / "de" / split), "de") for split in ("train", "dev")]
    ewt = [conllu(str(data / "syntax" / "ewt" / f"en_ewt-ud-{split}.conllu")) for split in ("train", "dev")]
    return glue | {
        "stsb": (MINILM, 128, *stsb), "WikiANN de": (MINILM, 128, *ner), "UD EWT": (MINILM, 128, *ewt),
        "Suzuki yields": (RXNFP, 300, *yields),
    }


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


def unsorted(sizes: np.ndarray, batch_size: int) -> float:
    """The same of batches in random order, each padded to its own longest example."""
    order = np.random.default_rng(0).permutation(len(sizes))[: len(sizes) // batch_size * batch_size]
    chosen = sizes[order].reshape(-1, batch_size)
    return 1 - chosen.sum() / (chosen.max(axis=1).sum() * batch_size)


def measure(name: str, train: Encoded, heldout: Encoded, longest: int, batch_size: int) -> str:
    """A row of the table."""
    sizes = np.array([len(ids) for ids in train.tokens["input_ids"]])
    batches = TrainBatches(train, (longest,), batch_size, None, 0, 0, Finetuning.shapes)
    epoch = len(sizes) // batch_size
    batches.set_state({"examples": epoch * batch_size})
    shared = SharedRows(train, batch_size, None, 0, 0)
    taken = batches_for_training(train, batch_size, None, 0, 0, longest, Finetuning.shapes)
    shared.set_state({"examples": epoch * batch_size})
    made = [batch["attention_mask"] for batch in itertools.islice(shared, epoch)]
    share = padding({"attention_mask": mask} for mask in made)
    shapes = sorted({mask.shape for mask in made})
    held = EvalBatches(heldout, (longest,), batch_size, None, 0, None, Finetuning.shapes)
    columns = [f"{share:.1%}", ", ".join(f"{rows} x {length}" for rows, length in shapes)]
    columns += [f"{one:.1%}" for one in (1 - sizes.mean() / longest, unsorted(sizes, batch_size))]
    columns += [f"{padding(itertools.islice(batches, epoch)):.1%}", f"{padding(held):.1%}"]
    column = 0 if isinstance(taken, SharedRows) else 4
    columns[column] = f"**{columns[column]}**"
    lengths = ", ".join(map(str, batches.lengths))
    return " | ".join([f"| {name}", f"{sizes.mean():.1f}", str(batch_size), *columns, str(len(batches.lengths)),
                       str(len(held.lengths)), f"{lengths} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    arguments = parser.parse_args()
    logging.getLogger("bert_jax").setLevel(logging.ERROR)
    rows = []
    for name, (folder, longest, *tables) in sources(arguments.data).items():
        tokenizer = tokenizer_of(arguments.weights / folder)
        tags = Tags(EncoderConfig(), tokenizer, longest)
        plain = functools.partial(encode, tokenizer, length=longest)
        train, heldout = ((tags.encode if isinstance(one, Columns) else plain)(one.read().texts) for one in tables)
        for batch_size in BATCHES:
            rows.append(measure(name, train, heldout, longest, batch_size))
            print(rows[-1], flush=True)
    PAGE.write_text(f"""# Padding in fine-tuning

What part of all positions is padding, with the tokenizers of all-MiniLM-L6-v2 and, for the Suzuki reactions, rxnfp; longest
sequence 128, of reactions 300. Target: below 10%. Regenerate with `python benchmarks/padding.py --data DIR --weights DIR`.

"All to the longest" pads every row as run_classifier.py of google-research/bert does; "unsorted" pads each batch of a random
order to its own longest row, which compiles a step for each length that occurs. "Shared" is the second epoch as this package
makes batches of sentences and pairs, to be tagged as well: examples share rows, of the shape or shapes beside it (rows x
tokens); a step is compiled for each. "By length" is the same with a row for each example (`task.packing=false`, and kinds
that cannot share), and "evaluation" the held-out set: stretches of up to {STRETCH} batches, {STRETCHES} or more to an epoch,
sorted by length, and the fewest lengths that do it, at most {Finetuning.shapes}, of evaluation one for every four batches. Bold
is what a run takes by default: shared rows, unless they need over a tenth more positions, as those of reactions do, of which
hardly two fit into one.
"Lengths" is their number in training, "its" in evaluation, whose padding includes the empty rows that fill a batch.

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
