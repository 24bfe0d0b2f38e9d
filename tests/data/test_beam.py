"""Beam writes the local runner's bytes, whatever the sources, sizes and workers; refuses in its words; leaves nothing."""

import dataclasses
import gzip
import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.data import stages
from bert_jax.data.prepare import prepare
from bert_jax.data.sources import Corpus
from bert_jax.data.stages import Recipe
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.files import locked

pytest.importorskip("apache_beam", reason="needs the extra `beam`")

from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.localfilesystem import LocalFileSystem

from bert_jax.cli import main
from bert_jax.data import beam as beaming
from bert_jax.data.beam import prepare_with_beam
from tests.data.test_sources import BUILDER

ROOT = pathlib.Path(__file__).resolve().parents[2]
THREADS = ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]
PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def both(tmp_path, sources, tokenizer, recipe: Recipe, beam_options=()):
    """Prepares with both runners, compares every byte, returns the store."""
    for name in ("local", "beam"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    manifest = prepare(sources, tmp_path / "local", tokenizer, workers=1, progress=False, **dataclasses.asdict(recipe))
    assert prepare_with_beam(sources, tmp_path / "beam", tokenizer, recipe, beam_options=beam_options) == manifest
    local, made = contents(tmp_path / "local"), contents(tmp_path / "beam")
    assert sorted(local) == sorted(made)
    for name, content in local.items():
        assert made[name] == content, name
    assert not (tmp_path / "beam.partial").exists()
    return TokenStore(tmp_path / "beam")


@pytest.fixture
def kinds(text, tmp_path):
    """Blank-line text, the same compressed, JSON lines, and a file of documents without tokens."""
    _, first = text(60, seed=1, name="a.txt")
    _, second = text(60, seed=2, name="b.txt")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress((tmp_path / "b.txt").read_bytes()))
    (tmp_path / "b.txt").unlink()
    lines = [json.dumps({"body": document}) for document in (*first[:20], "", *second[20:50])]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "d.txt").write_text("\u200b\n\n\x01\n\nthe cat sat.\n")
    return [tmp_path / "*.txt", tmp_path / "b.txt.gz", tmp_path / "c.jsonl"]


@pytest.mark.parametrize("heldout", [0, 0.2])
@pytest.mark.parametrize("workers", [[], THREADS], ids=["one", "threads"])
def test_every_kind_of_source(kinds, tokenizer, tmp_path, monkeypatch, heldout, workers):
    monkeypatch.setattr(beaming, "BLOCK", 700)
    monkeypatch.setattr(beaming, "SPREAD", 3000)  # some sources are spread, some are not
    recipe = Recipe(heldout=heldout, field="body", shard_tokens=300)
    store = both(tmp_path, kinds, tokenizer, recipe, workers)
    assert len(store.manifest.splits["train"].shards) > 10
    assert store.manifest.documents_without_tokens == 3


@pytest.mark.parametrize("options", [{"case": True}, {"words": "whitespace"}])
def test_channels_and_languages(kinds, tokenizer, tmp_path, monkeypatch, options):
    monkeypatch.setattr(beaming, "BLOCK", 700)
    named = [f"{name}={path}" for name, path in zip(("en", "de", "en"), kinds, strict=True)]
    store = both(tmp_path, named, tokenizer, Recipe(heldout=0.2, field="body", shard_tokens=300, **options), THREADS)
    split = store.split("train")
    assert split.languages == ("en", "de") and set(split.document_language) == {0, 1}
    assert split.channels == (("case",) if options == {"case": True} else ())


def test_parallel_text_is_refused(text, tokenizer, tmp_path):
    path, _ = text(3)
    with pytest.raises(BertJaxError, match="parallel text is prepared by the local runner: leave out --runner beam"):
        prepare_with_beam([f"en={path}", f"de={path}"], tmp_path / "store", tokenizer, Recipe(parallel=True))


