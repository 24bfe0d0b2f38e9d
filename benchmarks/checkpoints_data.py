"""What published checkpoints are measured on, and how: the same sentences, masks and scores for PyTorch and for JAX.

Everything here is numpy in and numpy out; who computes embeddings, logits or attentions hands them in. `data` is always the
folder of real data (see ../shared/data/README.md).
"""

import csv
import re
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from bert_jax.errors import BertJaxError

Pairs = list[tuple[str, str]]


# Sentence similarity


class Similarity(NamedTuple):
    """A published Spearman correlation: the model, the set it is measured on, what it states and how far off is the same."""

    model: str
    data: str
    published: float
    tolerance: float
    prompt: str = ""


# The figures of MTEB for all-MiniLM; it takes all 9,927 pairs of SICK, not the 4,927 of its test part (which give 0.7715).
SIMILARITIES = (
    Similarity("all-MiniLM-L6-v2", "stsb-en", 0.8203, 3e-4),
    Similarity("all-MiniLM-L6-v2", "sick", 0.7758, 3e-4),
    Similarity("all-MiniLM-L6-v2", "sts13", 0.8060, 3e-4),
    Similarity("all-MiniLM-L6-v2", "sts14", 0.7560, 3e-4),
    Similarity("all-MiniLM-L6-v2", "sts15", 0.8539, 3e-4),
    Similarity("paraphrase-MiniLM-L3-v2", "stsb-en", 0.8241, 3e-4),
    Similarity("multilingual-e5-small", "stsb-en", 0.840, 1e-3, "query: "),
    Similarity("multilingual-e5-small", "stsb-de", 0.789, 1e-3, "query: "),
    Similarity("multilingual-e5-small", "stsb-fr", 0.788, 1e-3, "query: "),
    Similarity("multilingual-e5-small", "stsb-es", 0.801, 1e-3, "query: "),
    Similarity("multilingual-e5-small", "stsb-zh", 0.783, 1e-3, "query: "),
)


