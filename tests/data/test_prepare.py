"""A store holds exactly the text, is the same however it was made, and never looks whole when it is not."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bert_jax import progress
from bert_jax.data import prepare as preparing
from bert_jax.data import stages, writer
from bert_jax.data.prepare import prepare
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.files import locked


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def decoded(store: TokenStore, side: str) -> list[str]:
    """The documents of a side as text without spaces and capitals, from their tokens."""
    split = store.split(side)
    begins, ends = split.documents[:-1], split.documents[1:]
    texts = []
    for begin, end in zip(begins, ends, strict=True):
        raw = split.gather(np.array([begin]), np.array([end - begin]))
        texts.append("".join(store.tokenizer.pieces[i & (split.word_start - 1)].removeprefix("##") for i in raw))
    return texts


def test_the_store_holds_the_text(text, tokenizer, tmp_path):
    path, documents = text(200)
    manifest = prepare([path], tmp_path / "store", tokenizer, heldout=0.2, workers=1, progress=False)
    store = TokenStore(tmp_path / "store")
    assert store.manifest == manifest
    expected = ["".join(document.lower().split()) for document in documents]
    train, heldout = decoded(store, "train"), decoded(store, "heldout")
    assert sorted(train + heldout) == sorted(expected)
    assert train == [document for document in expected if document in set(train)]
    assert 20 <= len(heldout) <= 60
    split = store.split("train")
    assert split.documents[0] == split.sentences[0] == 0
    assert split.documents[-1] == split.sentences[-1] == split.tokens == manifest.splits["train"].tokens
    assert (np.diff(split.sentences) > 0).all()
    assert np.isin(split.documents, split.sentences).all()
    stops = split.gather(split.sentences[1:] - 1, np.ones(len(split.sentences) - 1, int)) & (split.word_start - 1)
    assert (stops == tokenizer.piece_id(".")).all()
    raw = split.gather(np.array([0]), np.array([split.documents[1]]))
    np.testing.assert_array_equal(raw >= split.word_start, tokenizer.word_starts()[raw & (split.word_start - 1)])
    assert manifest.sources == [{"name": "text.txt", "bytes": path.stat().st_size}]
    assert str(tmp_path) not in (tmp_path / "store" / "manifest.json").read_text()


def test_the_same_bytes_whatever_the_workers_and_pieces(text, tokenizer, tmp_path, monkeypatch):
    path, _ = text(300)
    options = dict(heldout=0.1, shard_tokens=3000, progress=False)
    prepare([path], tmp_path / "one", tokenizer, workers=1, **options)
    monkeypatch.setattr(stages, "TASK", 5000)
    manifest = prepare([path], tmp_path / "three", tokenizer, workers=3, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(manifest.splits["train"].shards) > 3
    shard_ends = np.cumsum([tokens for _, tokens in manifest.splits["train"].shards])
    assert np.isin(shard_ends, TokenStore(tmp_path / "one").split("train").documents).all()


def test_the_same_bytes_however_much_waits_to_be_written(text, tokenizer, tmp_path, monkeypatch):
    path, _ = text(300)
    written = []
    append = writer._File.append
    monkeypatch.setattr(writer._File, "append", lambda self, data: written.append(self.path) or append(self, data))
    options = dict(heldout=0.1, shard_tokens=1500, case=True, workers=1, progress=False)
    prepare([f"en={path}"], tmp_path / "one", tokenizer, **options)
    at_once = len(written)
    for held, times in ((1000, 2), (1, 5)):
        written.clear()
        monkeypatch.setattr(writer, "HELD", held)
        prepare([f"en={path}"], tmp_path / f"{held}", tokenizer, **options)
        assert contents(tmp_path / "one") == contents(tmp_path / f"{held}")
        assert len(written) > times * at_once, "it was written before the shard was full"


def test_lines_where_there_is_no_terminal(text, tokenizer, tmp_path, monkeypatch, capsys):
    path, _ = text(200)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.001)
    monkeypatch.setattr(stages, "TASK", 2_000)
    prepare([path], tmp_path / "store", tokenizer, heldout=0.2, workers=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare ")]
    assert len(lines) > 3 and "documents" in lines[-2] and lines[-1].startswith("prepare 100%")


def test_a_long_document_is_shared_among_tasks(text, tokenizer, tmp_path, monkeypatch):
    _, documents = text(300)
    (tmp_path / "books.txt").write_text("\f".join("\n\n".join(documents[i::3]) for i in range(3)))
    options = dict(documents="formfeed", heldout=0, workers=1, progress=False)
    prepare([tmp_path / "books.txt"], tmp_path / "whole", tokenizer, **options)
    monkeypatch.setattr(stages, "TASK", 2000)
    manifest = prepare([tmp_path / "books.txt"], tmp_path / "cut", tokenizer, **options)
    assert manifest.splits["train"].documents == 3
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


def test_copies_of_a_document_land_on_one_side(text, tokenizer, tmp_path):
    path, _ = text(100)
    for number in (1, 2):
        (tmp_path / f"copy{number}.txt").write_text(path.read_text())
    prepare([tmp_path / "copy*.txt"], tmp_path / "store", tokenizer, heldout=0.3, workers=1, progress=False)
    store = TokenStore(tmp_path / "store")
    assert not set(decoded(store, "train")) & set(decoded(store, "heldout"))


RUN = """
import sys
from bert_jax import tokenizers
from bert_jax.data.prepare import prepare

