"""Tags of words: alignment with pieces, windows, the loss and gradients of transformers, the scores of seqeval."""

import dataclasses
import functools
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.model import Model, load, save
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks.columns import Columns, to_iob2
from bert_jax.tasks.tables import Rows
from bert_jax.tasks.tagging import Tagging, TaggingTask, Tags, pieces_of_words, scores, spans, windows
from bert_jax.tokenizers.pipeline import PipelineTokenizer
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from tests.tasks.plain_answers import predict
from tests.tasks.tiny_tasks import finetune

LETTERS = "abcdefgh"
TOKENIZER = WordPieceTokenizer([*SPECIALS, *LETTERS, *(f"##{c}" for c in LETTERS), *"我爱北京😀.,", "ab", "##cd"])
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ENCODER = EncoderConfig(
    vocab_size=TOKENIZER.vocab_size, embedding_width=32, hidden_width=32, layers=2, heads=4, ffn_width=48, max_length=24,
    dropout=0.0, attention_dropout=0.0, with_heads=("tagger",), labels=LABELS,
)
# Letters, ideographs, emoji (one of several characters), combining marks, what tokenizers drop, and blanks of other kinds.
CHARACTERS = [
    *"abcdxyz我爱北京😀.,'ÉéＡß½", "\U0001f469\u200d\U0001f680", "\U0001f1e9\U0001f1ea", "e\u0301", "\u0301", "\u200d",
    "\u200b", "\u00ad", "\ufe0f", "\u0915\u094d\u0937\u093f", "\u0e01\u0e33", "\u00a0",
]
WORDS = st.lists(st.sampled_from(CHARACTERS), min_size=1, max_size=6).map("".join).filter(str.strip)


@pytest.fixture(scope="module")
def byte_level():
    """Byte-level pieces, in which a blank belongs to the word behind it: RoBERTa's kind."""
    model = library.Tokenizer(library.models.BPE())
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(["ab cd ab cd 我爱 北京 abcd"] * 3, trainer)
    model.post_processor = library.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return PipelineTokenizer(model.to_str().encode(), settings=names)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=6).map(tuple), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_pieces_are_those_of_the_word_alone(sentences):
    """WordPiece looks at nothing beyond a word: the same pieces, one at a time; nothing of it known: the unknown piece."""
    for words, parts in zip(sentences, pieces_of_words(TOKENIZER, sentences), strict=True):
        alone = [ids.tolist() or [TOKENIZER.unk_id] for ids in TOKENIZER.encode_batch(words)]
        assert [part.tolist() for part in parts] == alone


@given(words=st.lists(WORDS, min_size=1, max_size=6).map(tuple))
@settings(max_examples=150, deadline=None)
def test_bytes_of_a_word_are_its_own(byte_level, words):
    parts, = pieces_of_words(byte_level, [words])
    assert [byte_level.decode(part).strip() for part in parts] == [word.strip() for word in words]
    assert np.concatenate(parts).tolist() == byte_level.encode(" ".join(words)).ids.tolist()
    assert all("Ġ" in byte_level.piece(part[0]) for part in parts[1:])  # as in running text, not as at its begin


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12))
def test_windows_hold_every_word_once(sizes, room):
    found = windows(sizes, room)
    assert [k for first, beyond in found for k in range(first, beyond)] == list(range(len(sizes)))
    filled = [sum(min(size, room) for size in sizes[first:beyond]) for first, beyond in found]
    assert all(0 < size <= room for size in filled)
    for (_, beyond), size in zip(found, filled, strict=True):  # no window could have taken the next word too
        assert beyond == len(sizes) or size + min(sizes[beyond], room) > room


def test_long_sentences_lose_nothing(caplog):
    sentence = tuple("abcd ab 我 abab cd".split())  # 2 + 1 + 1 + 3 + 2 pieces
    encoded = Tags(ENCODER, TOKENIZER, 6).encode([("a",), sentence, ("b",)])
    assert encoded.item.tolist() == [0, 1, 1, 1, 2] and not caplog.records
    assert [TOKENIZER.decode(ids) for ids in encoded.tokens["input_ids"]][1:4] == [
        "[CLS] abcd ab 我 [SEP]", "[CLS] abab [SEP]", "[CLS] cd [SEP]",
    ]
    assert [starts.nonzero()[0].tolist() for starts in encoded.tokens["word_starts"]][1:4] == [[1, 3, 4], [1], [1]]
    table, tags = Columns("x"), ("B-PER", "I-PER", "O", "B-LOC", "O")
    task = make_task(6)
    labelled = task.labelled(encoded, Rows([("a",), sentence, ("b",)], [("O",), tags, ("O",)]), table)
    shown = [labels.tolist() for labels in labelled.tokens["labels"]]
    assert shown[1:4] == [[-1, 1, -1, 2, 0, -1], [-1, 3, -1, -1, -1], [-1, 0, -1, -1]]
    with caplog.at_level(logging.WARNING):
        cut = Tags(ENCODER, TOKENIZER, 6).encode([("a", "abababab")])
    assert "1 words have more than 4 pieces" in caplog.text and len(cut.tokens["input_ids"][1]) == 6