def sts(name: str, data: Path) -> tuple[Pairs, Float[np.ndarray, " P"]]:
    """P pairs of sentences and how similar people found them, in the order of the files.

    Args:
      name: stsb-LANGUAGE (its test part), sick (training, trial and test part one after the other) or sts12 to sts15 (the test
        files of that year one after the other, in the order of their names; rows that nobody rated are left out).
    """
    folder = data / "sts"
    if name.startswith("stsb-"):
        with _open(folder / "stsb" / f"{name}-test.csv") as file:
            rows = [(first, second, score) for first, second, score in csv.reader(file)]
    elif name == "sick":
        rows = []
        for part in ("train", "trial", "test_annotated"):
            with _open(folder / "sick" / f"SICK_{part}.txt") as file:
                rows += [(row["sentence_A"], row["sentence_B"], row["relatedness_score"])
                         for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    elif re.fullmatch("sts1[2-5]", name):
        rows = []
        for path in sorted((folder / f"20{name[3:]}").glob("*.test.tsv")):
            with _open(path) as file:
                rows += [(row[1], row[2], row[0]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
                         if row[0].strip()]
    else:
        raise BertJaxError(f"no similarity data {name!r}: choose stsb-LANGUAGE, sick or sts12 to sts15")
    if not rows:
        raise BertJaxError(f"no similarity data {name!r} under {folder}")
    return [(first, second) for first, second, _ in rows], np.array([float(score) for *_, score in rows])


def spearman(encode: Callable[[list[str]], np.ndarray], pairs: Pairs, gold: np.ndarray, prompt: str = "") -> float:
    """Spearman correlation of cosine similarities with the gold scores.

    Args:
      encode: texts to embeddings [texts, D]. It gets every text once, with the prompt before it, short ones first.
    """
    from scipy.stats import spearmanr  # of the extra dev

    texts = sorted({prompt + text for pair in pairs for text in pair}, key=lambda text: (len(text), text))
    vectors = np.asarray(encode(texts), dtype=np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    row = {text: i for i, text in enumerate(texts)}
    first, second = (vectors[[row[prompt + pair[side]] for pair in pairs]] for side in (0, 1))
    return float(spearmanr((first * second).sum(axis=1), gold).statistic)


# Reactions

# The pieces of a reaction SMILES (Schwaller et al. 2018, as rxnfp has it; rxnmapper's lacks "|" and "%(123)", which occur in no
# reaction here): bracketed atoms, the organic subset, bonds, branches, rings, and what separates molecules.
_SMILES = re.compile(r"%\(\d{3}\)|\[[^\]]+]|Br?|Cl?|[NOSPFIbcnosp|().=#\-+\\/:~@?*$]|>>?|%\d{2}|\d")


class Masked(NamedTuple):
    """A published figure on masked pieces, and what two draws of masks may differ by."""

    name: str
    published: float
    tolerance: float


# rxnfp-pretrained, masks unknown. Over the seeds 0 to 9 of masked_reactions PyTorch finds 0.9307 to 0.9384 (standard deviation
# 0.0025) and 0.655 to 0.701 (0.016); the tolerances are three standard deviations of the difference of two such draws.
MASKED = (Masked("masked top-1", 0.9388, 0.011), Masked("masked cross entropy", 0.6613, 0.068))


class MaskedReactions(NamedTuple):
    """B reactions of at most L pieces, padded with 0; `labels` holds the piece under each mask and -100 everywhere else."""

    input_ids: Int32[np.ndarray, "B L"]
    attention_mask: Int32[np.ndarray, "B L"]
    labels: Int32[np.ndarray, "B L"]


def smiles_vocabulary(folder: Path) -> dict[str, int]:
    """Piece to id of rxnmapper's or rxnfp's vocab.txt in `folder`."""
    return {piece: i for i, piece in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())}


def smiles_pieces(reaction: str) -> list[str]:
    """[CLS], the pieces of a reaction SMILES, [SEP]; BertJaxError where a character belongs to no piece."""
    pieces = _SMILES.findall(reaction)
    if "".join(pieces) != reaction:
        raise BertJaxError(f"not a reaction SMILES: {reaction!r}")
    return ["[CLS]", *pieces, "[SEP]"]


def smiles_ids(reaction: str, vocabulary: dict[str, int]) -> list[int]:
    """Ids of :func:`smiles_pieces`; a piece that the vocabulary lacks is [UNK]."""
    return [vocabulary.get(piece, vocabulary["[UNK]"]) for piece in smiles_pieces(reaction)]


def suzuki_reactions(data: Path) -> list[str]:
    """The 5,760 Suzuki couplings in the order of split 0."""
    with _open(data / "chem" / "suzuki_random_split_0.tsv") as file:
        return [row["rxn"] for row in csv.DictReader(file, delimiter="\t")]


def masked_reactions(vocabulary: dict[str, int], data: Path, *, count: int = 256, seed: int = 0) -> MaskedReactions:
    """The first `count` Suzuki couplings, in each 15% of the pieces between [CLS] and [SEP] (rounded) replaced by [MASK].

    The masks behind the published figures are not known, so these are others; MASKED says how near they can be.
    """
    rows = [smiles_ids(reaction, vocabulary) for reaction in suzuki_reactions(data)[:count]]
    shape = len(rows), max(map(len, rows))
    input_ids, attention_mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    labels = np.full(shape, -100, np.int32)
    rng = np.random.default_rng(seed)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)], attention_mask[i, : len(row)] = row, 1
        inner = len(row) - 2
        chosen = 1 + np.argsort(rng.random(inner))[: round(0.15 * inner)]
        labels[i, chosen] = input_ids[i, chosen]
        input_ids[i, chosen] = vocabulary["[MASK]"]
    return MaskedReactions(input_ids, attention_mask, labels)


