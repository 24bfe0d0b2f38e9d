"""Documents come out whole, in order, from every kind of source; wrong ones are refused with file and place."""

import gzip
import json
import subprocess
import sys

import pytest

from bert_jax.data import sources
from bert_jax.data.sources import Corpus
from bert_jax.errors import BertJaxError


@pytest.mark.parametrize(
    ("documents", "content", "expected"),
    [
        ("blank", "a\nb\n\n\n \nc\n", ["a\nb", "c"]),
        ("file", "a\n\nb\n", ["a\n\nb\n"]),
        ("line", "a\n\nb\n", ["a", "b"]),
        ("formfeed", "a\n\nb\n\f\nc\fd", ["a\n\nb\n", "\nc", "d"]),
        ("prefix:# doc:", "# doc: x\na\n\n# doc: y\nb # doc: c\n", ["a\n", "b # doc: c\n"]),
    ],
)
def test_where_documents_begin(tmp_path, documents, content, expected):
    (tmp_path / "a.txt").write_text(content)
    found = list(Corpus([tmp_path / "a.txt"], documents=documents))
    assert [document.rstrip("\n") for document in found] == [document.rstrip("\n") for document in expected]


def test_small_blocks_give_the_same_documents(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffzwölf Löwen\r\n\r\n日本語。\r\nのぶん\n\nend".encode())
    expected = ["zwölf Löwen", "日本語。\nのぶん", "end"]
    for block in (1 << 20, 7, 1):
        monkeypatch.setattr(sources, "BLOCK", max(block, 3))
        assert list(Corpus([path])) == expected


def test_globs_are_sorted_and_gzip_is_read(tmp_path):
    for name in ("b", "a", "c"):
        with gzip.open(tmp_path / f"{name}.txt.gz", "wt") as file:
            file.write(f"from {name}\n")
    corpus = Corpus([str(tmp_path / "*.gz")])
    assert list(corpus) == list(corpus) == ["from a", "from b", "from c"]
    assert corpus.position == corpus.total_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_jsonl(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        for i in range(3):
            file.write(json.dumps({"text": f"text {i}\n\nmore", "body": f"body {i}"}) + "\n\n")
    assert list(Corpus([tmp_path / "a.jsonl.gz"])) == [f"text {i}\n\nmore" for i in range(3)]
    assert list(Corpus([tmp_path / "a.jsonl.gz"], field="body")) == [f"body {i}" for i in range(3)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "line 2: not JSON"),
        ('{"body": "x"}', "line 2: no field 'text': choose one of body"),
        ('{"text": 3}', "line 2: field 'text' is a int"),
        ('{"text": "\\ud800"}', "line 2: field 'text' is not Unicode"),
        ("[1]", "line 2: a list where"),
        ("[" * 100_000, "line 2: "),
    ],
)
def test_wrong_json(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(BertJaxError, match="a.jsonl, " + words) as caught:
        list(Corpus([tmp_path / "a.jsonl"]))
    assert "\n" not in str(caught.value)


def test_binary_and_other_encodings_name_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 64)
    good = b"a line of text\n" * 20
    (tmp_path / "latin.txt").write_bytes(good + "früh\n".encode("latin-1") + good)
    (tmp_path / "junk.txt").write_bytes(good + b"\x00\x01\x02" + good)
    with pytest.raises(BertJaxError, match=f"latin.txt: not UTF-8 at byte {len(good) + 2} .0xfc."):
        list(Corpus([tmp_path / "latin.txt"]))
    with pytest.raises(BertJaxError, match=f"junk.txt: binary, not text: a zero byte at byte {len(good)}"):
        list(Corpus([tmp_path / "junk.txt"]))


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(b"some text\n" * 10_000)
    (tmp_path / "cut.txt.gz").write_bytes(whole[:-20])
    (tmp_path / "not.txt.gz").write_bytes(b"some text")
    for name in ("cut", "not"):
        with pytest.raises(BertJaxError, match=f"{name}.txt.gz: a damaged gzip file"):
            list(Corpus([tmp_path / f"{name}.txt.gz"]))


def test_what_cannot_be_found(tmp_path):
    for spec, words in [
        (tmp_path / "no.txt", "no such file"),
        (tmp_path / "*.txt", "no file matches"),
        (tmp_path, "a folder: name the files"),
        ("tfds:no_such_data_set", "not a TFDS data set on disk"),
    ]:
        with pytest.raises(BertJaxError, match=words):
            Corpus([spec])
    with pytest.raises(BertJaxError, match="no source"):
        Corpus([])
    for documents in ("paragraph", "prefix:"):
        with pytest.raises(BertJaxError, match="documents="):
            Corpus([__file__], documents=documents)


