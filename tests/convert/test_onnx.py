"""The ONNX graph computes what the model computes, for every family, head and shape; a graph that does not is not written."""

import builtins
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax.cli import main
from bert_jax.convert import onnx
from bert_jax.embedding.settings import SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

SIZES = dict(embedding_width=8, hidden_width=8, layers=1, heads=2, ffn_width=12, max_length=21, vocab_size=50)
CASES = {
    "bert": EncoderConfig(**SIZES | {"layers": 2}, segments=3, vocab_multiple=8, with_heads=("pooler", "mlm", "pair")),
    "albert": EncoderConfig(
        **SIZES | {"embedding_width": 6, "layers": 2}, share="all", groups=2, activation="gelu_new",
        with_heads=("pooler", "classifier"), labels=("a", "b", "c"),
    ),
    "electra": EncoderConfig(**SIZES | {"embedding_width": 6}, with_heads=("discriminator",)),
    "roberta": EncoderConfig(**SIZES, compute_dtype="bfloat16", position_offset=2, segments=1, with_heads=("mlm",)),
    "distilbert": EncoderConfig(**SIZES, segments=0, with_heads=("span",)),
}  # fmt: skip
ENCODER = EncoderConfig(**SIZES, with_heads=("pooler",))
OUTPUTS = {
    "bert": {"prediction_logits", "seq_relationship_logits"}, "albert": {"logits"},
    "electra": {"logits"}, "roberta": {"logits"}, "distilbert": {"start_logits", "end_logits"},
}  # fmt: skip
PACKAGES = ("torch", "transformers", "onnxscript", "onnx_ir", "onnxruntime")


@pytest.fixture
def packages():
    for name in PACKAGES:
        pytest.importorskip(name, reason="the onnx extra")


def random_model(config: EncoderConfig) -> Model:
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: 0.5 * noise.standard_normal(leaf.shape, np.float32), shapes)
    return Model(params, config, None)


def run(path, **feed) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = [node.name for node in session.get_inputs()]
    return dict(zip(names, session.run(names, {name: feed[name] for name in wanted}), strict=True)) | {"inputs": wanted}


