"""What a store says about tokens and documents besides the tokens: case, segmented words, languages."""

import json
import re

import numpy as np
import pytest

from bert_jax import tokenizers
from bert_jax.data import stages
from bert_jax.data import store as store_module
from bert_jax.data.prepare import prepare
from bert_jax.data.stages import Recipe, Work
from bert_jax.data.store import Manifest, TokenStore
from bert_jax.errors import BertJaxError
from tests.data.test_prepare import Interrupted, contents


def of_sentence(tokenizer, text: str, **options) -> tuple[list[list[int]], list[int]]:
    """The case of the pieces of every word, and where pieces begin words."""
    made = Work(tokenizer, Recipe(sentences="line", **options))([(text,)])
    starts = (made.tokens & store_module.word_start_bit(made.tokens.dtype)) > 0
    words = np.split(made.channels.get("case", np.empty(0, int)), np.flatnonzero(starts)[1:])
    return [word.tolist() for word in words], starts.astype(int).tolist()


def test_case_is_the_texts_not_the_tokenizers(data_dir):
    uncased = tokenizers.load(data_dir / "vocab" / "bert-base-uncased-vocab.txt")
    text = 'He met "Émile" in eBay-Land, USA: ǅuro 7Up Wolfeschlegel'
    cases, _ = of_sentence(uncased, text, case=True)
    words = re.findall(r"\w+|[^\w\s]", text)
    assert [set(case) for case in cases] == [{int(word[0].isupper() or word[0] == "ǅ")} for word in words]
    assert max(map(len, cases)) > 2 and sum(max(case) for case in cases) == 6
    cased = of_sentence(tokenizers.load(data_dir / "vocab" / "bert-base-chinese-vocab.txt"), "我 Like 你", case=True)[0]
    assert [set(case) for case in cased] == [{0}, {1}, {0}]


def test_case_of_sentencepiece_words(data_dir):
    albert = tokenizers.load(data_dir / "vocab" / "albert-base-v2-spiece.model")
    cases, _ = of_sentence(albert, "The Wolfeschlegel sat,Then", case=True)
    # Punctuation begins a word too, as ALBERT has it, and "then" goes on with it: nothing marks its start.
    assert [set(case) for case in cases] == [{1}, {1}, {0}, {0}] and len(cases[1]) > 2


@pytest.mark.parametrize("vocabulary", ["bert-base-chinese-vocab.txt", "albert-base-v2-spiece.model"])
def test_segmented_words(data_dir, vocabulary):
    tokenizer = tokenizers.load(data_dir / "vocab" / vocabulary)
    text = "使用 语言 模型 来 预测 下一个 词 的 probability 。"
    made, plain = (Work(tokenizer, Recipe(sentences="line", words=words))([(text,)]) for words in ("whitespace", "tokenizer"))
    bit = store_module.word_start_bit(made.tokens.dtype)
    np.testing.assert_array_equal(made.tokens & (bit - 1), plain.tokens & (bit - 1))
    assert np.count_nonzero(made.tokens & bit) == len(text.split())
    joined = "".join((" " if i & bit else "") + tokenizer.piece(int(i & (bit - 1))).strip("▁#") for i in made.tokens)
    if vocabulary.startswith("bert"):
        assert joined.split() == text.split()
        assert np.count_nonzero(plain.tokens & bit) > len(text.split())


def test_blanks_before_and_between(tokenizer):
    _, starts = of_sentence(tokenizer, "  the-cat\u3000sat,on  a.b ", words="whitespace")
    assert starts == [1, 0, 0, 1, 0, 0, 1, 0, 0]