def test_documents_beyond_the_limit_are_cut_loudly(tmp_path, monkeypatch, warnings_of):
    monkeypatch.setattr(sources, "MAX_DOCUMENT", 1000)
    monkeypatch.setattr(sources, "BLOCK", 64)
    lines = [f"line {i} of a long document" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    found = list(Corpus([tmp_path / "a.txt"], documents="file"))
    assert "\n".join(found) == "\n".join(lines)
    assert max(map(len, found)) <= 1000
    assert "documents=file" in warnings_of()[0]


def test_a_line_beyond_the_limit_is_cut_between_characters(tmp_path, monkeypatch, warnings_of):
    monkeypatch.setattr(sources, "MAX_DOCUMENT", 1000)
    monkeypatch.setattr(sources, "BLOCK", 64)
    line = "añ日😀" * 1000
    (tmp_path / "a.txt").write_text(line)
    assert "".join(Corpus([tmp_path / "a.txt"], documents="file")).replace("\n", "") == line
    assert "cut at byte" in warnings_of()[0]


BUILDER = """
import sys
import tensorflow_datasets as tfds

class TinyText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, download):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"text": f"Document {i} of {count}. \\u00fcber."}

TinyText(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def test_tfds_without_tensorflow(tmp_path, monkeypatch):
    """Written by another process, so that only what lies on disk is known here, as with a data set made elsewhere."""
    subprocess.run([sys.executable, "-c", BUILDER, tmp_path], check=True, capture_output=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    whole = list(Corpus(["tfds:tiny_text"]))
    assert sorted(whole) == [f"Document {i} of 5. über." for i in range(5)]
    assert whole == list(Corpus(["tfds:tiny_text:1.0.0:train"]))
    assert list(Corpus(["tfds:tiny_text:train[:2]"])) == whole[:2]
    assert len(list(Corpus(["tfds:tiny_text:test"]))) == 2
    with pytest.raises(BertJaxError, match="no split 'dev': choose one of test, train"):
        Corpus(["tfds:tiny_text:dev"])
    with pytest.raises(BertJaxError, match="record 0: no field 'body': choose one of text"):
        list(Corpus(["tfds:tiny_text"], field="body"))
    with pytest.raises(BertJaxError, match="not on disk at .*tfds build"):
        Corpus(["tfds:ag_news_subset"])
    info = tmp_path / "tiny_text" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(BertJaxError, match="on disk as tfrecord, which only TensorFlow reads"):
        Corpus(["tfds:tiny_text"])


def test_reading_text_imports_no_framework():
    code = "import bert_jax.data.prepare, bert_jax.data.pairs, bert_jax.data.store, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "numpy" in loaded
    assert not {"jax", "flax", "tensorflow", "torch", "grain", "tensorflow_datasets"} & set(loaded)


def test_names_that_mislead(tmp_path, caplog):
    """gzip under another name, .GZ, and one file twice."""
    content = gzip.compress(b"one\n\ntwo\n")
    (tmp_path / "a.TXT.GZ").write_bytes(content)
    (tmp_path / "b.txt").write_bytes(content)
    assert list(Corpus([tmp_path / "a.TXT.GZ"])) == ["one", "two"]
    with pytest.raises(BertJaxError, match="b.txt: compressed by gzip: give it a name that ends in .gz"):
        list(Corpus([tmp_path / "b.txt"]))
    assert not caplog.records
    assert list(Corpus([tmp_path / "a.TXT.GZ", f"{tmp_path}/*.GZ"])) == ["one", "two"] * 2
    assert "a.TXT.GZ is given 2 times" in caplog.text


@pytest.mark.parametrize(("name", "content", "words"), [
    ("wiki_00", b'{"id": "1", "text": "a"}\n{"id": "2", "text": "b"}\n', r"wiki_00: JSON lines, .* ends in .jsonl"),
    ("a.txt", b"BZh91AY&SY", "a.txt: compressed by bzip2: decompress it"),
    ("a.txt", b"\x28\xb5\x2f\xfd\x00", "compressed by zstd"),
    ("a.txt", "a".encode("utf-16"), "a.txt: UTF-16, by its first bytes: convert it to UTF-8"),
    ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", "a.jsonl, line 1: not JSON"),
])
def test_what_is_no_text_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BertJaxError, match=words):
        list(Corpus([tmp_path / name]))


def test_braces_are_text_where_they_are_no_record(tmp_path):
    (tmp_path / "a.txt").write_text('{"other": 1}\n{ a } and b\n')
    assert list(Corpus([tmp_path / "a.txt"])) == ['{"other": 1}\n{ a } and b']


def test_line_ends_of_records_are_those_of_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one\r\ntwo"}) + "\n")
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    assert list(Corpus([tmp_path / "a.jsonl"])) == list(Corpus([tmp_path / "a.txt"])) == ["one\ntwo"]


def test_an_address_is_not_looked_for_on_this_machine():
    with pytest.raises(BertJaxError, match="gs://b/.* an address is no folder of this machine"):
        Corpus(["gs://b/*.jsonl.gz"])
