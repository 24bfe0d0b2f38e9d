"""A damaged store is refused in one line, and gathering finds the right tokens in any number of shards."""

import json
import shutil

import numpy as np
import pytest

from bert_jax.data import store as store_module
from bert_jax.data.prepare import prepare
from bert_jax.data.store import Split, TokenStore, token_dtype, word_start_bit
from bert_jax.errors import BertJaxError


@pytest.fixture
def path(text, tokenizer, tmp_path):
    source, _ = text(100)
    prepare([source], tmp_path / "store", tokenizer, heldout=0.2, workers=1, shard_tokens=2000, progress=False)
    return tmp_path / "store"


def refused(path, words, verify=True):
    with pytest.raises(BertJaxError, match=words) as caught:
        TokenStore(path, verify=verify)
    assert "\n" not in str(caught.value)


def test_a_sound_store_opens(path, tokenizer):
    store = TokenStore(path)
    assert store.splits == ("train", "heldout")
    assert store.tokenizer.hash == tokenizer.hash
    assert store.manifest.tokenizer["special_ids"] == [0, 1, 2, 3, 4]
    store.check_tokenizer(tokenizer.hash)


def test_every_file_is_watched(path):
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    assert len(names) > 8
    for name in names:
        whole = (path / name).read_bytes()
        middle = len(whole) // 2
        (path / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        refused(path, f"{name} was changed")
        (path / name).write_bytes(whole[:-1])
        refused(path, f"{name} has .* bytes instead of", verify=False)
        (path / name).unlink()
        refused(path, f"{name} is missing", verify=False)
        (path / name).write_bytes(whole)
    TokenStore(path)


def test_what_is_no_store(path, tmp_path):
    refused(tmp_path / "nowhere", "no such token store")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not a token store .no manifest.json.")
    manifest = path / "manifest.json"
    sound = manifest.read_text()
    for damaged in ("", "{", "[1]", '{"format": 1}', sound[:-100], sound.replace('"documents"', '"document"')):
        manifest.write_text(damaged)
        refused(path, "manifest.json is damaged")
    manifest.write_bytes(b"\xff\xfe")
    refused(path, "manifest.json is damaged")
    manifest.write_text(sound.replace('"format": 2', '"format": 7'))
    refused(path, "store format 7, this version reads 1 and 2: prepare")


def test_tokenizers_that_do_not_match(path, tokenizer):
    with pytest.raises(BertJaxError) as caught:
        TokenStore(path).check_tokenizer("abc123")
    assert tokenizer.hash in str(caught.value)
    assert "abc123" in str(caught.value)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["tokenizer"]["hash"] = "0123"
    (path / "manifest.json").write_text(json.dumps(manifest))
    refused(path, f"its tokenizer folder holds {tokenizer.hash}, but its tokens were made with 0123")


def test_a_store_can_be_moved(path, tmp_path):
    shutil.copytree(path, tmp_path / "elsewhere")
    shutil.rmtree(path)
    assert isinstance(TokenStore(tmp_path / "elsewhere").split("train"), Split)


def test_slow_verification_shows_progress(path, monkeypatch, capsys):
    shown, leave = [], store_module.Progress.__exit__

    def exit(self, *raised):
        shown.append((self._done, self._total))
        leave(self, *raised)  # else its thread says every quarter of a minute how far it is, in the tests to come

    monkeypatch.setattr(store_module.Progress, "__exit__", exit)
    TokenStore(path)
    ((done, total),) = shown
    assert done == total > 0


@pytest.mark.parametrize("shards", [1, 2, 7, 60])
def test_gather(random_split, shards):
    split = random_split(count=60, shards=shards)
    rng = np.random.default_rng(0)
    document = rng.integers(60, size=300)
    starts = rng.integers(split.documents[document], split.documents[document + 1])
    lengths = rng.integers(0, split.documents[document + 1] - starts + 1)
    found = split.gather(starts, lengths)
    expected = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]) + 10
    np.testing.assert_array_equal(found & (split.word_start - 1), expected)
    assert len(split.gather(starts[:0], lengths[:0])) == 0


@pytest.mark.parametrize(("vocab_size", "bits"), [(30_522, 16), (32_768, 16), (32_769, 32), (250_000, 32)])
def test_the_word_start_bit_is_free(vocab_size, bits):
    dtype = token_dtype(vocab_size)
    assert dtype.itemsize * 8 == bits
    assert vocab_size - 1 < word_start_bit(dtype) <= np.iinfo(dtype).max
