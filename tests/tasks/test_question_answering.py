"""Extractive question answering: windows, labels, spans as exact characters, loss and gradients, runs that learn."""

import dataclasses
import functools
import json
import logging
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import tokenizers
from bert_jax.convert import hf
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tasks import finetuning_task
from bert_jax.tasks import question_answering as qa
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.batches import Encoded, EvalBatches
from bert_jax.tasks.question_answering import BEGINS, ENDS, NOWHERE, NULL, AnswersQuestions, QuestionAnswering
from bert_jax.tasks.squad import Answer, Gold, Squad
from bert_jax.tasks.tables import Rows
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from tests.tasks.plain_answers import predict
from tests.tasks.tiny_tasks import finetune

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = "\u0301\u0308\u0323"
PIECES = [*SPECIALS, *LETTERS, *(f"##{c}" for c in LETTERS + MARKS), "北", "京", "##京", "?", ".", "🙂", "🏴", "🇩", "🇫",
          "##🇩", "##🇪", "##🇫", "##🇷"]
UNCASED = WordPieceTokenizer(PIECES)
CASED = WordPieceTokenizer([*PIECES, *LETTERS.upper(), *MARKS], lowercase=False, strip_accents=False)
ENCODER = EncoderConfig(
    vocab_size=UNCASED.vocab_size, embedding_width=32, hidden_width=32, layers=2, heads=4, ffn_width=48, max_length=128,
    with_heads=("span",), dropout=0.0, attention_dropout=0.0,
)


def predictor(tokenizer=UNCASED, length=64, **fields) -> AnswersQuestions:
    fields = {"stride": 8, "question_tokens": 8, "answer_tokens": 40} | fields
    encoder = dataclasses.replace(ENCODER, vocab_size=tokenizer.vocab_size, max_length=max(length, 16))
    return AnswersQuestions(encoder, tokenizer, length, **fields)


def task(rows: Rows | None = None, tokenizer=UNCASED, encoder=ENCODER, **fields):
    """A task without files: its rows are given."""
    source = Squad("memory")
    fields = {"lengths": (32, 64), "stride": 8, "question_tokens": 8, "answer_tokens": 40} | fields
    encoder = dataclasses.replace(encoder, vocab_size=tokenizer.vocab_size)
    config = QuestionAnswering(encoder, "memory", source, source, **fields)
    made = finetuning_task(config, Model({}, encoder, tokenizer))
    if rows is not None:
        made.evaluation = made.labelled(made.predictor.encode(rows.texts), rows, source)
        made.heldout = rows
    return made


@functools.cache
def compiled(answer_tokens: int):
    made = predictor(answer_tokens=answer_tokens)
    return jax.jit(lambda logits, batch: made.outputs(api.Outputs(None, None, {"span": logits}, {}), batch))