@functools.cache
def make_model() -> Model:
    """Parameters far from the usual 0.02, so that every bias, norm and activation shows."""
    rng = np.random.default_rng(0)
    shapes = jax.jit(lambda key: api.init(ENCODER, key))(jax.random.key(0))
    params = jax.tree.map(lambda x: np.asarray(x + rng.normal(0, 0.2, x.shape), np.float32), shapes)
    return Model(params, ENCODER, TOKENIZER)


def make_task(length: int = 24, **changes) -> TaggingTask:
    config = Tagging(ENCODER, "tiny", Columns("x"), Columns("x"), (length,), **changes)
    return TaggingTask(config, make_model())


def make_rows(count: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    texts = [tuple(rng.choice(["ab", "abcd", "我爱", "c", "😀", "dd,", "e"], rng.integers(1, 6))) for _ in range(count)]
    return Rows(texts, [tuple(rng.choice(LABELS, len(text))) for text in texts])


def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="the reference is transformers (the torch extra)")
    task, rows = make_task(), make_rows(7)
    model = make_model()
    task.__dict__["evaluation"] = task.labelled(task.predictor.encode(rows.texts), rows, task.config.data)
    batch = next(iter(task.eval_batches(8, None)))  # with an empty row, which weighs nothing
    hf.export(model.params, ENCODER, TOKENIZER, tmp_path / "theirs")
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "theirs", attn_implementation="eager")
    theirs.eval()
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask", "token_type_ids": "segment_ids"}
    wanted = theirs(
        **{name: torch.tensor(batch[ours][:7]).long() for name, ours in inputs.items()},
        labels=torch.tensor(np.where(batch["labels"] < 0, -100, batch["labels"])[:7]).long(),
    ).loss
    wanted.backward()

    def loss(params):
        return task.loss(params, jax.tree.map(jnp.asarray, batch), None).terms["tagger_loss"].value

    value, gradients = jax.jit(jax.value_and_grad(loss))(jax.tree.map(jnp.asarray, model.params))
    np.testing.assert_allclose(value, wanted.item(), rtol=1e-5)
    ours = hf.to_tensors(gradients, ENCODER)
    for name, parameter in theirs.named_parameters():
        reference = parameter.grad.numpy()
        largest = np.abs(reference).max()
        if ".key.bias" in name:  # softmax ignores it: its gradient is zero but for rounding
            assert max(largest, np.abs(ours[name]).max()) < 1e-6
            continue
        np.testing.assert_allclose(ours[name], reference, atol=1e-5 * largest, rtol=0, err_msg=name)


def test_pipeline_of_an_exported_directory_has_the_same_tags(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the reference (the torch extra)")
    model, rows = make_model(), make_rows(40)
    save(model, tmp_path / "hf")
    answers, _ = predict(Tags(ENCODER, TOKENIZER, 24), model.params, rows.texts, (8, 24), 8)
    theirs = transformers.pipeline("token-classification", str(tmp_path / "hf"), ignore_labels=[])
    for words, answer in zip(rows.texts, answers, strict=True):
        begins = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
        by_begin = {found["start"]: found["entity"] for found in theirs(" ".join(words))}
        assert [by_begin[begin] for begin in begins] == answer["tags"]
    assert len({tag for answer in answers for tag in answer["tags"]}) > 2
    assert any(answer["entities"] for answer in answers)


TAGS = st.lists(st.sampled_from(LABELS), min_size=1, max_size=12)


@given(TAGS)
def test_spans_are_those_of_seqeval(tags):
    labeling = pytest.importorskip("seqeval.metrics.sequence_labeling", reason="the finetune extra")
    assert spans(tags) == labeling.get_entities(tags)


def test_scores_are_those_of_the_libraries():
    seqeval = pytest.importorskip("seqeval.metrics", reason="the reference is seqeval (the finetune extra)")
    sklearn = pytest.importorskip("sklearn.metrics", reason="the reference is scikit-learn (the finetune extra)")
    rng = np.random.default_rng(0)
    for _ in range(10):
        sizes = rng.integers(1, 12, 30)
        wanted, found = ([tuple(rng.choice(LABELS, size)) for size in sizes] for _ in range(2))
        lists = [list(map(list, one)) for one in (wanted, found)]
        ours = scores(wanted, found, LABELS)
        assert ours["f1"] == seqeval.f1_score(*lists) and ours["precision"] == seqeval.precision_score(*lists)
        assert ours["recall"] == seqeval.recall_score(*lists) and 0 < ours["f1"] < 1
        assert np.isclose(ours["accuracy"], sklearn.accuracy_score(sum(lists[0], []), sum(lists[1], [])))
        assert scores(wanted, wanted, LABELS) == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert scores([("O", "B-PER")], [("O", "O")], LABELS)["f1"] == 0
    assert scores([("NOUN", "VERB")], [("NOUN", "NOUN")], ("NOUN", "VERB")) == {"accuracy": 0.5}


def test_which_scores_there_are_is_the_labels_matter():
    """Not that of what happens to be predicted: seeds would have different ones, and no table."""
    pytest.importorskip("seqeval.metrics", reason="the finetune extra")
    task, rows = make_task(), Rows([("a", "b")], [("O", "O")])
    without, some = (task.score(rows, [{"tags": tags}], {}) for tags in (["O", "O"], ["O", "B-LOC"]))
    assert without == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0} and list(some) == list(without)


