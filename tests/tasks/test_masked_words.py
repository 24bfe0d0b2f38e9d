"""Masked words and whole sentences, scored: against slow loops over transformers' model, and cloze training."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.fill_mask import fill_mask
from bert_jax.model import Model, load
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks.masked_words import (
    Cloze,
    FillsWords,
    MaskedWords,
    MaskedWordsTask,
    ScoresSentences,
    read_blimp,
    score_minimal_pairs,
    score_paradigms,
)
from bert_jax.tasks.tables import Rows, Table
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from tests.tasks.plain_answers import predict
from tests.tasks.tiny_tasks import finetune

WORDS = "cat dog bird mat sat ran on the red blue one two it was good bad".split()
TOKENIZER = WordPieceTokenizer([*SPECIALS, *WORDS, "##s", ".", ","])
ENCODER = EncoderConfig(
    vocab_size=TOKENIZER.vocab_size, embedding_width=32, hidden_width=32, layers=2, heads=4, ffn_width=48, max_length=24,
    dropout=0.0, attention_dropout=0.0, with_heads=("mlm",),
)
RELATIVE = dataclasses.replace(ENCODER, positions="relative", mlm_transform=False)


@functools.cache
def make_model(config: EncoderConfig = ENCODER) -> Model:
    """Parameters far from the usual 0.02, so that every bias, norm and activation shows."""
    rng = np.random.default_rng(0)
    shapes = jax.jit(lambda key: api.init(config, key))(jax.random.key(0))
    return Model(jax.tree.map(lambda x: np.asarray(x + rng.normal(0, 0.2, x.shape), np.float32), shapes), config, TOKENIZER)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """The same model in PyTorch, as a function from ids to log probabilities [L, V]."""
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers (the torch extra)")
    folder = hf.export(make_model().params, ENCODER, TOKENIZER, tmp_path_factory.mktemp("theirs") / "hf")
    return transformers.BertForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval(), torch


def log_probabilities(theirs, ids) -> np.ndarray:
    model, torch = theirs
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor(np.array(ids))[None].long()).logits[0].double(), -1).numpy()


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice([*WORDS, "cats", ".", "[MASK]"], rng.integers(1, 9))) for _ in range(count)]


def test_sentences_are_scored_as_by_a_slow_loop(theirs):
    """Every token masked alone, the others seen; also a sentence of one token, and a literal [MASK], which is text."""
    pairs = list(zip(sentences(9), sentences(9, seed=1), strict=True))
    scored = score_minimal_pairs(make_model(), pairs, batch_size=8)
    good, bad = zip(*pairs, strict=True)
    for sentence, found in zip(good + bad, [*scored.good, *scored.bad], strict=True):
        ids, _ = TOKENIZER.build(TOKENIZER.encode(sentence).ids)
        wanted = 0.0
        for place in range(1, len(ids) - 1):
            masked = ids.copy()
            masked[place] = TOKENIZER.mask_id
            wanted += log_probabilities(theirs, masked)[place, ids[place]]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert scored.accuracy == np.mean(scored.good > scored.bad) and 0 < scored.accuracy < 1


def test_a_program_for_each_length(monkeypatch):
    """However many sentences: as many traces of the encoder as there are lengths in use."""
    traced, apply = [], api.apply
    monkeypatch.setattr(api, "apply", lambda *args, **rest: traced.append(args[2]["input_ids"].shape) or apply(*args, **rest))
    pairs = [(sentence, sentence) for sentence in sentences(30)]
    score_minimal_pairs(make_model(), pairs, batch_size=16)
    assert sorted(traced) == [(16, 8), (16, 12), (16, 16)]


def test_sentences_are_scored_chunk_by_chunk(monkeypatch):
    """A pair takes many rows: a sixteenth as many texts are read at once as where each is one."""
    taken, pairs = [], np.array([(sentence, sentence) for sentence in sentences(12)])
    encode = ScoresSentences.encode
    monkeypatch.setattr(ScoresSentences, "encode", lambda self, texts: taken.append(len(texts)) or encode(self, texts))
    whole = score_minimal_pairs(make_model(), pairs, batch_size=8)
    assert taken == [12]
    parts = score_minimal_pairs(make_model(), pairs, batch_size=2)
    assert taken[1:] == [4, 4, 4]
    np.testing.assert_allclose(parts.good, whole.good, rtol=1e-5)


def test_rows_of_a_sentence_are_one_array():
    encoded = ScoresSentences(ENCODER, TOKENIZER, 24).encode([("the cat", "one two red"), ("it",)])
    assert encoded.item.tolist() == [0] * 5 + [1] and encoded.rows["sentence"].tolist() == [0, 0, 1, 1, 1, 2]
    assert encoded.rows["position"].tolist() == [1, 2, 1, 2, 3, 1]
    assert encoded.tokens["input_ids"][0] is encoded.tokens["input_ids"][1]
    answers = ScoresSentences(ENCODER, TOKENIZER, 24).answers(
        [("the cat", "one two red"), ("it",)], encoded, {"log_probability": [-1.0, -2, -1, -0.5, -0.25, -4]}
    )
    assert answers == [{"best": 1, "text": "one two red", "log_probabilities": [-3.0, -1.75]},
                       {"best": 0, "text": "it", "log_probabilities": [-4.0]}]


def test_words_are_scored_as_by_a_slow_loop(theirs):
    texts = [("the cat [MASK] on it.", "sat", "ran"), ("[MASK] dog", "the", "one", "two"), ("it was [MASK].", "good")]
    answers, outputs = predict(FillsWords(ENCODER, TOKENIZER, 24), make_model().params, texts, (8, 24), 4)
    for (sentence, *words), answer in zip(texts, answers, strict=True):
        ids, _ = TOKENIZER.build(TOKENIZER.encode(sentence, special=True).ids)
        row = log_probabilities(theirs, ids)[ids.tolist().index(TOKENIZER.mask_id)]
        wanted = [row[TOKENIZER.piece_id(word)] for word in words]
        np.testing.assert_allclose([answer[f"log probability of {word}"] for word in words], wanted, rtol=1e-5)
        best = int(np.argmax(wanted))
        assert answer["word"] == words[best]
        np.testing.assert_allclose(answer["probability"], np.exp(wanted[best]) / np.exp(wanted).sum(), rtol=1e-5)
    assert outputs["log_probabilities"][2][1] < -1e38


def test_relative_positions_are_asked_as_fill_mask_does():
    """XLNet's masks are queries that nobody sees."""
    model, sentence, ordinary = make_model(RELATIVE), "the cat [MASK] on it.", [*WORDS, "##s", ".", ","]
    wanted = {guess.piece: guess.probability for guess in fill_mask(model.params, RELATIVE, TOKENIZER, sentence, top=50)[0]}
    answers, _ = predict(FillsWords(RELATIVE, TOKENIZER, 12), model.params, [(sentence, *WORDS)], (12,))
    found = np.array([answers[0][f"log probability of {word}"] for word in WORDS])
    expected = np.log([wanted[word] for word in WORDS])
    assert len(wanted) == len(ordinary)
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-4)


