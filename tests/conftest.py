"""Shared fixtures: where real data lies, and eight fake devices for everything that shards."""

import os
import pathlib

# Before jax is imported anywhere: eight host devices, and a compilation cache that survives between runs.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import numpy as np
import pytest

WORDS = "the a cat dog bird sat ran sang on in under mat road tree he she it said why not one two red blue and but".split()


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real data; a test that needs it is skipped, with the reason, where it is absent."""
    path = pathlib.Path(os.environ.get("BERT_JAX_DATA", ROOT.parent / "shared" / "data"))
    if not (path / "README.md").is_file():
        pytest.skip("no real data: set BERT_JAX_DATA or put it at ../shared/data")
    return path


def write_vocabulary(path: pathlib.Path, words: list[str]) -> pathlib.Path:
    """A WordPiece vocab.txt: the special pieces, every letter within and at the start of a word, and whole words."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["."]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    path.write_text("\n".join(pieces + [word for word in words if word not in letters]) + "\n")
    return path


def write_corpus(path: pathlib.Path, documents: int, seed: int = 0) -> pathlib.Path:
    """Documents of random sentences, one sentence a line, blank lines between documents; few words, so easily learnt."""
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for _ in range(documents):
            for _ in range(rng.integers(3, 12)):
                file.write(" ".join(rng.choice(WORDS[:12], rng.integers(3, 9))) + " .\n")
            file.write("\n")
    return path


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory) -> pathlib.Path:
    """A token store of 150 small documents, a fifth of them held out; its vocabulary has fewer than 96 pieces."""
    from bert_jax import tokenizers
    from bert_jax.data.prepare import prepare

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tokenizers.load(write_vocabulary(folder / "vocab.txt", WORDS))
    text = write_corpus(folder / "text.txt", 150)
    prepare([text], folder / "store", tokenizer, sentences="line", heldout=0.2, workers=1, progress=False)
    return folder / "store"


@pytest.fixture(scope="session")
def tiny_experiment():
    """``tiny_experiment("bert", "train.steps=8")``: what tests/tiny_bert.py describes, with assignments applied."""
    from bert_jax import config
    from bert_jax.training.pretrain import load_config

    return lambda family, *assignments: config.override(
        load_config(ROOT / "tests" / f"tiny_{family}.py"), assignments
    )
