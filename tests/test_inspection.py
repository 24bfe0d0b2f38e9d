"""What inspect says of every kind of checkpoint: true numbers, all that is missing or left out, and no weights read."""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bert_jax
from bert_jax import config as configuration
from bert_jax.checkpoint import Checkpoints
from bert_jax.convert import hf
from bert_jax.convert.bundle import TensorBundle
from bert_jax.convert.reading import Origin, flatten
from bert_jax.convert.tensorflow_names import ALBERT_TF1, BERT_TF1, Naming
from bert_jax.convert.tensors import Safetensors, TorchPickle
from bert_jax.embedding.settings import Prompt, SentenceSettings
from bert_jax.errors import BertJaxError
from bert_jax.inspection import Report
from bert_jax.model import Model
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer
from tests.convert.bundle_writer import write_bundle

TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcdef"])
CONFIG = EncoderConfig(
    vocab_size=11, embedding_width=8, hidden_width=8, layers=2, heads=2, ffn_width=12, max_length=9,
    with_heads=("pooler", "mlm", "pair"),
)  # fmt: skip
LABELS = ("person", "place", "thing")
FAMILIES = {  # config, class, and lines that only this family shows
    "bert": (dict(with_heads=("tagger",), labels=LABELS), "BertForTokenClassification",
             {"heads": "tagger", "labels": "3: person, place, thing"}),
    "albert": (dict(embedding_width=6, layers=4, share="all", groups=2, inner_layers=3, activation="gelu_new"),
               "AlbertForPreTraining",
               {"layers": "12, all sharing their parameters in 2 groups of 3",
                "width": "8, embeddings 6, feed-forward 12, 2 attention heads", "activation": "gelu_new"}),
    "electra": (dict(embedding_width=4, with_heads=("discriminator",)), "ElectraForPreTraining",
                {"width": "8, embeddings 4, feed-forward 12, 2 attention heads", "heads": "discriminator"}),
    "roberta": (dict(position_offset=2, with_heads=("mlm",), mlm_activation=None, segments=1), "RobertaForMaskedLM",
                {"positions": "9, the first in row 2 of the table", "segments": "1"}),
    "xlm-roberta": (dict(position_offset=2, with_heads=("pooler", "classifier"), labels=tuple("abcdefgh")),
                    "XLMRobertaForSequenceClassification",
                    {"positions": "9, the first in row 2 of the table", "labels": "8: a, b, c, d, e, f, ..."}),
    "distilbert": (dict(segments=0, with_heads=(), pooler_activation="relu"), "DistilBertModel",
                   {"segments": "none", "heads": "none, the encoder alone"}),
}  # fmt: skip


def random_params(config: EncoderConfig) -> api.Params:
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: noise.standard_normal(leaf.shape, np.float32), shapes)


def make(**changes) -> Model:
    config = dataclasses.replace(CONFIG, **changes)
    return Model(random_params(config), config, TOKENIZER)


def lines_of(report: Report) -> dict[str, str]:
    """What is printed, by the word in front; the lines that a word goes on with are joined to it."""
    found: dict[str, str] = {}
    for line in str(report).splitlines():
        what, value = (line.split(maxsplit=1) if not line.startswith(" ") else ("", line.strip()))
        if what:
            assert what not in found, f"{what} is said twice"
            found[what] = value
        else:
            found[list(found)[-1]] += f"\n{value}"
    return found


def write_workdir(folder: pathlib.Path, experiment, steps: tuple[int, ...]) -> api.Params:
    """A work directory as training leaves it, as far as readers of parameters go."""
    folder.mkdir()
    configuration.save(experiment, folder / "experiment.json")
    TOKENIZER.save(folder / "tokenizer")
    params = random_params(experiment.task.encoder)
    checkpoints = Checkpoints(folder / "checkpoints", keep=9)
    for step in steps:
        checkpoints.save(step, {"params": jax.device_put(params)}, {"identity": {"tokenizer": TOKENIZER.hash}})
    checkpoints.close()
    return params