def test_case_in_a_store_is_the_same_however_it_was_made(text, tokenizer, tmp_path, monkeypatch):
    path, documents = text(200)
    options = dict(heldout=0.2, shard_tokens=1500, case=True, progress=False)
    prepare([path], tmp_path / "one", tokenizer, workers=1, **options)
    monkeypatch.setattr(stages, "TASK", 3000)
    prepare([path], tmp_path / "two", tokenizer, workers=2, **options)
    with monkeypatch.context() as patch:
        patch.setattr("bert_jax.data.prepare.Work", Interrupted)
        patch.setattr(Interrupted, "calls", 0)
        with pytest.raises(KeyboardInterrupt):
            prepare([path], tmp_path / "three", tokenizer, workers=1, **options)
    assert list((tmp_path / "three.partial").glob("train/case-*.bin"))
    prepare([path], tmp_path / "three", tokenizer, workers=1, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")
    store = TokenStore(tmp_path / "one")
    assert len(store.manifest.splits["train"].shards) > 3
    capitals = 0
    for split in map(store.split, store.splits):
        assert split.channels == ("case",)
        starts, lengths = split.documents[:-1], np.diff(split.documents)
        case, raw = split.gather_channel("case", starts, lengths), split.gather(starts, lengths)
        assert split.gather_channel("case", split.sentences[:-1], np.ones(len(split.sentences) - 1, int)).all()
        continues = (raw < split.word_start)[1:]
        np.testing.assert_array_equal(case[1:][continues], case[:-1][continues])
        capitals += int(case[raw >= split.word_start].sum())
    assert capitals == sum(map(str.isupper, "".join(documents)))


def test_channels_that_are_not_there(text, tokenizer, tmp_path):
    path, _ = text(5)
    prepare([path], tmp_path / "store", tokenizer, heldout=0, workers=1, progress=False)
    split = TokenStore(tmp_path / "store").split("train")
    assert split.channels == split.languages == () and split.parallel == 0
    np.testing.assert_array_equal(split.document_language, np.zeros(5))
    for name, advice in (("case", "--case"), ("phrases", "--phrases"), ("entities", "--gazetteer"), ("x", "known are case")):
        with pytest.raises(BertJaxError, match=f"no channel '{name}': .*{advice}"):
            split.gather_channel(name, np.array([0]), np.array([1]))


def test_stores_of_format_1_are_read_and_keep_their_identity(text, tokenizer, tmp_path):
    path, _ = text(30)
    prepare([path], tmp_path / "store", tokenizer, heldout=0, workers=1, progress=False)
    file = tmp_path / "store" / "manifest.json"
    fields = json.loads(file.read_text()) | {"format": 1}
    for option in ("case", "words", "parallel"):  # as they were written then
        del fields["options"][option]
    assert not {"channels", "languages", "parallel"} & set(fields)
    old = json.dumps(fields, indent=1, ensure_ascii=False) + "\n"
    file.write_text(old)
    store = TokenStore(tmp_path / "store")
    assert store.manifest.to_json() == old
    assert store.split("train").tokens == sum(len(ids) for ids in [store.split("train").stretch(0, 10**9)])
    assert Manifest.from_json(old) == store.manifest


def test_languages(text, tokenizer, tmp_path):
    paths = {name: text(40, seed=seed, name=f"{name}.txt")[0] for seed, name in enumerate(["de", "en", "zh-cn"])}
    sources = [f"de={paths['de']}", f"en={paths['en']}", f"zh-cn={paths['zh-cn']}", f"de={paths['en']}"]
    made = [prepare(sources, tmp_path / f"{workers}", tokenizer, heldout=0.2, workers=workers, shard_tokens=700, progress=False)
            for workers in (1, 2)]  # fmt: skip
    assert contents(tmp_path / "1") == contents(tmp_path / "2") and made[0] == made[1]
    assert [source.get("language") for source in made[0].sources] == ["de", "en", "zh-cn", "de"]
    store = TokenStore(tmp_path / "1")
    total = np.zeros(3, int)
    for name in store.splits:
        split = store.split(name)
        assert split.languages == ("de", "en", "zh-cn")
        assert len(split.document_language) == len(split.documents) - 1
        total += np.bincount(split.document_language, minlength=3)
        assert (np.diff(split.document_language[: np.searchsorted(split.document_language, 2, side="right")]) >= 0).all()
    assert total.tolist() == [80, 40, 40]
    with pytest.raises(BertJaxError, match=r"zh-cn.txt: no language, where other sources have one: write it as in en="):
        prepare([sources[0], paths["zh-cn"]], tmp_path / "mixed", tokenizer, progress=False)


def test_a_file_may_have_an_equals_sign_in_its_name(text, tokenizer, tmp_path, monkeypatch):
    path, _ = text(5)
    path.rename(tmp_path / "a=b.txt")
    monkeypatch.chdir(tmp_path)
    assert prepare(["a=b.txt"], "store", tokenizer, heldout=0, workers=1, progress=False).languages == ()
    assert prepare(["en=a=b.txt"], "other", tokenizer, heldout=0, workers=1, progress=False).languages == ("en",)


@pytest.mark.parametrize("heldout", [0, 0.3])
def test_other_options_are_refused_by_name(text, tokenizer, tmp_path, heldout):
    path, _ = text(3)
    with pytest.raises(BertJaxError, match="words='jieba': use one of tokenizer, whitespace"):
        prepare([path], tmp_path / "store", tokenizer, words="jieba", heldout=heldout)