@pytest.mark.parametrize(
    "case", [case if case in ("bert", "albert") else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_families(packages, case, tmp_path):
    config, model = CASES[case], random_model(CASES[case])
    bert_jax.save(model, tmp_path / "m", format="onnx")
    exact = dataclasses.replace(config, compute_dtype="float32")
    apply = jax.jit(lambda batch: api.apply(model.params, exact, batch))
    noise = np.random.default_rng(1)
    for rows, length in ((1, 1), (5, 4)):  # neither the shape it was traced with nor one that it was checked with
        mask = np.arange(length) < noise.integers(1, length + 1, (rows, 1))
        ids = np.where(mask, noise.integers(4, 50, mask.shape), 1)  # 1 is RoBERTa's padding
        segments = noise.integers(0, max(config.segments, 1), mask.shape)
        found = run(
            tmp_path / "m" / "onnx" / "model.onnx", input_ids=ids, attention_mask=mask.astype(np.int64), token_type_ids=segments
        )
        inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (config.segments > 1)
        assert found.pop("inputs") == inputs
        assert found.keys() == {"last_hidden_state", *OUTPUTS[case]}
        ours = apply({"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask), "segment_ids": jnp.asarray(segments)})
        assert np.abs(found["last_hidden_state"] - ours.hidden)[mask].max() < 1e-5
        match case:
            case "bert":
                mlm = ours.logits["mlm"][..., :50]  # rows that pad the vocabulary are not there
                assert np.abs(found["prediction_logits"] - mlm)[mask].max() < 1e-5
                assert np.abs(found["seq_relationship_logits"] - ours.logits["pair"]).max() < 1e-5
            case "albert":
                assert np.abs(found["logits"] - ours.logits["classifier"]).max() < 1e-5
            case "electra":
                assert np.abs(found["logits"] - ours.logits["discriminator"])[mask].max() < 1e-5
            case "roberta":
                assert np.abs(found["logits"] - ours.logits["mlm"])[mask].max() < 1e-5
            case "distilbert":
                both = np.stack([found["start_logits"], found["end_logits"]], -1)
                assert np.abs(both - ours.logits["span"])[mask].max() < 1e-5


def test_the_directory_is_one_of_hugging_face(packages, tmp_path, capsys):
    """With tokenizer and modules beside it, no path of this machine in it, and as float32 whatever it came as."""
    model = random_model(ENCODER)._replace(
        tokenizer=WordPieceTokenizer([*SPECIALS, *"abcdef"]), sentence=SentenceSettings(pooling=("cls",), max_length=7)
    )
    bert_jax.save(model, tmp_path / "half", dtype="float16", format="sentence-transformers")
    assert main(["convert", "--from", str(tmp_path / "half"), "--to", str(tmp_path / "m"), "--format", "onnx"]) == 0
    out, err = capsys.readouterr()
    assert "written as onnx" in out and "tracing and checking the ONNX graph" in err.splitlines()
    files = {str(path.relative_to(tmp_path / "m")) for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert {"onnx/model.onnx", "config.json", "model.safetensors", "tokenizer.json", "modules.json"} <= files
    content = (tmp_path / "m" / "onnx" / "model.onnx").read_bytes()
    assert b"site-packages" not in content and str(onnx.__file__).encode() not in content
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "float32"
    found = bert_jax.load(tmp_path / "m")
    assert found.sentence == model.sentence and found.tokenizer.hash == model.tokenizer.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "m"]


@pytest.mark.slow
def test_what_does_not_fit(packages, tmp_path, monkeypatch, caplog):
    """Multiple choice takes another kind of batch, so it stays behind; large weights lie beside the graph."""
    model = random_model(dataclasses.replace(ENCODER, with_heads=("pooler", "choice")))
    monkeypatch.setattr(onnx, "_FILE_BYTES", 100)
    bert_jax.save(model, tmp_path / "m", format="onnx")
    assert "multiple-choice head is not part of the ONNX graph" in caplog.text
    assert {path.name for path in (tmp_path / "m" / "onnx").iterdir()} == {"model.onnx", "model.onnx_data"}
    ids = np.random.default_rng(0).integers(0, 50, (2, 3))
    ones = np.ones_like(ids)
    found = run(tmp_path / "m" / "onnx" / "model.onnx", input_ids=ids, attention_mask=ones, token_type_ids=ones)
    assert found.keys() == {"last_hidden_state", "pooler_output", "inputs"}
    ours = api.apply(model.params, model.config, {"input_ids": jnp.asarray(ids), "segment_ids": jnp.asarray(ones)})
    assert np.abs(found["pooler_output"] - ours.pooled).max() < 1e-5


def test_another_function_is_not_written(packages, tmp_path, monkeypatch):
    """A model that computes something else than the graph: here the tanh form where the graph has the erf form."""
    model = random_model(ENCODER)
    compare = onnx._largest_difference

    def compare_other(params, config, path):
        return compare(params, dataclasses.replace(config, activation="gelu_new"), path)

    monkeypatch.setattr(onnx, "_largest_difference", compare_other)
    with pytest.raises(BertJaxError, match="differs from the model by .*not written"):
        bert_jax.save(model, tmp_path / "m", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named(packages, package, tmp_path, monkeypatch):
    there = builtins.__import__

    def absent(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return there(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(BertJaxError, match=rf"{package}.*pip install 'bert_jax\[onnx\]'"):
        bert_jax.save(random_model(ENCODER), tmp_path / "m", format="onnx")
    assert not list(tmp_path.iterdir())


def test_other_dtypes_are_refused(tmp_path):
    with pytest.raises(BertJaxError, match="onnx is written in float32, not bfloat16"):
        bert_jax.save(random_model(ENCODER), tmp_path / "m", format="onnx", dtype="bfloat16")
    assert not list(tmp_path.iterdir())