def test_long_sentences_keep_what_is_near_the_mask(caplog):
    predictor = FillsWords(ENCODER, TOKENIZER, 8)
    with caplog.at_level(logging.WARNING):
        texts = [("cat " * 9 + "it was [MASK] .", "good"), ("[MASK] was it" + " dog" * 9, "good"), ("[MASK]", "bad")]
        encoded = predictor.encode(texts)
    assert "2 of 3 sentences have more than 8 tokens" in caplog.text
    shown = [TOKENIZER.decode(ids) for ids in encoded.tokens["input_ids"]]
    assert shown == ["[CLS] cat cat it was [MASK]. [SEP]", "[CLS] [MASK] was it dog dog dog [SEP]", "[CLS] [MASK] [SEP]"]
    assert [ids[place] for ids, place in zip(encoded.tokens["input_ids"], encoded.rows["position"], strict=True)] == [4] * 3


def make_table(folder, count: int, name: str = "train", seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    rows = [f"the {word} {verb}\t{'pos' if word == 'cat' else 'neg'}"
            for word, verb in zip(rng.choice(["cat", "dog"], count), rng.choice(["ran", "sat"], count), strict=True)]
    (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return Table(str(folder / f"{name}.tsv"), ("text",), "label")


def cloze(table: Table) -> Cloze:
    return Cloze(table, "{0}. It was [MASK].", ("neg", "pos"), ("bad", "good"))


def test_loss_and_gradients_are_those_of_transformers(tmp_path, theirs):
    model, torch = theirs
    source = cloze(make_table(tmp_path, 7))
    task = MaskedWordsTask(MaskedWords(ENCODER, "tiny", source, source, (12,)), make_model())
    batch = next(iter(task.eval_batches(8, None)))  # with an empty row, which weighs nothing
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask", "token_type_ids": "segment_ids"}
    logits = model(**{name: torch.tensor(batch[ours][:7]).long() for name, ours in inputs.items()}).logits
    at_mask = logits[torch.arange(7), torch.tensor(batch["position"][:7]).long()]
    pieces = torch.tensor([TOKENIZER.piece_id("bad"), TOKENIZER.piece_id("good")])
    wanted = torch.nn.functional.cross_entropy(at_mask[:, pieces], torch.tensor(batch["label"][:7]).long())
    model.zero_grad()
    wanted.backward()

    def loss(params):
        return task.loss(params, jax.tree.map(jnp.asarray, batch), None).terms["words_loss"].value

    value, gradients = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, make_model().params))
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    ours = hf.to_tensors(gradients, ENCODER)
    for name, parameter in model.named_parameters():
        reference = parameter.grad.numpy()
        largest = np.abs(reference).max()
        if ".key.bias" in name:  # softmax ignores it: its gradient is zero but for rounding
            assert max(largest, np.abs(ours[name]).max()) < 1e-6
            continue
        np.testing.assert_allclose(ours[name], reference, atol=1e-5 * largest, rtol=0, err_msg=name)


