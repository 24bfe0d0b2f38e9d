"""The same embeddings as sentence-transformers, to 1e-5: directories that it wrote, and directories that it reads."""

import csv
import os
import pathlib

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from bert_jax import model as models
from bert_jax import tokenizers
from bert_jax.convert import hf
from bert_jax.convert import sentence_transformers as files
from bert_jax.embedding.sentence import embed
from bert_jax.embedding.settings import POOLINGS, Prompt, SentenceSettings

reference = pytest.importorskip(
    "sentence_transformers", minversion="6", reason="parity needs sentence-transformers 6 (pip install sentence-transformers)"
)
from sentence_transformers.sentence_transformer import modules  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = (Prompt("query", "query : "), Prompt("passage", "passage : the "))
ALONE = [SentenceSettings((mode,), prompts=PROMPTS) for mode in POOLINGS]
MORE = [
    SentenceSettings(("mean",), normalize=True, max_length=9, prompts=PROMPTS, default_prompt="passage"),
    SentenceSettings(("cls", "max", "weightedmean"), normalize=True, max_length=30, prompts=PROMPTS),
    SentenceSettings(("lasttoken", "mean"), prompts=PROMPTS, include_prompt=False, similarity="dot"),
    SentenceSettings(("cls", "mean", "lasttoken"), max_length=20, prompts=PROMPTS, include_prompt=False),
    SentenceSettings(("mean",), lowercase=True, prompts=PROMPTS),
]


def name(settings: SentenceSettings) -> str:
    return "+".join(settings.pooling)


def compare(model, encoder, settings, texts):
    for prompt in (None, "query"):
        theirs = model.encode(texts, prompt_name=prompt, batch_size=5, show_progress_bar=False)
        ours = embed(*encoder, settings, texts, prompt=prompt, batch_size=5)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", ALONE + MORE, ids=name)
def test_reads_what_we_write(settings, encoder, sentences, tmp_path):
    hf.export(*encoder, tmp_path / "ours")
    files.write(tmp_path / "ours", settings, hidden_width=encoder.config.hidden_width)
    model = reference.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert (model.max_seq_length, model.similarity_fn_name) == (min(settings.max_length, 64), settings.similarity)
    compare(model, encoder, settings, sentences)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", MORE[:-1], ids=name)
def test_we_read_what_it_writes(settings, encoder, sentences, tmp_path):
    hf.export(*encoder, tmp_path / "encoder")
    parts = [
        modules.Transformer(str(tmp_path / "encoder"), max_seq_length=settings.max_length),
        modules.Pooling(16, pooling_mode=settings.pooling, include_prompt=settings.include_prompt),
        *([modules.Normalize()] if settings.normalize else []),
    ]
    model = reference.SentenceTransformer(
        modules=parts, device="cpu", prompts={prompt.name: prompt.text for prompt in settings.prompts},
        default_prompt_name=settings.default_prompt, similarity_fn_name=settings.similarity,
    )  # fmt: skip
    model.max_seq_length = min(settings.max_length, 64)
    model.save(str(tmp_path / "theirs"), create_model_card=False)
    folder, read = files.read(tmp_path / "theirs")
    assert (read.pooling, read.normalize, read.include_prompt) == (
        settings.pooling, settings.normalize, settings.include_prompt
    )
    assert (read.max_length, read.similarity) == (min(settings.max_length, 64), settings.similarity)
    assert read.default_prompt == settings.default_prompt
    assert {*settings.prompts} <= {*read.prompts}  # it adds its own empty ones
    params, config = hf.load(folder)[:2]
    compare(model, (params, config, tokenizers.load(folder)), read, sentences)


@pytest.mark.filterwarnings("ignore")
def test_xlnet_in_and_out(tmp_path):
    """Padded on the left there, without a table of positions: a text of 600 tokens is not cut."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    specials = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    pieces = [*((piece, 0.0) for piece in specials), *((piece, -3.0) for piece in ("▁the", "▁cat", "▁", *"abcdefgh"))]
    sizes = dict(vocab_size=len(pieces), d_model=16, n_layer=2, n_head=2, d_inner=20, pad_token_id=5)
    torch.manual_seed(0)
    encoder = transformers.XLNetModel(transformers.XLNetConfig(**sizes))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.normal_(mean=1.0 if "layer_norm.weight" in name else 0.0, std=0.3)
    encoder.save_pretrained(tmp_path / "encoder")
    transformers.XLNetTokenizer(vocab=pieces).save_pretrained(tmp_path / "encoder")
    parts = [modules.Transformer(str(tmp_path / "encoder")), modules.Pooling(16, pooling_mode=POOLINGS)]
    theirs = reference.SentenceTransformer(modules=parts, device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)

    published = sentencepiece_model_pb2.ModelProto()  # beside tokenizer.json lies a spiece.model, which is not as ALBERT's
    for piece, score in pieces:
        published.pieces.add(piece=piece, score=score)
    (tmp_path / "theirs" / "spiece.model").write_bytes(published.SerializeToString())
    found = models.load(tmp_path / "theirs")
    assert found.config.max_length == 512 and found.sentence.max_length == int(1e30)
    texts = ["the cat", "", "a bad cab fed the cat", "the cat " * 300, "h"]
    ours = embed(found.params, found.config, found.tokenizer, found.sentence, texts)
    np.testing.assert_allclose(ours, theirs.encode(texts, show_progress_bar=False), atol=1e-5, rtol=1e-6)
    shorter = found._replace(sentence=SentenceSettings(POOLINGS, max_length=9))
    models.save(shorter, tmp_path / "ours", format="sentence-transformers")
    back = reference.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    assert back.max_seq_length == models.load(tmp_path / "ours").sentence.max_length == 9
    cut = embed(found.params, found.config, found.tokenizer, shorter.sentence, texts)
    np.testing.assert_allclose(cut, back.encode(texts, show_progress_bar=False), atol=1e-5, rtol=0)
    assert np.abs(cut[3] - ours[3]).max() > 0.01


@pytest.fixture(scope="session")
def minilm() -> pathlib.Path:
    weights = pathlib.Path(os.environ.get("BERT_JAX_WEIGHTS", ROOT / ".cache" / "weights"))
    path = weights / "all-MiniLM-L6-v2"
    if not (path / "modules.json").is_file():
        pytest.skip(f"no all-MiniLM-L6-v2 in {weights}: set BERT_JAX_WEIGHTS to the folder that holds it")
    return path


def test_minilm(minilm, data_dir):
    """200 real sentences through a real model, as each library loads it."""
    with open(data_dir / "sts" / "stsb" / "stsb-en-test.csv", encoding="utf-8", newline="") as file:
        texts = [text for row in csv.reader(file) for text in row[:2]][:200]
    folder, settings = files.read(minilm)
    assert settings == SentenceSettings(("mean",), normalize=True, max_length=256)
    params, config = hf.load(folder)[:2]
    ours = embed(params, config, tokenizers.load(folder), settings, texts)
    theirs = reference.SentenceTransformer(str(minilm), device="cpu").encode(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert ours.shape == (200, 384)