def test_worker_processes(kinds, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(beaming, "BLOCK", 2000)
    both(tmp_path, kinds, tokenizer, Recipe(heldout=0.1, field="body", shard_tokens=1000, sentences="line"), PROCESSES)


@pytest.mark.parametrize("block", [1, 20_000, 1 << 24])
def test_documents_longer_than_a_task(text, tokenizer, tmp_path, monkeypatch, block):
    _, documents = text(300)
    (tmp_path / "books.txt").write_text("\f".join("\n\n".join(documents[i::3]) for i in range(3)))
    monkeypatch.setattr(stages, "TASK", 2000)
    monkeypatch.setattr(beaming, "BLOCK", block)
    store = both(tmp_path, [tmp_path / "books.txt"], tokenizer, Recipe(documents="formfeed", heldout=0, shard_tokens=9))
    assert len(store.manifest.splits["train"].shards) == 3


def test_real_text(data_dir, tmp_path, monkeypatch):
    from bert_jax import tokenizers

    monkeypatch.setattr(beaming, "BLOCK", 50_000)
    for language in ("en-us", "ja"):
        texts = list(Corpus([data_dir / "text" / f"help-{language}.txt.gz"], documents="prefix:# doc:"))[::40]
        content = "".join(f"# doc: {number}\n{text}\n" for number, text in enumerate(texts))
        (tmp_path / f"{language}.txt").write_text(content)
    recipe = Recipe(documents="prefix:# doc:", heldout=0.1, shard_tokens=5_000)
    for vocabulary in ("bert-base-uncased-vocab.txt", "albert-base-v2-spiece.model"):
        tokenizer = tokenizers.load(data_dir / "vocab" / vocabulary)
        store = both(tmp_path, [tmp_path / "en-us.txt", tmp_path / "ja.txt"], tokenizer, recipe)
        assert sum(split.documents for split in store.manifest.splits.values()) == 2 * len(texts)


def test_a_data_set_of_tfds(tokenizer, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-c", BUILDER, tmp_path], check=True, capture_output=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(beaming, "BLOCK", 40)
    store = both(tmp_path, ["tfds:tiny_text", "tfds:tiny_text:test"], tokenizer, Recipe(heldout=0, shard_tokens=20))
    assert store.manifest.splits["train"].documents == 7


def test_relative_paths(text, tokenizer, tmp_path, monkeypatch):
    path, _ = text(30)
    monkeypatch.chdir(tmp_path)
    prepare_with_beam([path.name], "store", tokenizer, Recipe(heldout=0))
    prepare([path], tmp_path / "local", tokenizer, heldout=0, workers=1, progress=False)
    assert contents(tmp_path / "store") == contents(tmp_path / "local")


def test_the_manual(text, tmp_path, monkeypatch, capsys):
    """The commands of docs/preparing.md run as they stand, with a smaller vocabulary, and make one store three times."""
    page = (ROOT / "docs" / "preparing.md").read_text()
    (tmp_path / "text").mkdir()
    (tmp_path / "german").mkdir()
    for number in range(3):
        path, _ = text(30, seed=number, name=f"text/{number}.txt")
        (tmp_path / "german" / path.name).write_text(path.read_text().upper())  # as many lines
    (tmp_path / "names.txt").write_text("document number\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for worker processes, where the package is not installed
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```sh\n(.*?)^```", page, flags=re.M | re.S):
        for line in block.splitlines():
            assert main(shlex.split(line.replace("8192", "80"))[1:]) == 0, (line, capsys.readouterr().err)
    assert TokenStore(tmp_path / "store").split("train").channels == ("phrases", "entities")
    shutil.rmtree(tmp_path / "store" / "phrases")
    shutil.rmtree(tmp_path / "store" / "entities")
    (tmp_path / "store" / "annotations.json").unlink()
    stores = [contents(tmp_path / name) for name in ("store", "store-by-beam", "store-by-two")]
    assert stores[0] == stores[1] == stores[2]
    arguments = ["prepare", "text/0.txt", "--tokenizer", "tokenizer", "--out", "other"]
    for wrong, message in ((["--workers", "2", "--runner", "beam"], "--workers is the local runner's"),
                           (["--beam-options", "--runner=X"], "--beam-options goes with --runner beam")):  # fmt: skip
        assert main([*arguments, *wrong]) == 1
        assert message in capsys.readouterr().err


# Refusals


def same_refusal(tmp_path, sources, tokenizer, **options) -> str:
    """Both runners refuse in the same words, and leave what they found."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BertJaxError) as local:
        prepare(sources, tmp_path / "store", tokenizer, workers=1, progress=False, **options)
    with pytest.raises(BertJaxError) as made:
        prepare_with_beam(sources, tmp_path / "store", tokenizer, Recipe(**options))
    assert str(made.value) == str(local.value) and "\n" not in str(local.value)
    assert sorted(tmp_path.rglob("*")) == before
    return str(made.value)


def test_text_that_is_refused(text, tokenizer, tmp_path):
    path, _ = text(200)
    with open(tmp_path / "bad.txt", "wb") as file:
        file.write(path.read_bytes() + b"\n\nword \xff\xfe\n")
    assert "bad.txt: not UTF-8 at byte" in same_refusal(tmp_path, [path, tmp_path / "bad.txt"], tokenizer, heldout=0.1)
    (tmp_path / "a.jsonl").write_text('{"text": "the cat"}\n{"text": "the dog"}\n{"body": "the mat"}\n')
    message = same_refusal(tmp_path, [path, tmp_path / "a.jsonl"], tokenizer, heldout=0.1)
    assert "a.jsonl, line 3: no field 'text'" in message
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    assert "damaged gzip" in same_refusal(tmp_path, [path, tmp_path / "cut.txt.gz"], tokenizer, heldout=0)
    assert "no such file" in same_refusal(tmp_path, [tmp_path / "absent.txt"], tokenizer)
    sources = [path, tmp_path / "bad.txt", tmp_path / "a.jsonl"]
    with pytest.raises(BertJaxError, match=r"bad.txt: not UTF-8 .* \(and 1 other sources are refused\)"):
        prepare_with_beam(sources, tmp_path / "store", tokenizer, Recipe())
    assert not list(tmp_path.glob("store*"))


def test_sides_that_are_empty(text, tokenizer, tmp_path):
    path, _ = text(20)
    assert "keeps none of 20 documents" in same_refusal(tmp_path, [path], tokenizer, heldout=0.0001)
    (tmp_path / "empty.txt").write_text("\n \n\n")
    assert "nothing to prepare" in same_refusal(tmp_path, [tmp_path / "empty.txt"], tokenizer)
    (tmp_path / "only.txt").write_text("\u200b\n\n\x01\n")
    message = same_refusal(tmp_path, [tmp_path / "only.txt"], tokenizer, heldout=0)
    assert "no document with tokens on the train side (2 of 2" in message


def test_what_stands_in_the_way(text, tokenizer, tmp_path):
    path, _ = text(20)
    recipe = Recipe(heldout=0)
    (tmp_path / "store").mkdir()
    assert "exists already" in same_refusal(tmp_path, [path], tokenizer, heldout=0)
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(BertJaxError, match="something other than an unfinished store of this runner"):
        prepare_with_beam([path], tmp_path / "other", tokenizer, recipe)
    assert (tmp_path / "other.partial" / "thesis.txt").read_text() == "mine"
    with locked(tmp_path / "third.partial"), pytest.raises(BertJaxError, match="another run is writing it"):
        prepare_with_beam([path], tmp_path / "third", tokenizer, recipe)
    with pytest.raises(BertJaxError, match="cannot be written"):
        prepare_with_beam([path], path / "store", tokenizer, recipe)


def test_where_workers_cannot_be(text, tokenizer, tmp_path):
    path, _ = text(3)
    with pytest.raises(BertJaxError, match="text.txt: Dataflow's workers do not see this machine's files"):
        prepare_with_beam([path], "store", tokenizer, beam_options=["--runner=DataflowRunner"])
    with pytest.raises(BertJaxError, match="moon://store: Beam cannot reach it"):
        prepare_with_beam([path], "moon://store", tokenizer)
    with pytest.raises(BertJaxError, match="Beam: the job failed: .*NoSuchRunner"):
        prepare_with_beam([path], tmp_path / "store", tokenizer, Recipe(heldout=0), beam_options=["--runner=NoSuchRunner"])
    assert not list(tmp_path.glob("store*"))


def test_a_worker_that_fails(text, tokenizer, tmp_path, monkeypatch):
    path, _ = text(20)

    def fail(self, texts):
        raise ValueError("first line\nthe cause")

    monkeypatch.setattr(stages.Work, "__call__", fail)
    with pytest.raises(BertJaxError, match="Beam: the job failed: .*the cause") as caught:
        prepare_with_beam([path], tmp_path / "store", tokenizer, Recipe(heldout=0))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store*"))


# Interruptions

RUN = """
import sys
from bert_jax import tokenizers
from bert_jax.data import beam
from bert_jax.data.stages import Recipe

if __name__ == "__main__":
    beam.BLOCK = 50_000
    beam.prepare_with_beam(sys.argv[1:2], sys.argv[2], tokenizers.load(sys.argv[3]), Recipe(heldout=0.1))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_store(text, tokenizer, tmp_path, warnings_of, number):
    path, _ = text(8_000)
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "run.py").write_text(RUN)
    out, partial = tmp_path / "store", tmp_path / "store.partial"
    command = [sys.executable, tmp_path / "run.py", path, out, tmp_path / "tokenizer"]
    process = subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(partial.glob("beam/*"))) < 4:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() != 0, "it ended before it could be interrupted: give it more text"
    assert not out.exists()
    assert partial.exists() == (number == signal.SIGKILL)
    if number == signal.SIGKILL:
        for folder in (out, partial):
            with pytest.raises(BertJaxError, match="run the same `prepare` again"):
                TokenStore(folder)
        path, _ = text(50)  # other text: nothing of the earlier run is used
        prepare_with_beam([path], out, tokenizer, Recipe(heldout=0.1))
        assert "begun anew" in " ".join(warnings_of())
        prepare([path], tmp_path / "local", tokenizer, heldout=0.1, workers=1, progress=False)
        assert contents(out) == contents(tmp_path / "local")


# Buckets


class Bucket(LocalFileSystem):
    """``bucket://`` keeps objects, not folders, in a folder of this machine; an object appears when it is closed."""

    root = pathlib.Path()

    @classmethod
    def scheme(cls):
        return "bucket"

    def has_dirs(self):
        return False

    def mkdirs(self, path):
        pass

    def file(self, url: str) -> str:
        assert url.startswith("bucket://")
        return str(self.root / url.removeprefix("bucket://"))

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        return super().create(self.file(path), mime_type, compression_type)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        return super().open(self.file(path), mime_type, compression_type)

    def exists(self, path):
        return pathlib.Path(self.file(path)).is_file()

    def metadata(self, path):
        return FileMetadata(path, pathlib.Path(self.file(path)).stat().st_size)

    def _list(self, prefix):
        for file in sorted(self.root.rglob("*")):
            url = f"bucket://{file.relative_to(self.root).as_posix()}"
            if file.is_file() and url.startswith(prefix):
                yield self.metadata(url)

    def match(self, patterns, limits=None):
        return FileSystem.match(self, patterns, limits)

    def rename(self, source_file_names, destination_file_names):
        for name in destination_file_names:
            pathlib.Path(self.file(name)).parent.mkdir(parents=True, exist_ok=True)
        super().rename(list(map(self.file, source_file_names)), list(map(self.file, destination_file_names)))

    def delete(self, paths):
        for result in self.match(paths):
            for entry in result.metadata_list:
                pathlib.Path(self.file(entry.path)).unlink()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "root", tmp_path / "objects")
    (tmp_path / "objects" / "b").mkdir(parents=True)
    return tmp_path / "objects" / "b"


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(contents(folder))


