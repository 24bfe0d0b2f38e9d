"""A store put together from blocks is the store that the writer would have written, wherever blocks and shards end."""

import hashlib
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.blocks import BlockWriter, plan
from bert_jax.data.stages import Piece, digest
from bert_jax.data.writer import StoreWriter


def read(path: str, begin: int, size: int) -> bytes:
    data = pathlib.Path(path).read_bytes()[begin : begin + size]
    assert len(data) == size
    return data


def fill(writer, documents, rng_seed: int) -> None:
    """Hands each document over in up to three pieces; some documents have no tokens, some go to the other side."""
    rng = np.random.default_rng(rng_seed)
    for number, size in documents:
        side = "heldout" if number % 3 == 0 else "train"
        cuts = np.sort(np.random.default_rng(number).integers(0, size + 1, 2))
        for length in np.diff([0, *cuts, size]):
            sentences = np.array([length], np.int64)[: int(length > 0)]
            tokens = np.random.default_rng([number, size]).integers(0, 1000, length)
            channels = {"case": (tokens % 2).astype(np.uint8), "other": (tokens % 7).astype(np.uint8)}
            writer.append(side, Piece(tokens.astype("<u2"), sentences, channels))
        writer.end_document(side, digest(str(number)), int(rng.integers(100)), number % 5)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    shard_tokens=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 40), max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_the_same_files(tmp_path_factory, tokenizer, sizes, shard_tokens, cuts, order):
    folder = tmp_path_factory.mktemp("blocks")
    documents = list(enumerate([5, *sizes, 7]))  # both sides have something: document 0 and one of the last
    documents += [(len(documents) + extra, 4) for extra in range(2)]
    sides = ["train", "heldout"]
    store = folder / "store"
    store.mkdir()
    inputs = {"options": {}, "sources": [], "channels": ["case", "other"], "languages": [*"abcde"], "parallel": 0}
    writer = StoreWriter(store, inputs, tokenizer, shard_tokens, sides)
    fill(writer, documents, 0)
    manifest = writer.finish(tokenizer)

    bounds = sorted({0, *(min(cut, len(documents)) for cut in cuts), len(documents)})
    blocks = []
    for number, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        part = BlockWriter(sides, np.dtype("<u2"), inputs["channels"], languages=True)
        fill(part, documents[begin:end], 0)
        block, chunks = part.finish(str(folder / f"block-{number}"), (number // 2, number % 2))
        pathlib.Path(block.path).write_bytes(b"".join(chunks))
        blocks.append(block)
    order.shuffle(blocks)
    splits, files = plan(blocks, sides, shard_tokens, read, languages=True)
    assert splits == manifest.splits
    assert sum(block.without_tokens for block in blocks) == manifest.documents_without_tokens
    assert {file.name for file in files} == {name for name in manifest.files if not name.startswith("tokenizer/")}
    for file in files:
        content = b"".join(file.chunks(read))
        assert content == (store / file.name).read_bytes(), file.name
        assert hashlib.blake2b(content, digest_size=16).hexdigest() == manifest.files[file.name]["blake2b"]


@pytest.mark.parametrize("shard_tokens", [10, 1000])
def test_documents_are_looked_up_only_where_a_shard_ends(tmp_path, shard_tokens):
    blocks = []
    for number in range(20):
        part = BlockWriter(["train"], np.dtype("<u4"), [], languages=False)
        for _ in range(5):
            part.append("train", Piece(np.full(20, number, "<u4"), np.array([20]), {}))
            part.end_document("train", b"", 1)
        block, chunks = part.finish(str(tmp_path / str(number)), (0, number))
        pathlib.Path(block.path).write_bytes(b"".join(chunks))
        blocks.append(block)
    asked = []
    splits, _ = plan(blocks, ["train"], shard_tokens, lambda *place: asked.append(place) or read(*place))
    assert len(splits["train"].shards) == {10: 100, 1000: 2}[shard_tokens]
    assert len(asked) == {10: 20, 1000: 2}[shard_tokens]
