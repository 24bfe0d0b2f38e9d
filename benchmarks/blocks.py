"""How the single-worker parts of preparation on Beam scale: the plan, and the file of sentence offsets.

python benchmarks/blocks.py --blocks 312000 --shard-tokens 268435456

The blocks are made up, of the size that 16 million characters of English give: 3.6 million tokens, 180,000 sentences,
8,000 documents. No store is written; the plan reads its document lengths from memory.
"""

import argparse
import hashlib
import json
import pathlib
import pickle
import resource
import tempfile
import time

import numpy as np

from bert_jax.data.blocks import Block, Stored, StoreFile, plan

DOCUMENTS, SENTENCES = 8_000, 180_000


def planning(count: int, shard_tokens: int) -> dict:
    """The plan for `count` blocks."""
    lengths = np.full(DOCUMENTS, 450, "<u4").tobytes()
    side = Stored(0, 450 * DOCUMENTS, SENTENCES, DOCUMENTS)
    blocks = [
        Block((i // 50, i % 50), f"gs://bucket/store.partial/{i:032x}", 2, DOCUMENTS, 0, {"train": side}) for i in range(count)
    ]
    reads = 0

    def read(path: str, begin: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        return lengths[:size]

    began = time.process_time()
    splits, files = plan(blocks, ["train"], shard_tokens, read)
    return {
        "blocks": count,
        "tokens": splits["train"].tokens,
        "files": len(files),
        "blocks_read": reads,
        "processor_seconds": round(time.process_time() - began, 1),
        "largest_message_mb": round(max(len(pickle.dumps(file)) for file in files) / 1e6, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    }


def offsets(count: int) -> dict:
    """The offsets of `count` blocks' sentences, from files on this machine's disk to one file, with its digest."""
    rng = np.random.default_rng(0)
    data = rng.integers(5, 40, SENTENCES).astype("<u4").tobytes()

    def read(path: str, begin: int, size: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(begin)
            return file.read(size)

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for number in range(count):
            (root / str(number)).write_bytes(data)
        file = StoreFile("sentences.npy", [(str(root / str(i)), 0, len(data)) for i in range(count)], SENTENCES * count + 1)
        digest, size = hashlib.blake2b(digest_size=16), 0
        began, busy = time.perf_counter(), time.process_time()
        with open(root / "out", "wb") as out:
            for chunk in file.chunks(read):
                digest.update(chunk)
                size += out.write(chunk)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    megabytes = size / 1e6
    return {
        "gb": round(megabytes / 1e3, 2),
        "mb_per_second": round(megabytes / seconds),
        "mb_per_processor_second": round(megabytes / busy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=312_000, help="blocks to plan for (default 312000, 5 TB of text)")
    parser.add_argument("--shard-tokens", type=int, default=1 << 28, help="tokens in one file (default 268435456)")
    options = parser.parse_args()
    print(json.dumps({"plan": planning(options.blocks, options.shard_tokens), "offsets": offsets(1000)}, indent=1))


if __name__ == "__main__":
    main()