def test_cloze_training(tmp_path):
    data, heldout = cloze(make_table(tmp_path, 150)), cloze(make_table(tmp_path, 30, "dev", 1))
    assert heldout.read().texts[0][1:] == ("bad", "good") and heldout.read().texts[0][0].endswith(". It was [MASK].")
    experiment = Experiment(
        MaskedWords(ENCODER, "tiny", data, heldout, (12,), shapes=1),
        AdamW(learning_rate=5e-3, warmup_steps=5, bias_correction=True),
        TrainConfig(steps=30, batch_size=16, eval_every=30, save_every=30, log_every=10, eval_batches=None),
    )
    found = finetune(experiment, tmp_path / "run", make_model())
    assert found["accuracy"] > 0.95 and found["words_accuracy"] == pytest.approx(found["accuracy"])
    model = load(tmp_path / "run")  # a masked language model still
    guesses = fill_mask(model.params, model.config, model.tokenizer, "the cat ran. It was [MASK].", top=50)[0]
    ranks = [guess.piece for guess in guesses]
    assert ranks.index("good") < ranks.index("bad")


def test_blimp(tmp_path):
    for name, seed in (("one", 0), ("two", 5)):
        pairs = zip(sentences(6, seed), sentences(6, seed + 1), strict=True)
        lines = [{"sentence_good": good, "sentence_bad": bad, "UID": name} for good, bad in pairs]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    paradigms = read_blimp(str(tmp_path))
    scored = score_paradigms(make_model(), paradigms, 16)
    for name, pairs in paradigms.items():
        assert scored[name] == score_minimal_pairs(make_model(), pairs, 16).accuracy
    (tmp_path / "three.jsonl").write_text('{"sentence_good": "x"}\n')
    with pytest.raises(BertJaxError, match="three.jsonl: no JSON lines with sentence_good and sentence_bad"):
        read_blimp(str(tmp_path))
    with pytest.raises(BertJaxError, match="no files"):
        read_blimp(str(tmp_path / "none"))