def perfect(made: AnswersQuestions, encoded: Encoded, labels: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The outputs of a model that is sure of the labels."""
    outputs = {"characters": [], "score": [], "null_score": [], "example": []}
    found = compiled(made.answer_tokens)
    for batch in EvalBatches(encoded._replace(rows={"span_label": labels}), (made.length,), 64, None, 0, None):
        logits = np.zeros((*batch["input_ids"].shape, 2), np.float32)
        for row, span in enumerate(batch["span_label"]):
            if span[0] >= 0:
                logits[row, span[0], 0] = logits[row, span[1], 1] = 10
        for name, values in (found(logits, batch) | {"example": batch["example"]}).items():
            outputs[name].extend(np.asarray(values)[batch["example"] >= 0])
    order = np.argsort(outputs.pop("example"))
    return {name: [rows[k] for k in order] for name, rows in outputs.items()}


def recovered(texts, golds, tokenizer, **fields) -> list[dict]:
    """What perfect logits come to."""
    made = task(Rows(texts, golds), tokenizer, **fields)
    labels = made.evaluation.rows["span_label"]
    return made.predictor.answers(texts, made.evaluation, perfect(made.predictor, made.evaluation, labels))


ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"  # a black flag, and tags that name another

# Words that every tokenizer here takes as whole ones, or character by character; and what may be between them.
WORDS = [
    "cafe\u0301", "Zu\u0308rich", "a\u0323\u0301b", "北", "京", "🙂", "👍🏽", "👩\u200d🚀", "❤\ufe0f", "x\u200by", "Ǆ", "ﬁn",
    "İ", "?", "über", "ab", "文", "𠀀", ENGLAND, "🇩🇪", "🇫🇷🇩🇪", "ab\u200f", "\u202bab\u202c", "\u0601ab", "ab\u200c",
]
SPACES = [" ", "  ", "\n", "\u00a0", "\u3000", "\t "]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SPACES)), min_size=1, max_size=40), st.data())
def test_answers_are_exact_characters(words, data):
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(len(words) - 1, first + 5)))
    lead = data.draw(st.sampled_from(["", *SPACES]))
    parts = [word + ("" if word in "北京文𠀀?" and data.draw(st.booleans()) else space) for word, space in words]
    context, start = lead + "".join(parts), len(lead) + sum(map(len, parts[:first]))
    text = "".join(parts[first : last + 1]).rstrip()
    assert context[start : start + len(text)] == text
    for tokenizer in (UNCASED, CASED):
        rows = [("where?", context)], [Gold("q", (Answer(text, start),))]
        answer = recovered(*rows, tokenizer)[0]
        assert (answer["text"], answer["start"]) == (text, start), (tokenizer, context)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from([
    *"ab 北?\n", *MARKS, *"🙂👍🏽\u200d\ufe0fé\u3000ﬁ🇩🇪\u200f\u202a\u200b\U000e0067",
]), min_size=1), st.data())
def test_any_span_is_a_part_of_its_context(context, data):
    begin = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(begin + 1, len(context)))
    found = qa.whole(context, begin, end)
    assert 0 <= found[0] < found[1] <= len(context) and qa.whole(context, *found) == found
    if not context[begin:end].isspace():
        text = context[slice(*found)]
        assert not text[0].isspace() and not text[-1].isspace() and context[begin:end].strip() in text


@pytest.mark.parametrize(("context", "span", "expected"), [
    ("a 🇩🇪🇫🇷 b", (2, 3), "🇩🇪"), ("a 🇩🇪🇫🇷 b", (3, 4), "🇩🇪"), ("a 🇩🇪🇫🇷 b", (4, 5), "🇫🇷"), ("a 🇩🇪🇫🇷 b", (5, 6), "🇫🇷"),
    ("a 🇩🇪🇫🇷 b", (3, 5), "🇩🇪🇫🇷"), ("🇩🇪🇫", (2, 3), "🇫"), ("x🇩🇪", (0, 1), "x"), (f"a {ENGLAND}.", (2, 3), ENGLAND),
    (f"{ENGLAND}🏴", (7, 8), "🏴"), ("ab\u200f, c", (0, 2), "ab\u200f"), ("ab \u200fc", (0, 2), "ab"),
    ("ab\u200bc", (0, 2), "ab"), ("ab\ufeff c", (0, 2), "ab"), ("(\u202aab\u202c)", (2, 4), "\u202aab\u202c"),
    ("no\u0601 12", (0, 2), "no"), ("no \u060112", (4, 6), "\u060112"),
])
def test_what_is_seen_as_one_comes_whole(context, span, expected):
    assert context[slice(*qa.whole(context, *span))] == expected


def reference_windows(count: int, room: int, stride: int):
    """Windows as (first, length), and for each token the window that shows most of it, as run_squad.py goes about it: one
    after another, token by token."""
    windows, first = [], 0
    while first < count:
        length = min(count - first, room)
        windows.append((first, length))
        if first + length == count:
            break
        first += min(length, stride)
    best = []
    for token in range(count):
        scores = [
            min(token - first, first + length - 1 - token) + 0.01 * length if first <= token < first + length else -1
            for first, length in windows
        ]
        best.append(scores.index(max(scores)))
    return windows, best


@pytest.mark.parametrize("count", [1, 15, 16, 17, 18, 21, 22, 50, 101])
@pytest.mark.parametrize("stride", [1, 5, 16, 30])
def test_windows_are_those_of_run_squad(count, stride):
    context = " ".join(LETTERS[k % 26] for k in range(count))
    made = predictor(length=20, stride=stride, question_tokens=2, answer_tokens=5)
    encoded = made.encode([("a", context)])
    windows, best = reference_windows(count, 16, stride)
    assert len(encoded.item) == len(windows)
    for row, (first, length) in enumerate(windows):
        ids, places = encoded.tokens["input_ids"][row], encoded.tokens["places"][row]
        assert UNCASED.decode(ids) == f"[CLS] a [SEP] {context.replace(' ', '')[first : first + length]} [SEP]".replace(
            context.replace(" ", "")[first : first + length], " ".join(context.split()[first : first + length]))
        inside = [BEGINS if best[token] == row else ENDS for token in range(first, first + length)]
        assert places.tolist() == [NULL, NOWHERE, NOWHERE, *inside, NOWHERE]
        assert encoded.tokens["characters"][row][0, 3:-1].tolist() == [2 * k for k in range(first, first + length)]
        assert encoded.tokens["segment_ids"][row].tolist() == [0] * 3 + [1] * (length + 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 120), st.integers(1, 20), st.integers(1, 30))
def test_a_token_s_window_is_that_of_all_which_shows_most(count, room, stride):
    windows, best = reference_windows(count, room, stride)
    assert qa._central(np.array([first for first, _ in windows]), count, room).tolist() == best


def test_memory_grows_with_a_context_and_not_with_its_square():
    made, count = predictor(length=384, stride=128, question_tokens=64, answer_tokens=30), 300_000
    context = " ".join(LETTERS[k % 26] for k in range(count))
    tracemalloc.start()
    encoded = made.encode([("a", context)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(int((places == BEGINS).sum()) for places in encoded.tokens["places"]) == count, "each begins in one window"
    assert peak < 300 * count  # an array of windows and tokens would have 8 bytes for each of 2,343 windows


def test_the_best_span_is_the_best_of_all():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 24, 2)).astype(np.float32)
    places = rng.choice([NOWHERE, ENDS, BEGINS], (40, 24)).astype(np.int8)
    places[:, 3], places[0] = NULL, NOWHERE
    for longest in (1, 4, 40):
        span, score, null = (np.asarray(x) for x in jax.jit(qa.best_span, static_argnums=2)(logits, places, longest))
        for row in range(1, 40):
            pairs = {
                (a, b): logits[row, a, 0] + logits[row, b, 1] for a in range(24) for b in range(a, min(24, a + longest))
                if places[row, a] == BEGINS and places[row, b] in (BEGINS, ENDS)
            }
            assert tuple(span[row]) == max(pairs, key=pairs.get) and score[row] == max(pairs.values())
        np.testing.assert_allclose(null[1:], logits[1:, 3].sum(-1), rtol=1e-6)
        assert score[0] < -1e37 and np.isfinite(score).all()


def test_labels_of_windows(caplog):
    context = " ".join(LETTERS)  # two windows of 16 tokens, the second from token 10
    golds = [Gold("both", (Answer("m n", 24),)), Gold("first", (Answer("a", 0),)), Gold("last", (Answer("y z", 48),)),
             Gold("none", ()), Gold("wrong", (Answer("q", -1), Answer("b", 2))), Gold("lost", (Answer("q", -1),)),
             Gold("long", (Answer(context[4:], 4),))]
    with caplog.at_level(logging.WARNING, "bert_jax"):
        made = task(Rows([("a", context)] * 7, golds), lengths=(20,), stride=10, question_tokens=2, answer_tokens=5,
                    null_threshold=0.0)
    assert "1 of 7 answers are in no window whole" in caplog.text
    labels = made.evaluation.rows["span_label"].reshape(7, 2, 2).tolist()
    nowhere, null = [-1, -1], [0, 0]
    assert labels == [
        [[15, 16], [5, 6]], [[3, 3], null], [null, [17, 18]], [null, null], [[4, 4], null], [nowhere] * 2, [nowhere] * 2,
    ]
    with pytest.raises(BertJaxError, match="1 of 7 questions have no answer .the first: none.: set task.null_threshold=0"):
        task(Rows([("a", context)] * 7, golds))


def test_a_stride_beyond_the_windows_is_said(caplog):
    context = " ".join(LETTERS)
    for stride in (10, 16, 17):
        made = predictor(length=20, stride=stride, question_tokens=2, answer_tokens=5)
        made.encode([("a", context), ("b", "c d")])
        said = "the windows of 1 of 2 questions follow each other without overlap: they have less room than the stride of 17"
        assert (said in caplog.text) == (stride == 17)


def test_windows_of_a_question_compete():
    context = " ".join(LETTERS)
    texts = [("a", context), ("b", "c d")]
    for threshold in (None, 0.0, -40.0):
        made = predictor(length=20, stride=10, question_tokens=2, answer_tokens=5, null_threshold=threshold)
        encoded = made.encode(texts)
        labels = np.array([[0, 0], [17, 18], [4, 4]], np.int32)
        answers = made.answers(texts, encoded, perfect(made, encoded, labels))
        text = [("y z", 48), ("d", 2)] if threshold != -40 else [("", -1), ("", -1)]
        assert [(a["text"], a["start"]) for a in answers] == text
        assert [a.get("span") for a in answers] == ([None] * 2 if threshold is None else ["y z", "d"])
        assert [(a["score"], a["null_score"]) for a in answers] == [(20, 0), (20, 0)]  # the window where it is lowest


def test_any_family_s_layout(data_dir):
    """ALBERT's pieces carry the space before them; the null is wherever the layout puts it."""
    albert = tokenizers.load(data_dir / "vocab" / "albert-base-v2-spiece.model")
    context = "In Zürich, the  café (founded 1911) is\u00a0open."
    for text in ("Zürich", "café (founded 1911)", "open", "In"):
        gold = Gold("q", (Answer(text, context.index(text)),))
        answer = recovered([("Which city?", context)], [gold], albert)[0]
        assert (answer["text"], answer["start"]) == gold.answers[0]


def test_scores_count_every_question_once():
    context = " ".join(LETTERS)
    golds = [Gold("1", (Answer("y z", 48),)), Gold("2", ()), Gold("3", (Answer("d", 2),))]
    rows = Rows([("a", context), ("b", context), ("c", "c d")], golds)
    made = task(rows, lengths=(20,), stride=10, question_tokens=2, answer_tokens=5, null_threshold=0.0)
    outputs = perfect(made.predictor, made.evaluation, made.evaluation.rows["span_label"])
    order = np.array([4, 0, 3, 1, 2])
    shuffled = {name: [values[k] for k in order] for name, values in outputs.items()} | {"example": list(order)}
    shuffled = {name: [*values, values[0] * 0 - 1] for name, values in shuffled.items()}  # an empty row
    found = made.scores(shuffled)
    assert found["exact_match"] == found["f1"] == found["no_answer_accuracy"] == found["best_f1"] == 1
    part = {name: values[:3] for name, values in outputs.items()} | {"example": [np.int32(k) for k in range(3)]}
    assert made.scores(part)["has_answer_f1"] == 1


def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
    transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers (the torch extra)")
    rng = np.random.default_rng(0)
    contexts = [" ".join(rng.choice(list(LETTERS), count)) for count in (9, 14, 21, 40)]
    golds = [Gold(str(k), (Answer(context[4:9], 4),)) for k, context in enumerate(contexts)]
    made = task(Rows([("where?", context) for context in contexts], golds), lengths=(32,), answer_tokens=10)
    params = api.init(made.config.encoder, jax.random.key(0))
    params = jax.tree.map(lambda x: np.float32(x + 0.1 * rng.standard_normal(x.shape)), params)
    batch = next(iter(EvalBatches(made.evaluation, (32,), len(made.evaluation.item), None, UNCASED.pad_id, None)))
    assert {0, 10} <= set(batch["span_label"][:, 0]) and not batch["attention_mask"].all()

    def loss(params):
        losses = made.loss(params, batch, None)
        return losses.terms["span_loss"].value, losses

    (value, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    hf.export(params, made.config.encoder, UNCASED, tmp_path / "hf")
    model = transformers.BertForQuestionAnswering.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    start, end = torch.tensor(batch["span_label"]).long().T
    theirs = model(
        input_ids=torch.tensor(batch["input_ids"]).long(), attention_mask=torch.tensor(batch["attention_mask"]).long(),
        token_type_ids=torch.tensor(batch["segment_ids"]).long(), start_positions=start, end_positions=end,
    )
    theirs.loss.backward()
    np.testing.assert_allclose(value, theirs.loss.item(), rtol=1e-5)
    right = (theirs.start_logits.argmax(1) == start) & (theirs.end_logits.argmax(1) == end)
    assert losses.metrics["span_accuracy"].value == pytest.approx(right.float().mean().item())
    ours = hf.to_tensors(gradients, made.config.encoder)
    parameters = dict(model.named_parameters())
    assert ours.keys() == parameters.keys()
    # Softmax ignores what is the same at every position: these gradients are zero but for rounding.
    zero = {name for name in ours if np.abs(ours[name]).max() < 1e-6}
    last = f"bert.encoder.layer.{ENCODER.layers - 1}.output.LayerNorm.bias"
    assert zero == {name for name in ours if name.endswith("key.bias")} | {last, "qa_outputs.bias"}
    for name, parameter in parameters.items():
        gradient = parameter.grad.numpy()
        if name.endswith("word_embeddings.weight"):  # PyTorch never trains the padding piece; google-research/bert does
            gradient[UNCASED.pad_id] = ours[name][UNCASED.pad_id]
        tolerance = 1e-6 if name in zero else 1e-5 * np.abs(gradient).max()
        np.testing.assert_allclose(ours[name], gradient, atol=tolerance, rtol=0, err_msg=name)


def squad_file(path, count, seed):
    """The answer is the letter of the end of the alphabet, where there is one (SQuAD 2.0)."""
    rng, questions = np.random.default_rng(seed), []
    for number in range(count):
        letters = list(rng.choice(list("abcdefg"), rng.integers(6, 30)))
        place, has = int(rng.integers(0, len(letters))), rng.random() < 0.7
        if has:
            letters[place] = rng.choice(list("xyz"))
        answers = [{"text": letters[place], "answer_start": 2 * place}] if has else []
        entry = {"id": f"{number}", "question": "which?", "answers": answers, "is_impossible": not has}
        questions.append({"paragraphs": [{"context": " ".join(letters), "qas": [entry]}]})
    path.write_text(json.dumps({"version": "v2.0", "data": questions}))
    return str(path)


def test_it_learns_and_predicts(tmp_path):
    source = squad_file(tmp_path / "squad.json", 400, 0)
    config = QuestionAnswering(
        finetuned_encoder(dataclasses.replace(ENCODER, layers=1), (), ("span",)), "tiny", Squad(source, (0, 0.8)),
        Squad(source, (0.8, 1)), lengths=(28,), shapes=1, stride=8, question_tokens=6, answer_tokens=3, null_threshold=0.0,
    )
    start = Model(api.init(config.encoder, jax.random.key(0)), config.encoder, UNCASED)
    experiment = Experiment(
        config, AdamW(learning_rate=3e-3, warmup_steps=10, bias_correction=True),
        TrainConfig(steps=60, batch_size=32, eval_every=60, save_every=60, log_every=50, eval_batches=None),
    )
    found = finetune(experiment, tmp_path / "run", start)
    assert found["f1"] > 0.9 and found["no_answer_accuracy"] > 0.8 and found["span_accuracy"] > 0.8

    made = finetuning_task(config, start)
    assert made.evaluation.item[-1] == 79 and len(made.evaluation.item) > 80  # some have two windows
    from bert_jax.model import load

    trained = load(tmp_path / "run")
    answers, _ = predict(made.predictor, trained.params, made.heldout.texts, config.lengths, 16)
    scores = made.score(made.heldout, answers, {})
    assert scores["f1"] == found["f1"] and scores["best_f1_threshold"] == pytest.approx(found["best_f1_threshold"], abs=1e-4)
    for answer, (_, context) in zip(answers, made.heldout.texts, strict=True):
        assert answer["text"] == (context[answer["start"] :][: len(answer["text"])] if answer["start"] >= 0 else "")


@pytest.mark.parametrize("name", ["squad/dev-v1.1.json", "xquad/xquad.de.json", "xquad/xquad.zh.json"])
def test_real_answers_are_recovered(data_dir, name):
    """All but those that begin or end inside a token (0.3% of SQuAD dev with this vocabulary)."""
    vocabulary = "bert-base-chinese-vocab.txt" if ".zh." in name else "bert-base-uncased-vocab.txt"
    tokenizer = tokenizers.load(data_dir / "vocab" / vocabulary)
    rows = Squad(str(data_dir / "qa" / name), (0, 0.1) if "dev" in name else (0, 1)).read()
    encoder = dataclasses.replace(ENCODER, max_length=512)
    fields = dict(encoder=encoder, lengths=(384,), stride=128, question_tokens=64, answer_tokens=150)
    answers = recovered(rows.texts, rows.labels, tokenizer, **fields)
    missed = 0
    for answer, gold, (_, context) in zip(answers, rows.labels, rows.texts, strict=True):
        text, start = gold.answers[0]
        if (answer["text"], answer["start"]) != (text, start):
            missed += 1
            end = answer["start"] + len(answer["text"])
            assert answer["start"] <= start and end >= start + len(text) and answer["text"] == context[answer["start"] : end]
            inside = context[start - 1 : start + 1].isalnum() or context[start + len(text) - 1 :][:2].isalnum()
            assert inside or "½" in answer["text"], (answer, text)
    assert missed <= 0.01 * len(answers)


def test_what_is_refused(caplog):
    for name in ("stride", "question_tokens", "answer_tokens"):
        with pytest.raises(BertJaxError, match=f"task.{name} is 0: it must be at least 1"):
            task(**{name: 0})
    with pytest.raises(BertJaxError, match="windows of 32 tokens leave 21 beside a question of 8, answers have up to 40"):
        predictor(length=32).encode([("a", "b")])
    with pytest.raises(BertJaxError, match="with_heads must be span"):
        task(encoder=dataclasses.replace(ENCODER, with_heads=("pooler", "span")))
    made = predictor()
    with pytest.raises(BertJaxError, match="no questions"):
        made.encode([])
    with pytest.raises(BertJaxError, match="give two texts, the question first"):
        made.encode([("a",)])
    for texts, part in ((("a", "\u200b \ufe0f"), "context"), (("\u200b", "a"), "question")):
        with pytest.raises(BertJaxError, match=f"row 2: the {part} has no character that the tokenizer keeps"):
            made.encode([("a", "b"), texts])
    gold = Gold("1", (Answer("a", 0),))
    with pytest.raises(BertJaxError, match="^memory: row 2: the question has no character that the tokenizer keeps$"):
        unreadable = task()
        unreadable.heldout = Rows([("a", "a"), ("\u200b", "a")], [gold, gold])
        _ = unreadable.evaluation
    with caplog.at_level(logging.WARNING, "bert_jax"):
        made.encode([("a b c d e f g h i", "b"), ("a", "b")])
    assert "1 of 2 questions have more than 8 tokens: their ends were cut" in caplog.text