def write_tensorflow(folder: pathlib.Path, naming: Naming, config: EncoderConfig) -> dict[str, np.ndarray]:
    """A checkpoint of Google's code with what Adam keeps; returns the model's variables."""
    rows = {row.ours: row for row in (*naming.encoder, *(row for head in config.with_heads for row in naming.heads[head]))}
    tensors = {}
    for path, a in flatten(random_params(config)).items():
        row = rows[path]
        if row.part in ("attention", "feed_forward"):
            tensors |= {row.theirs.format(**p): row.transform.export(x) for p, x in zip(naming.places(config), a, strict=True)}
        else:
            tensors[row.theirs] = row.transform.export(a)
    tensors = {name: np.ascontiguousarray(a) for name, a in tensors.items()}
    slots = {f"{name}/adam_{slot}": np.zeros_like(a) for name, a in tensors.items() for slot in "mv"}
    folder.mkdir()
    write_bundle(folder / "model.ckpt", tensors | slots | {"global_step": np.array(7)})
    settings = {"num_attention_heads": config.heads, "num_hidden_layers": config.layers, "hidden_act": "gelu"}
    (folder / naming.config_files[0]).write_text(json.dumps(
        settings | dict.fromkeys(["hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"], 0.1)
    ))
    TOKENIZER.save(folder)
    return tensors