def masked_scores(logits: Float[np.ndarray, "M V"], labels: Int32[np.ndarray, " M"]) -> tuple[float, float]:
    """Share of the M masked pieces that have the highest logit, and their mean cross entropy in nats."""
    logits = np.asarray(logits, dtype=np.float64)
    highest = logits.max(axis=1, keepdims=True)
    normalizers = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
    correct = logits.argmax(axis=1) == labels
    return float(correct.mean()), float((normalizers - logits[np.arange(len(labels)), labels]).mean())


# Atom maps: what rxnmapper reads off its attentions

MAPPER_LAYER, MAPPER_HEAD = 10, 5  # counted from 0; what rxnmapper uses unless told otherwise

# Reactions and confidences of test_example_maps in the wheel's own tests/test_mapper.py. They were computed in float32 by other
# versions of PyTorch and RDKit: today's come within 2e-7.
CONFIDENCE_TOLERANCE = 5e-7
CONFIDENCES = {
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F": 0.9565619900376546,
    "C1COCCO1.CC(C)(C)OC(=O)CONC(=O)NCc1cccc2ccccc12.Cl>>O=C(O)CONC(=O)NCc1cccc2ccccc12": 0.9704424331552834,
    "C=CCN=C=S.CNCc1ccc(C#N)cc1.NNC(=O)c1cn2c(n1)CCCC2>>C=CCN1C(C2=CN3CCCCC3=N2)=NN=C1N(C)CC1=CC=C(C#N)C=C1":
        0.919023506871605,
}


def canonical(reaction: str, wheel: Path) -> str:
    """The reaction as rxnmapper shows it to its model: molecules canonical and in order, agents among the reactants."""
    smiles = _rxnmapper(wheel)
    equation = smiles.process_reaction(smiles.parse_any_reaction_smiles(reaction))
    return smiles.to_reaction_smiles(equation, reaction_format=smiles.ReactionFormat.STANDARD_WITH_TILDE)


def confidence(reaction: str, attention: Float[np.ndarray, "L L"], wheel: Path) -> float:
    """How sure rxnmapper is of the atom map that it reads off one head: the product over the atoms of the product.

    Args:
      reaction: what :func:`canonical` returns.
      attention: from each of the L pieces (:func:`smiles_pieces`) to each, of layer MAPPER_LAYER, head MAPPER_HEAD.
      wheel: rxnmapper's wheel. Its own AttentionScorer, run from there, is what computes.
    """
    pieces = smiles_pieces(reaction)
    if attention.shape != (len(pieces), len(pieces)):
        raise BertJaxError(f"attention has shape {list(attention.shape)}, the reaction has {len(pieces)} pieces")
    scorer = _rxnmapper(wheel).AttentionScorer(reaction, pieces, np.asarray(attention))
    return float(np.prod(scorer.generate_attention_guided_pxr_atom_mapping()["confidences"]))


@cache
def _rxnmapper(wheel: Path) -> types.SimpleNamespace:
    """The two modules of the wheel that score attentions, imported from the zip without the package around them: that one
    wants pkg_resources and a transformers below 5."""
    try:
        from rxn.chemutils.reaction_smiles import ReactionFormat, parse_any_reaction_smiles, to_reaction_smiles
    except ImportError as error:
        raise BertJaxError("atom maps need RDKit: pip install rdkit rxn-chem-utils") from error
    if not wheel.is_file():
        raise BertJaxError(f"no wheel at {wheel}: python benchmarks/weights.py rxnmapper fetches it")
    package = types.ModuleType("rxnmapper")
    package.__path__ = [f"{wheel}/rxnmapper"]
    sys.modules["rxnmapper"] = package
    from rxnmapper.attention import AttentionScorer
    from rxnmapper.smiles_utils import process_reaction

    return types.SimpleNamespace(
        AttentionScorer=AttentionScorer, ReactionFormat=ReactionFormat, parse_any_reaction_smiles=parse_any_reaction_smiles,
        process_reaction=process_reaction, to_reaction_smiles=to_reaction_smiles,
    )


def _open(path: Path):
    if not path.is_file():
        raise BertJaxError(f"no real data at {path}: let BERT_JAX_DATA name the folder that holds it")
    return path.open(encoding="utf-8", newline="")
