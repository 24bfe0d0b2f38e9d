"""benchmarks/prepare.py: one store measured, and the tokenizers library beside it on the same text."""

import json
import subprocess
import sys

import prepare
import pytest

from bert_jax import tokenizers

WORDS = "the cat sat on a mat and the dog ran to its house".split()


@pytest.fixture
def text(tmp_path):
    """Forty books of three paragraphs."""
    lines = [" ".join(WORDS[number % 5 :]).capitalize() + f" {number} times." for number in range(120)]
    books = ["\n \n".join(lines[start : start + 3]) for start in range(0, 120, 3)]
    (tmp_path / "books.txt").write_text("\f".join(books))
    return tmp_path / "books.txt"


@pytest.mark.slow
def test_the_library_takes_turns(text, data_dir, tmp_path, request):
    vocabulary = data_dir / "vocab/bert-base-uncased-vocab.txt"
    out = tmp_path / "out.json"
    options = ["--documents", "formfeed", "--heldout", "0.2", "--workers", "2", "--rounds", "1", "--json", out]
    command = [sys.executable, request.config.rootpath / "benchmarks/prepare.py", text, "--vocab", vocabulary, *options]
    done = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert json.loads(done.stdout) == found
    assert found["command"].startswith("python benchmarks/prepare.py .../books.txt --vocab ") and found["code"]
    rows = found["library"]["rows"]
    assert list(rows) == [prepare.OURS, *prepare.LIBRARY] and found["library"]["workers"] == 2
    tokens = sum(split["tokens"] for split in found["splits"].values())
    whole = tokenizers.load(vocabulary).encode_batch([text.read_text()])[0]
    assert tokens == len(whole) and {row["tokens"] for row in rows.values()} == {tokens}
    seconds = {name: row["seconds"] for name, row in rows.items() if name != prepare.OURS}
    assert rows[found["library"]["best_of_library"]]["seconds"] == min(seconds.values())
    for row in rows.values():
        middle, low, high = row["ours_over_it"]
        assert 0 < low <= middle <= high
    assert rows[prepare.OURS]["processor_seconds"] > 0


def test_batches_have_all_texts_in_order():
    texts = ["a" * 30, "", "b" * 80, "c", "d" * 200, "e"]
    assert list(prepare.batches(texts, 100)) == [["a" * 30, "", "b" * 80], ["c", "d" * 200], ["e"]]
    assert list(prepare.batches([], 100)) == []