# Every kind of source


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face(family, tmp_path):
    changes, cls, special = FAMILIES[family]
    model = make(**changes)._replace(origin=Origin(family, {"model_type": family}, (), "float16"))
    bert_jax.save(model, tmp_path / "a")
    report = bert_jax.inspect(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    lines = lines_of(report)
    expected = {
        "source": f"Hugging Face directory {tmp_path / 'a'}",
        "family": f"{family} ({cls})",
        "weights": f"float16, {len(tensors)} tensors, {sum(a.nbytes for a in tensors.values()) / 1e3:.1f} kB",
        "parameters": f"{sum(a.size for a in tensors.values()):,}",
        "layers": "2",
        "width": "8, feed-forward 12, 2 attention heads",
        "positions": "9",
        "segments": "2",
        "activation": "gelu",
        "heads": ", ".join(model.config.with_heads),
        "vocabulary": "11 rows of the token table",
        "tokenizer": "wordpiece, 11 pieces, lower-cases",
        "hash": TOKENIZER.hash,
    }
    assert lines == expected | special
    assert report.config == bert_jax.load(tmp_path / "a").config and report.tokenizer.hash == TOKENIZER.hash
    assert (report.missing, report.new_heads, report.dropped) == ([], [], [])


@pytest.mark.parametrize("share", ["attention", "feed_forward"])
def test_shared_layers_and_a_padded_vocabulary(share, tmp_path):
    """The file holds copies; what is counted is what will be in memory, without the rows that only pad."""
    model = make(share=share, vocab_multiple=8, layers=3)
    bert_jax.save(model, tmp_path / "a")
    lines = lines_of(bert_jax.inspect(tmp_path / "a"))
    padding = 5 * 8 + 5  # rows of the token table, values of the bias of the masked-language-model head
    counted = sum(a.size for a in flatten(model.params).values()) - padding
    stored = sum(a.size for a in load_file(tmp_path / "a" / "model.safetensors").values())
    assert lines["parameters"] == f"{counted:,}" and counted < stored
    assert lines["layers"] == f"3, sharing {share}"
    assert lines["vocabulary"] == "11 rows of the token table, padded to 16"


def test_shards_and_numbers_of_several_kinds(tmp_path):
    bert_jax.save(make(), tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["bert.pooler.dense.weight"] = tensors["bert.pooler.dense.weight"].astype(np.float16)
    tensors["bert.embeddings.position_ids"] = np.arange(9)[None]  # a constant, nothing to lose
    names = sorted(tensors)
    (tmp_path / "a" / "model.safetensors").unlink()
    for i in range(2):
        save_file({name: tensors[name] for name in names[i::2]}, tmp_path / "a" / f"model-{i}.safetensors")
    places = {name: f"model-{i}.safetensors" for i in range(2) for name in names[i::2]}
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    report = bert_jax.inspect(tmp_path / "a")
    size = sum(a.nbytes for a in tensors.values()) / 1e3
    assert lines_of(report)["weights"] == f"float32 and float16, {len(tensors)} tensors, {size:.1f} kB"
    assert report.dropped == []


def test_sentence_transformers(tmp_path):
    settings = SentenceSettings(
        pooling=("cls", "mean"), normalize=True, max_length=7, default_prompt="passage",
        prompts=(Prompt("query", "ab: "), Prompt("passage", "cd: ")),
    )  # fmt: skip
    bert_jax.save(make(with_heads=())._replace(sentence=settings), tmp_path / "a", format="sentence-transformers")
    text = str(bert_jax.inspect(tmp_path / "a"))
    assert "cls + mean pooling, normalised, at most 7 tokens\n" in text
    assert text.splitlines()[-2:] == ["prompt      query: 'ab: '", "prompt      passage (default): 'cd: '"]


def test_our_own_directory(tmp_path):
    bert_jax.save(make(), tmp_path / "a", format="bert_jax", dtype="bfloat16")
    lines = lines_of(bert_jax.inspect(tmp_path / "a"))
    params = flatten(random_params(CONFIG))
    count = sum(a.size for a in params.values())
    assert lines["source"] == f"directory of bert-jax {tmp_path / 'a'}" and lines["family"] == "bert, trained here"
    assert lines["weights"] == f"bfloat16, {len(params)} tensors, {2 * count / 1e3:.1f} kB"
    assert lines["parameters"] == f"{count:,}" and lines["hash"] == TOKENIZER.hash
    large = make(vocab_size=70_000, hidden_width=4, embedding_width=4, with_heads=())
    bert_jax.save(large, tmp_path / "large", format="bert_jax")
    size = 4 * sum(a.size for a in flatten(large.params).values())
    assert lines_of(bert_jax.inspect(tmp_path / "large"))["weights"].endswith(f" tensors, {size / 1e6:.1f} MB")
    tensors = load_file(tmp_path / "a" / "params.safetensors")
    tensors["extra"] = tensors.pop("mlm/bias")
    save_file(tensors, tmp_path / "a" / "params.safetensors")
    report = bert_jax.inspect(tmp_path / "a")
    assert (report.missing, report.new_heads, report.dropped) == (["mlm/bias"], [], ["extra"])
    assert "this checkpoint cannot be loaded:\nmlm/bias" in lines_of(report)["missing"]
    with pytest.raises(BertJaxError, match="extra"):
        bert_jax.load(tmp_path / "a")
    (tmp_path / "a" / "params.safetensors").unlink()
    with pytest.raises(BertJaxError, match="params.safetensors is damaged or no safetensors file"):
        bert_jax.inspect(tmp_path / "a")


def test_what_was_converted_says_so(tmp_path):
    bert_jax.save(make(**FAMILIES["electra"][0]), tmp_path / "a")
    bert_jax.save(bert_jax.load(tmp_path / "a"), tmp_path / "b", format="bert_jax")
    assert lines_of(bert_jax.inspect(tmp_path / "b"))["family"] == "electra, converted"


def test_a_work_directory(tmp_path, tiny_experiment):
    params = write_workdir(tmp_path / "run", tiny_experiment("albert"), (4, 12))
    report = bert_jax.inspect(tmp_path / "run")
    lines = lines_of(report)
    assert lines["source"] == f"work directory {tmp_path / 'run'}" and lines["family"] == "albert, trained here"
    assert lines["checkpoints"] == "steps 4, 12; 12 is read"
    config, unpadded = report.config, report.config.padded_vocab_size - report.config.vocab_size
    count = sum(math.prod(a.shape) for a in flatten(params).values()) - unpadded * (config.embedding_width + 1)
    assert lines["parameters"] == f"{count:,}" and lines["tokenizer"] == "wordpiece, 11 pieces, lower-cases"
    assert lines_of(bert_jax.inspect(f"{tmp_path / 'run'}@4"))["checkpoints"] == "steps 4, 12; 4 is read"
    for read in (bert_jax.inspect, bert_jax.load):
        with pytest.raises(BertJaxError, match=r"no checkpoint at step 7 \(there: 4, 12\)"):
            read(f"{tmp_path / 'run'}@7")


def test_a_work_directory_before_its_first_checkpoint(tmp_path, tiny_experiment):
    write_workdir(tmp_path / "run", tiny_experiment("bert"), ())
    assert lines_of(bert_jax.inspect(tmp_path / "run"))["checkpoints"] == "none yet: it cannot be loaded"
    with pytest.raises(BertJaxError, match=r"no checkpoint at step 7 \(there: none\)"):
        bert_jax.inspect(f"{tmp_path / 'run'}@7")


def test_an_encoder_that_transformers_has_not(tmp_path, tiny_experiment):
    """It trains and can be looked at; only exporting it is impossible."""
    heads = 'task.encoder.with_heads=["pooler","mlm","pair","tagger"]'
    experiment = tiny_experiment("albert", heads, 'task.encoder.labels=["a"]')
    write_workdir(tmp_path / "run", experiment, (4,))
    family = lines_of(bert_jax.inspect(tmp_path / "run"))["family"]
    assert family == "none; transformers has no such model: no albert class has exactly the heads pooler, mlm, pair, tagger"
    model = bert_jax.load(tmp_path / "run")
    with pytest.raises(BertJaxError, match="no albert class has exactly the heads"):
        bert_jax.save(model, tmp_path / "out")


@pytest.mark.parametrize("naming", [BERT_TF1, ALBERT_TF1], ids=lambda naming: naming.name)
def test_tensorflow(naming, tmp_path):
    albert = dict(embedding_width=6, layers=4, share="all", groups=2, inner_layers=2) if naming is ALBERT_TF1 else {}
    config = dataclasses.replace(CONFIG, **albert)
    tensors = write_tensorflow(tmp_path / "tf", naming, config)
    report = bert_jax.inspect(tmp_path / "tf")
    lines = lines_of(report)
    assert lines["source"] == f"TensorFlow checkpoint {tmp_path / 'tf'}" and lines["family"] == naming.model_type
    assert lines["parameters"] == f"{sum(a.size for a in tensors.values()):,}"
    assert lines["weights"].startswith(f"float32, {3 * len(tensors) + 1} tensors, ")
    assert lines["heads"] == "pooler, mlm, pair" and lines["hash"] == TOKENIZER.hash
    assert (report.missing, report.dropped) == ([], [])
    (tmp_path / "tf" / "model.ckpt.data-00000-of-00001").unlink()
    assert str(bert_jax.inspect(tmp_path / "tf" / "model.ckpt")).splitlines()[1:] == str(report).splitlines()[1:]
    with pytest.raises(BertJaxError, match="data-00000-of-00001"):
        bert_jax.load(tmp_path / "tf")


# No weights are read


def spoil(path: pathlib.Path) -> None:
    """Every number becomes NaN, in all of our dtypes; the header stays."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:begin] + b"\xff" * (len(content) - begin))


@pytest.mark.parametrize("format", ["bert_jax", "hf", "sentence-transformers"])
def test_weights_are_not_looked_at(format, tmp_path, monkeypatch):
    bert_jax.save(make(), tmp_path / "a", format=format)
    before = str(bert_jax.inspect(tmp_path / "a"))
    spoil(next((tmp_path / "a").glob("*.safetensors")))
    with pytest.raises(BertJaxError, match="holds NaN or infinity"):
        bert_jax.load(tmp_path / "a")
    monkeypatch.setattr(Safetensors, "read", unread)
    assert str(bert_jax.inspect(tmp_path / "a")) == before
    with pytest.raises(AssertionError, match="weights were read"):
        bert_jax.load(tmp_path / "a")


def unread(*_, **__):
    raise AssertionError("weights were read")


def test_weights_of_the_other_formats_are_not_read_either(tmp_path, monkeypatch, tiny_experiment):
    write_workdir(tmp_path / "run", tiny_experiment("bert"), (4,))
    write_tensorflow(tmp_path / "tf", BERT_TF1, CONFIG)
    monkeypatch.setattr(TensorBundle, "read", unread)
    monkeypatch.setattr(Checkpoints, "restore", unread)
    for name in ("run", "tf"):
        assert bert_jax.inspect(tmp_path / name).tokenizer.hash == TOKENIZER.hash
        with pytest.raises(AssertionError, match="weights were read"):
            bert_jax.load(tmp_path / name)


def test_a_pickle(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs PyTorch")
    bert_jax.save(make(), tmp_path / "a", dtype="float16")
    before = str(bert_jax.inspect(tmp_path / "a"))
    state = {name: torch.tensor(a) for name, a in load_file(tmp_path / "a" / "model.safetensors").items()}
    torch.save(state, tmp_path / "a" / "pytorch_model.bin")
    (tmp_path / "a" / "model.safetensors").unlink()
    monkeypatch.setattr(TorchPickle, "read", unread)
    assert str(bert_jax.inspect(tmp_path / "a")) == before
    with pytest.raises(AssertionError, match="weights were read"):
        bert_jax.load(tmp_path / "a")


# What is missing, what is left out, and what cannot be


def edit(folder: pathlib.Path, drop: tuple[str, ...] = (), add: tuple[str, ...] = ()) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in drop:
        del tensors[name]
    save_file(tensors | {name: np.zeros(3, np.float32) for name in add}, folder / "model.safetensors")


def test_missing_and_surplus_tensors(tmp_path):
    bert_jax.save(make(), tmp_path / "a")
    pair = ("cls.seq_relationship.bias", "cls.seq_relationship.weight")
    edit(tmp_path / "a", pair, ("bert.adapter.0.weight", "elsewhere"))
    report = bert_jax.inspect(tmp_path / "a")
    assert sorted(report.missing) == list(pair) and report.new_heads == ["pair"]
    assert report.dropped == ["bert.adapter.0.weight", "elsewhere"]
    lines = lines_of(report)
    first, *names = lines["missing"].splitlines()
    assert first == "2 tensors that its settings ask for; convert --allow-missing begins with new, untrained: pair:"
    assert sorted(names) == list(pair)
    assert str(report).endswith(
        "left out    2 tensors that no part of our encoder reads:\n"
        "              bert.adapter.0.weight\n"
        "              elsewhere"
    )
    assert bert_jax.load(tmp_path / "a", allow_missing=True).config == report.config
    edit(tmp_path / "a", ("bert.encoder.layer.1.output.dense.bias",))
    report = bert_jax.inspect(tmp_path / "a")
    assert sorted(report.missing) == ["bert.encoder.layer.1.output.dense.bias", *pair] and report.new_heads == []
    assert lines_of(report)["missing"].startswith("3 tensors that its settings ask for; this checkpoint cannot be loaded:")
    with pytest.raises(BertJaxError, match="lacks"):
        bert_jax.load(tmp_path / "a", allow_missing=True)


def test_no_tokenizer_and_one_that_is_too_large(tmp_path):
    bert_jax.save(make()._replace(tokenizer=None), tmp_path / "a")
    report = bert_jax.inspect(tmp_path / "a")
    assert report.tokenizer is None and lines_of(report)["tokenizer"] == "none beside the weights"
    WordPieceTokenizer([*SPECIALS, *"abcdefgh"], lowercase=False).save(tmp_path / "a")
    lines = lines_of(bert_jax.inspect(tmp_path / "a"))
    assert lines["tokenizer"] == "wordpiece, 13 pieces, keeps case, MORE than the token table has rows: not its tokenizer"
    with pytest.raises(BertJaxError, match="not its tokenizer"):
        bert_jax.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; those that are read are bert"),
        ({"model_type": "electra"}, "holds a bert, its config.json describes a electra"),
        ({"intermediate_size": 13}, r"intermediate.dense.weight has shape \[12, 8\], its configuration says \[13, 8\]"),
    ],
)
def test_what_load_refuses_by_its_headers_is_refused(changes, message, tmp_path):
    bert_jax.save(make(), tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for read in (bert_jax.inspect, hf.load):
        with pytest.raises(BertJaxError, match=message):
            read(tmp_path / "a")


def test_lines_are_aligned(tmp_path, tiny_experiment):
    bert_jax.save(make(**FAMILIES["bert"][0]), tmp_path / "hf")
    edit(tmp_path / "hf", ("classifier.bias",), ("elsewhere",))
    write_workdir(tmp_path / "run", tiny_experiment("bert"), (4,))
    for name, column in (("hf", 12), ("run", 13)):
        lines = str(bert_jax.inspect(tmp_path / name)).splitlines()
        assert len(lines) > 10
        for line in lines:
            assert line[column - 2 : column] == "  " and line == line.rstrip() and len(line) < 200
            assert line[column] != " " or not line[:column].strip(), line