def test_from_bucket_to_bucket(bucket, kinds, tokenizer, tmp_path):
    for path in (tmp_path / "a.txt", tmp_path / "b.txt.gz", tmp_path / "c.jsonl", tmp_path / "d.txt"):
        shutil.move(path, bucket / path.name)
    recipe = Recipe(heldout=0.2, field="body", shard_tokens=300)
    names = ["bucket://b/*.txt", "bucket://b/b.txt.gz", "bucket://b/c.jsonl"]
    manifest = prepare_with_beam(names, "bucket://b/some/store/", tokenizer, recipe)
    prepare(
        [bucket / "*.txt", bucket / "b.txt.gz", bucket / "c.jsonl"], tmp_path / "local", tokenizer, heldout=0.2, field="body",
        shard_tokens=300, workers=1, progress=False,
    )  # fmt: skip
    assert contents(bucket / "some" / "store") == contents(tmp_path / "local")
    assert files_in(bucket / "some") == [f"store/{name}" for name in files_in(tmp_path / "local")]
    assert TokenStore(bucket / "some" / "store").manifest == manifest
    with pytest.raises(BertJaxError, match="bucket://b/some/store: exists already"):
        prepare_with_beam(names, "bucket://b/some/store", tokenizer, recipe)
    assert contents(bucket / "some" / "store") == contents(tmp_path / "local")


def test_failures_in_a_bucket_leave_nothing(bucket, text, tokenizer, tmp_path):
    path, _ = text(200)
    before = path.read_bytes()
    (bucket / "a.txt").write_bytes(before + b"\n\nword \xff\xfe\n")
    with pytest.raises(BertJaxError, match="bucket://b/a.txt: not UTF-8 at byte"):
        prepare_with_beam(["bucket://b/a.txt"], "bucket://b/store", tokenizer, Recipe())
    with pytest.raises(BertJaxError, match=r"bucket://b/\*.csv: no such file"):
        prepare_with_beam(["bucket://b/*.csv"], "bucket://b/store", tokenizer, Recipe())
    assert files_in(bucket) == ["a.txt"]
    (bucket / "store.partial").mkdir()
    (bucket / "store.partial" / "x").write_bytes(b"")
    with pytest.raises(BertJaxError, match="store.partial: another run is writing it, or was killed"):
        prepare_with_beam(["bucket://b/a.txt"], "bucket://b/store", tokenizer, Recipe())
    assert files_in(bucket) == ["a.txt", "store.partial/x"]