print("begun")
tokenizer = tokenizers.load(sys.argv[3])
prepare([sys.argv[1]], sys.argv[2], tokenizer, heldout=0.1, workers=2, shard_tokens=20_000, progress=False)
"""


@pytest.mark.parametrize("way", ["script", "module"])
def test_a_script_needs_no_guard(text, tokenizer, tmp_path, way):
    """Workers ran the script again, which ended as "a worker process was killed (out of memory?)"."""
    path, _ = text(300)
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "run.py").write_text(RUN)
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, *(["-m", "run"] if way == "module" else ["run.py"]), path, "store", "tokenizer"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr
    prepare([path], tmp_path / "other", tokenizer, heldout=0.1, workers=1, shard_tokens=20_000, progress=False)
    assert contents(tmp_path / "store") == contents(tmp_path / "other")


def test_a_killed_run_goes_on_and_ends_the_same(text, tokenizer, tmp_path, monkeypatch, warnings_of):
    path, _ = text(8_000)
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "run.py").write_text(RUN)
    out = tmp_path / "store"
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, tmp_path / "run.py", path, out, tmp_path / "tokenizer"]
    process = subprocess.Popen(command, cwd=root, env={"PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
    state = tmp_path / "store.partial" / "state.json"
    done = 0
    while process.poll() is None and not done:
        time.sleep(0.002)
        if state.exists():
            done = json.loads(state.read_text())["consumed"]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed: give it more text"
    assert not out.exists()
    for folder in (out, tmp_path / "store.partial"):
        with pytest.raises(BertJaxError, match="run the same `prepare` again"):
            TokenStore(folder)

    done = json.loads(state.read_text())["consumed"]
    options = dict(heldout=0.1, shard_tokens=20_000, progress=False, workers=1)
    for different, word in ((options | {"heldout": 0.2}, "options"), (options | {"sentences": "line"}, "options")):
        with pytest.raises(BertJaxError, match=f"other {word}: remove it to start again"):
            prepare([path], out, tokenizer, **different)
    assert 0 < done < 8_000
    texts = []
    work = stages.Work.__call__
    monkeypatch.setattr(stages.Work, "__call__", lambda self, batch: texts.extend(batch) or work(self, batch))
    prepare([path], out, tokenizer, **options)
    assert len(texts) == 8_000 - done
    assert f"going on after {done} documents" in " ".join(warnings_of())
    prepare([path], tmp_path / "undisturbed", tokenizer, **options)
    assert contents(out) == contents(tmp_path / "undisturbed")
    TokenStore(out)


class Interrupted(stages.Work):
    """Stands in for Ctrl-C after some documents."""

    calls = 0

    def __call__(self, texts):
        Interrupted.calls += 1
        if Interrupted.calls > 5:
            raise KeyboardInterrupt
        return super().__call__(texts)


@pytest.mark.parametrize("shard_tokens", [500, 1 << 24])
def test_ctrl_c_keeps_what_is_recorded_and_nothing_else(text, tokenizer, tmp_path, monkeypatch, shard_tokens):
    path, _ = text(300)
    monkeypatch.setattr(stages, "TASK", 3000)
    options = dict(heldout=0.1, workers=1, shard_tokens=shard_tokens, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "Work", Interrupted)
        patch.setattr(Interrupted, "calls", 0)
        with pytest.raises(KeyboardInterrupt):
            prepare([path], tmp_path / "store", tokenizer, **options)
    assert not (tmp_path / "store").exists()
    assert (tmp_path / "store.partial").exists() == (shard_tokens == 500)
    prepare([path], tmp_path / "store", tokenizer, **options)
    prepare([path], tmp_path / "undisturbed", tokenizer, **options)
    assert contents(tmp_path / "store") == contents(tmp_path / "undisturbed")


def test_text_that_changed_since_the_interruption_is_refused(text, tokenizer, tmp_path, monkeypatch):
    path, _ = text(300)
    monkeypatch.setattr(stages, "TASK", 3000)
    options = dict(heldout=0.1, workers=1, shard_tokens=500, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "Work", Interrupted)
        patch.setattr(Interrupted, "calls", 0)
        with pytest.raises(KeyboardInterrupt):
            prepare([path], tmp_path / "store", tokenizer, **options)
    path.write_text(path.read_text().replace("number 1.", "number x."))
    with pytest.raises(BertJaxError, match="the text is not what the interrupted run read"):
        prepare([path], tmp_path / "store", tokenizer, **options)


def test_a_full_disk(text, tokenizer, tmp_path, monkeypatch):
    path, _ = text(300)
    written = 0
    append = writer._File.append

    def limited(self, data):
        nonlocal written
        written += memoryview(data).nbytes
        if written > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, data)

    monkeypatch.setattr(writer._File, "append", limited)
    with pytest.raises(BertJaxError, match="the disk is full: free some space") as caught:
        prepare([path], tmp_path / "store", tokenizer, heldout=0.1, workers=1, progress=False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store*"))


def test_a_killed_worker(text, tokenizer, tmp_path):
    path, _ = text(20)
    with pytest.raises(BertJaxError, match="a worker process ended"):
        prepare([path], tmp_path / "store", Deadly(tokenizer), heldout=0, workers=2, progress=False)
    assert not list(tmp_path.glob("store*"))


class Deadly:
    """A tokenizer that ends a worker at its first text."""

    def __init__(self, tokenizer):
        self.tokenizer, self.process = tokenizer, os.getpid()

    def __getattr__(self, name):
        if name.startswith("__") or name in ("tokenizer", "process"):
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def encoder(self):
        return self.tokenizer.encoder() if os.getpid() == self.process else lambda texts: os._exit(9)


def test_nothing_to_read_leaves_nothing(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n\n")
    with pytest.raises(BertJaxError, match="no text in empty.txt: nothing to prepare"):
        prepare([tmp_path / "empty.txt"], tmp_path / "store", tokenizer, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_binary_junk_leaves_nothing(text, tokenizer, tmp_path):
    path, _ = text(200)
    with open(path, "ab") as file:
        file.write(b"\n\nword \xff\xfe\n")
    with pytest.raises(BertJaxError, match="not UTF-8 at byte"):
        prepare([path], tmp_path / "store", tokenizer, heldout=0.1, workers=1, progress=False)
    assert not list(tmp_path.glob("store*"))


def test_documents_without_tokens_are_counted(text, tokenizer, tmp_path, warnings_of):
    path, _ = text(50)
    path.write_text(path.read_text() + "\n\n\u200b\u200b\n\n\x01\n")
    manifest = prepare([path], tmp_path / "store", tokenizer, heldout=0.2, workers=1, progress=False)
    assert manifest.documents_without_tokens == 2
    assert sum(info.documents for info in manifest.splits.values()) == 50
    assert "2 documents without any token were dropped" in " ".join(warnings_of())
    only = tmp_path / "only.txt"
    only.write_text("\u200b\n\n\x01\n")
    with pytest.raises(BertJaxError, match=r"no document with tokens on the train side \(2 of 2"):
        prepare([only], tmp_path / "other", tokenizer, heldout=0, workers=1, progress=False)
    assert not list(tmp_path.glob("other*"))


def test_an_empty_side_says_what_to_do(text, tokenizer, tmp_path):
    path, _ = text(20)
    with pytest.raises(BertJaxError, match=r"heldout=0.0001 keeps none of 20 documents apart: use ") as caught:
        prepare([path], tmp_path / "store", tokenizer, heldout=0.0001, progress=False)
    advice = float(str(caught.value).partition("use ")[2].split()[0])
    manifest = prepare([path], tmp_path / "store", tokenizer, heldout=advice, workers=1, progress=False)
    assert manifest.splits["heldout"].documents == 1
    one, _ = text(1, name="one.txt")
    with pytest.raises(BertJaxError, match="use a larger corpus, or 0"):
        prepare([one], tmp_path / "other", tokenizer, heldout=0.0001, progress=False)
    with pytest.raises(BertJaxError, match="leaves none to train on"):
        prepare([one], tmp_path / "other", tokenizer, heldout=0.99999, progress=False)
    manifest = prepare([one], tmp_path / "other", tokenizer, heldout=0, workers=1, progress=False)
    assert list(manifest.splits) == ["train"]
    with pytest.raises(BertJaxError, match="no split 'heldout', only train"):
        TokenStore(tmp_path / "other").split("heldout")


def test_what_stands_in_the_way(text, tokenizer, tmp_path):
    path, _ = text(20)
    (tmp_path / "store").mkdir()
    with pytest.raises(BertJaxError, match="exists already: remove it or choose another"):
        prepare([path], tmp_path / "store", tokenizer)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(BertJaxError, match="something other than an unfinished store"):
        prepare([path], tmp_path / "other", tokenizer, heldout=0, workers=1)
    assert (tmp_path / "other.partial" / "thesis.txt").read_text() == "mine"
    with locked(tmp_path / "third.partial"), pytest.raises(BertJaxError, match="another run is writing it"):
        prepare([path], tmp_path / "third", tokenizer, heldout=0, workers=1)
    with pytest.raises(BertJaxError, match="cannot be written"):
        prepare([path], path / "store", tokenizer, heldout=0, workers=1)


@pytest.mark.parametrize(
    "wrong", [{"heldout": 1.0}, {"heldout": -0.1}, {"workers": 0}, {"shard_tokens": 0}, {"sentences": "x"}]
)
def test_wrong_arguments(text, tokenizer, tmp_path, wrong):
    path, _ = text(3)
    with pytest.raises(BertJaxError, match=next(iter(wrong))):
        prepare([path], tmp_path / "store", tokenizer, **wrong)


def interrupted(text, tokenizer, tmp_path, monkeypatch) -> tuple[pathlib.Path, pathlib.Path]:
    """A text, and what is left of a preparation of it that ended after some shards."""
    path, _ = text(200)
    ended = iter(range(120))

    def stop(self, *words, **options):
        if next(ended, None) is None:
            raise KeyboardInterrupt
        return end(self, *words, **options)

    end = writer.StoreWriter.end_document
    with monkeypatch.context() as patch:
        patch.setattr(writer.StoreWriter, "end_document", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare([path], tmp_path / "store", tokenizer, **SMALL_SHARDS)
    return path, tmp_path / "store.partial"


SMALL_SHARDS = dict(heldout=0, workers=1, shard_tokens=500, progress=False)


@pytest.mark.parametrize("name", ["train/sentences.npy", "train/tokens-00000.bin", "train/documents.npy"])
def test_a_file_that_lost_its_end_is_not_made_longer(name, text, tokenizer, tmp_path, monkeypatch):
    path, partial = interrupted(text, tokenizer, tmp_path, monkeypatch)
    os.truncate(partial / name, 300)
    with pytest.raises(BertJaxError, match=f"{name} has 300 bytes, and had [0-9,]+ when the interrupted run recorded it"):
        prepare([path], tmp_path / "store", tokenizer, **SMALL_SHARDS)
    assert partial.is_dir()
    (partial / name).unlink()
    with pytest.raises(BertJaxError, match=f"{name} has 0 bytes"):
        prepare([path], tmp_path / "store", tokenizer, **SMALL_SHARDS)


def test_what_a_killed_run_left_of_a_small_file_is_no_part_of_the_store(text, tokenizer, tmp_path, monkeypatch):
    path, partial = interrupted(text, tokenizer, tmp_path, monkeypatch)
    for name in ("manifest.json.new", "state.json.new", "tokenizer/vocab.txt.new"):
        (partial / name).write_text("{")
    prepare([path], tmp_path / "store", tokenizer, **SMALL_SHARDS)
    prepare([path], tmp_path / "whole", tokenizer, **SMALL_SHARDS)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_a_store_of_more_shards_than_files_may_be_open(text, tokenizer, tmp_path):
    """The soft limit is raised as far as the hard one goes; where that is too low, a line says so."""
    path, _ = text(150)
    manifest = prepare([path], tmp_path / "store", tokenizer, heldout=0, workers=1, shard_tokens=10, progress=False)
    assert len(manifest.splits["train"].shards) > 100
    code = """