def test_real_minimal_pairs(data_dir):
    paradigms = read_blimp(str(data_dir / "probes" / "blimp"))
    assert len(paradigms) == 67 and {len(pairs) for pairs in paradigms.values()} == {1_000}
    good, bad = paradigms["adjunct_island"][0]
    assert (good, bad) == ("Who should Derek hug after shocking Richard?", "Who should Derek hug Richard after shocking?")


def test_what_is_refused(tmp_path):
    fills, scores = (kind(ENCODER, TOKENIZER, 8) for kind in (FillsWords, ScoresSentences))
    for texts, message in (
        ([("the cat", "sat")], "has 0 times"), ([("[MASK] [MASK]", "sat")], "has 2 times"), ([("[MASK]",)], "0 words"),
        ([("the [MASK]", "cats")], "'cats' is not one piece"), ([("the [MASK]", "xyz")], "'xyz' is not one piece"),
        ([("the [MASK]", "")], "'' is not one piece"), ([], "no sentences"),
    ):
        with pytest.raises(BertJaxError, match=message):
            fills.encode(texts)
    for texts, message in (([], "no sentences"), ([("it", "")], "row 1: sentence 2 of it has no tokens"),
                           ([("it " * 7,)], "9 tokens, more than 8")):
        with pytest.raises(BertJaxError, match=message):
            scores.encode(texts)
    with pytest.raises(BertJaxError, match="leaves no room"):
        FillsWords(ENCODER, TOKENIZER, 2).encode([("[MASK]", "cat")])
    for pairs, message in (([("it", "it"), ("it", "it " * 23)], "pair 2: sentence 2 of it has 25 tokens, more than 24"),
                           ([("it", "it"), (" ", "it")], "pair 2 is empty"), ([], "no pairs"),
                           ([("it", "it"), ("it", "it", "it")], "pair 2 has 3 texts: the model needs a pair")):
        with pytest.raises(BertJaxError, match=message):
            score_minimal_pairs(make_model(), pairs)
    with pytest.raises(BertJaxError, match="island: pair 2 is empty"):
        score_paradigms(make_model(), {"fine": [("it", "it")], "island": [("it", "it"), ("", "it")]})
    with pytest.raises(BertJaxError, match="no masked-language-model head"):
        score_minimal_pairs(make_model()._replace(params={}), [("it", "it")])
    table = make_table(tmp_path, 4)
    for pattern, words, message in (("{2} [MASK]", ("a", "b"), "pattern"), ("{0} {x}", ("a", "b"), "pattern"),
                                    ("{0}", ("a", "a"), "one of its own"), ("{0}", ("a",), "one of its own")):
        with pytest.raises(BertJaxError, match=message):
            Cloze(table, pattern, ("neg", "pos"), words)
    with pytest.raises(BertJaxError, match="the label 'neg', the cloze has words for no, pos"):
        Cloze(table, "{0} [MASK]", ("no", "pos"), ("bad", "good")).read()
    assert Rows(*cloze(table).read()).labels[0] in ("bad", "good")


@pytest.mark.parametrize("pattern", ["It was [MASK].", "{0.x} [MASK]", "{0[x]} [MASK]", "{{0}} [MASK]"])
def test_patterns_without_their_text_are_refused(pattern):
    with pytest.raises(BertJaxError, match="the pattern"):
        Cloze(Table("x.tsv", ("text",), "label"), pattern, ("a", "b"), ("cat", "dog"))
