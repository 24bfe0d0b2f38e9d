"""A small tokenizer, and splits made of given token ids."""

import logging
import pathlib

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.data.store import Manifest, Split, SplitInfo, token_dtype, word_start_bit

WORDS = "the a cat dog sat ran on in mat road he she it said why not one two and but then document number of".split()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """WordPiece with a few words and every ASCII letter, so that no text is without tokens."""
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    pieces += [word for word in WORDS if word not in letters]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    return tokenizers.load(path)


@pytest.fixture
def text(tmp_path):
    """Writes documents of random sentences, blank lines between documents; returns the path and the documents."""

    def write(count: int, seed: int = 0, name: str = "text.txt") -> tuple[pathlib.Path, list[str]]:
        rng = np.random.default_rng(seed)
        documents = []
        for index in range(count):
            sentences = [
                " ".join(rng.choice(WORDS, rng.integers(3, 12))).capitalize() + "." for _ in range(rng.integers(1, 9))
            ]
            documents.append(f"Document number {index}. " + " ".join(sentences))
        path = tmp_path / name
        path.write_text("\n\n".join(documents) + "\n")
        return path, documents

    return write


@pytest.fixture
def make_split(tmp_path):
    """A `Split` on disk from documents, which are lists of sentences, which are lists of ids.

    An id below 0 continues a word. `shards` cuts the tokens into that many files, where documents end.
    """

    def make(documents: list[list[list[int]]], vocab_size: int = 30_000, shards: int = 1) -> Split:
        folder = tmp_path / "split"
        (folder / "train").mkdir(parents=True, exist_ok=True)
        dtype = token_dtype(vocab_size)
        lengths = [[len(sentence) for sentence in document] for document in documents]
        sentence_lengths = np.array([n for document in lengths for n in document])
        document_lengths = np.array([sum(document) for document in lengths])
        np.save(folder / "train" / "sentences.npy", np.concatenate([[0], np.cumsum(sentence_lengths)]).astype("<i8"))
        np.save(folder / "train" / "documents.npy", np.concatenate([[0], np.cumsum(document_lengths)]).astype("<i8"))
        files = []
        for number, part in enumerate(np.array_split(np.arange(len(documents)), shards)):
            ids = np.array([i for d in part for sentence in documents[d] for i in sentence], np.int64)
            stored = np.abs(ids).astype(dtype) | (ids >= 0).astype(dtype) * dtype.type(word_start_bit(dtype))
            name = f"train/tokens-{number:05d}.bin"
            stored.tofile(folder / name)
            files.append((name, len(ids)))
        info = SplitInfo(len(documents), len(sentence_lengths), int(sentence_lengths.sum()), tuple(files))
        manifest = Manifest(
            format=1,
            tokenizer={"kind": "none", "hash": "", "vocab_size": vocab_size, "cls_id": 1, "sep_id": 2, "pad_id": 0},
            options={},
            sources=[],
            documents_without_tokens=0,
            splits={"train": info},
            files={},
        )
        return Split(folder, "train", manifest)

    return make


@pytest.fixture
def random_split(make_split):
    """`make_split` of random documents; the ids count up through the split from 10, so that an id tells its place."""

    def make(count: int = 60, seed: int = 0, sentence: tuple[int, int] = (1, 40), shards: int = 1) -> Split:
        rng = np.random.default_rng(seed)
        documents, place = [], 10
        for _ in range(count):
            document = []
            for _ in range(rng.integers(1, 30)):
                length = int(rng.integers(*sentence))
                document.append(list(range(place, place + length)))
                place += length
            documents.append(document)
        return make_split(documents, vocab_size=max(place, 40_000), shards=shards)

    return make


@pytest.fixture
def warnings_of(caplog):
    caplog.set_level(logging.WARNING, logger="bert_jax")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "bert_jax"]