import resource, sys
from bert_jax.errors import BertJaxError
from bert_jax.data.store import TokenStore
store = TokenStore(sys.argv[1], verify=False)
resource.setrlimit(resource.RLIMIT_NOFILE, (80, int(sys.argv[2])))
try:
    print(store.split("train").tokens)
except BertJaxError as error:
    print(error)
"""
    def tokens(hard: int) -> str:
        words = [sys.executable, "-c", code, str(tmp_path / "store"), str(hard)]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[2]).stdout

    assert tokens(1000).strip() == str(manifest.splits["train"].tokens)
    assert "a process may not have so many files open (ulimit -Hn)" in tokens(90)


def test_long_words_that_are_unknown_are_counted_as_words(tokenizer, tmp_path, warnings_of):
    """Without blanks a hundred characters are one unknown token, and a few among many hide much of the text."""
    lines = ["abcdef " * 50 + "\u0e01" * 120] * 40  # 0.3% of the tokens, 2% of the words
    (tmp_path / "a.txt").write_text("\n\n".join(lines))
    prepare([tmp_path / "a.txt"], tmp_path / "store", tokenizer, heldout=0, workers=1, progress=False)
    assert any("of the words are unknown to the tokenizer ([UNK])" in line for line in warnings_of()), warnings_of()
