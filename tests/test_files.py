"""Small files are whole or not there, JSON is read with one line where something is wrong, folders have one writer."""

import errno
import json
import os

import pytest

from bert_jax.errors import BertJaxError
from bert_jax.files import check_local, locked, put_in_place, read_json, write_json, write_whole


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_json(path, {"seed": 0, "label": "größer"})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"seed": 1})
    assert read_json(path) == {"seed": 0, "label": "größer"} and "größer" in path.read_text("utf-8")


def test_half_an_emoji_is_written_as_json_has_it(tmp_path):
    """Annotation tools that count in UTF-16 cut them; a run of hours must not end at its last file for that."""
    write_json(tmp_path / "x.json", {"label": "\ud83d", "whole": "\U0001f600"})
    assert read_json(tmp_path / "x.json") == {"label": "\ud83d", "whole": "\U0001f600"}
    write_whole(tmp_path / "x.tsv", "a\t\ud83d\n")
    assert (tmp_path / "x.tsv").read_bytes() == b"a\t\\ud83d\n"


@pytest.mark.parametrize(("content", "said"), [
    (b"{", "x.json is not JSON: "), (b'{"a": "\xff"}', "x.json is not JSON: "), (b"[" * 100_000, "x.json is not JSON: "),
    (b"[1]", "x.json: a JSON object is needed, this is a list"), (None, "x.json cannot be read: No such file"),
])
def test_what_is_no_json_object_is_said_in_a_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BertJaxError, match=said) as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_a_list_where_one_is_wanted(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([1]))
    assert read_json(tmp_path / "x.json", list) == [1]
    write_json(tmp_path / "x.json", {})
    with pytest.raises(BertJaxError, match="a JSON list is needed, this is a dict"):
        read_json(tmp_path / "x.json", list)


@pytest.mark.parametrize("path", ["gs://bucket/run", "gs:/bucket/run", "s3://b", "hdfs://h/x", "file:///x"])
def test_an_address_is_no_folder(path):
    with pytest.raises(BertJaxError, match=f"{path}: an address is no folder of this machine: mount the bucket"):
        check_local(path)


@pytest.mark.parametrize("path", ["runs/x", "/runs/x", "runs/a:b", "./gs://x", "c:x", "x@200#generator"])
def test_a_folder_is_no_address(path):
    check_local(path)


def test_one_writer_at_a_time(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(BertJaxError, match="run: another run is writing it"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def none(handle, operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_a_mounted_bucket_renames_no_folder(tmp_path, monkeypatch):
    """File by file then, and the one that says that all is there comes last."""
    partial, order = tmp_path / "store.partial", []
    (partial / "train").mkdir(parents=True)
    for name in ("a", "manifest.json", "train/b"):
        (partial / name).write_text(name)

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    replace = os.replace
    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(os.path.basename(new)), replace(old, new)))
    put_in_place(partial, tmp_path / "store", "manifest.json")
    assert {p.name: p.read_text() for p in (tmp_path / "store").rglob("*") if p.is_file()} == {
        "a": "a", "b": "train/b", "manifest.json": "manifest.json"}
    assert order[-1] == "manifest.json" and not partial.exists()
    partial.mkdir()
    with pytest.raises(OSError, match="not supported"):
        put_in_place(partial, tmp_path / "store")