def test_evaluation_puts_windows_and_batches_together(tmp_path):
    """A perfect tagger scores 1, in whatever order and windows its rows came."""
    rows, task = make_rows(23), make_task(8)
    path, table = tmp_path / "x", Columns(str(tmp_path / "x"))
    task.config = dataclasses.replace(task.config, data=table, heldout=table)
    sentences = zip(rows.texts, map(to_iob2, rows.labels), strict=True)
    path.write_text("\n\n".join("\n".join(map("\t".join, zip(*pair, strict=True))) for pair in sentences))
    outputs: dict = {"tags": [], "example": []}
    for batch in task.eval_batches(4, None):
        outputs["tags"].extend(np.maximum(batch["labels"], 0))
        outputs["example"].extend(batch["example"])
    assert len(task.evaluation.item) > 23
    assert task.scores(outputs) == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    outputs["tags"] = [np.zeros_like(tags) for tags in outputs["tags"]]
    assert task.scores(outputs)["recall"] == 0


def test_tagging_learns(tmp_path):
    rng, tag_of = np.random.default_rng(0), {"ab": "B-PER", "cd": "B-LOC", "e": "O", "我": "O"}
    for name, count in (("train", 200), ("dev", 40)):
        sentences = [rng.choice([*tag_of], rng.integers(1, 9)) for _ in range(count)]
        (tmp_path / name).write_text("\n\n".join("\n".join(f"{w}\t{tag_of[w]}" for w in words) for words in sentences))
    data, heldout = (Columns(str(tmp_path / name)) for name in ("train", "dev"))
    encoder = dataclasses.replace(ENCODER, labels=data.labels())
    start = make_model()._replace(params={name: tree for name, tree in make_model().params.items() if name != "tagger"})
    experiment = Experiment(
        Tagging(encoder, "tiny", data, heldout, (16,), shapes=1),
        AdamW(learning_rate=5e-3, warmup_steps=5, bias_correction=True),
        TrainConfig(steps=40, batch_size=16, eval_every=40, save_every=40, log_every=20, eval_batches=None),
    )
    found = finetune(experiment, tmp_path / "run", start)
    assert found["f1"] > 0.95 and found["tagger_accuracy"] > 0.95 and found["accuracy"] > 0.95
    model = load(tmp_path / "run")
    answers, _ = predict(Tags(model.config, model.tokenizer, 16), model.params, [("e", "ab", "cd")], (16,))
    assert answers == [{"tags": ["O", "B-PER", "B-LOC"], "entities": [
        {"text": "ab", "label": "PER", "first": 1, "last": 1}, {"text": "cd", "label": "LOC", "first": 2, "last": 2},
    ]}]


def test_what_is_refused():
    task = make_task()
    encoded = task.predictor.encode([("a", "b")])
    with pytest.raises(BertJaxError, match="x: sentence 1 has 2 words and 1 tags"):
        task.labelled(encoded, Rows([("a", "b")], [("O",)]), Columns("x"))
    with pytest.raises(BertJaxError, match="x: sentence 1 has the tag 'B-ORG', task.encoder.labels are O, B-PER"):
        task.labelled(encoded, Rows([("a", "b")], [("O", "B-ORG")]), Columns("x"))
    for sentences, message in (([], "no sentences"), ([("a",), ()], "sentence 2 has no words"), ([("a", " ")], "empty word")):
        with pytest.raises(BertJaxError, match=message):
            task.predictor.encode(sentences)
    with pytest.raises(BertJaxError, match="leaves no room"):
        Tags(ENCODER, TOKENIZER, 2).encode([("a",)])
    with pytest.raises(BertJaxError, match="'NOUN' beside B- and I-"):
        Tagging(dataclasses.replace(ENCODER, labels=("O", "B-X", "NOUN")), "tiny", Columns("x"), Columns("x"), (8,))
    with pytest.raises(BertJaxError, match="two or more"):
        Tagging(dataclasses.replace(ENCODER, labels=("O",)), "tiny", Columns("x"), Columns("x"), (8,))


def test_who_only_predicts_needs_no_seqeval(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval", None)
    task, rows = make_task(), Rows([("a", "b")], [("O", "B-PER")])
    assert "entities" in predict(task.predictor, make_model().params, rows.texts, (24,))[0][0]
    with pytest.raises(BertJaxError, match=r"bert_jax\[finetune\]"):
        task.labelled(task.predictor.encode(rows.texts), rows, Columns("x"))
