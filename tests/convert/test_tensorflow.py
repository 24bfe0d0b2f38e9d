"""Names and settings of TensorFlow checkpoints: real indexes, round trips through every table, and every refusal."""

import json
import logging

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.convert.bundle import TensorBundle
from bert_jax.convert.reading import flatten
from bert_jax.convert.table import Row
from bert_jax.convert.tensorflow import read_config
from bert_jax.convert.tensorflow_names import (
    ALBERT_TF1,
    BERT_TF1,
    BERT_TF2,
    ELECTRA_GENERATOR_TF1,
    ELECTRA_TF1,
    ELECTRA_TIED_GENERATOR_TF1,
    ELECTRA_UNTIED_GENERATOR_TF1,
    NAMINGS,
    Naming,
    recognise,
)
from bert_jax.errors import BertJaxError
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from tests.convert.bundle_writer import write_bundle

BERT = dict(
    vocab_size=31, embedding_width=8, hidden_width=8, layers=3, heads=2, ffn_width=10, max_length=9,
    with_heads=("pooler", "mlm", "pair"),
)  # fmt: skip
ALBERT = BERT | dict(embedding_width=6, layers=6, share="all", groups=2, inner_layers=3, activation="gelu_new")
DISCRIMINATOR = BERT | dict(embedding_width=6, with_heads=("discriminator",))
GENERATOR = BERT | dict(embedding_width=6, with_heads=("mlm",))
CASES = [
    (BERT_TF1, BERT),
    (BERT_TF1, BERT | dict(with_heads=("span",))),
    (BERT_TF1, BERT | dict(with_heads=("pooler", "classifier"), labels=("a", "b", "c"))),
    (ALBERT_TF1, ALBERT),
    (ALBERT_TF1, ALBERT | dict(embedding_width=8)),
    (ELECTRA_TF1, DISCRIMINATOR),
    (ELECTRA_TF1, DISCRIMINATOR | dict(embedding_width=8)),
    (ELECTRA_GENERATOR_TF1, GENERATOR),
    (ELECTRA_UNTIED_GENERATOR_TF1, GENERATOR | dict(embedding_width=8)),
    (ELECTRA_TIED_GENERATOR_TF1, GENERATOR),
    (BERT_TF2, BERT),
]
KINDS = [f"{naming.name}-{i}" for i, (naming, _) in enumerate(CASES)]


def random_params(config: EncoderConfig) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    return {
        "/".join(key.key for key in path): noise.standard_normal(leaf.shape, np.float32)
        for path, leaf in jax.tree.leaves_with_path(shapes)
    }


def stored(row: Row, a: np.ndarray, naming: Naming, config: EncoderConfig) -> dict[str, np.ndarray]:
    if row.part not in ("attention", "feed_forward"):
        return {row.theirs: row.transform.export(a)}
    places = naming.places(config)
    assert len(places) == len(a)
    return {row.theirs.format(**place): row.transform.export(part) for place, part in zip(places, a, strict=True)}


def tensors_of(naming: Naming, config: EncoderConfig) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random parameters, and the same as the naming's variables."""
    params = random_params(config)
    rows = {row.ours: row for row in (*naming.encoder, *(row for head in config.with_heads for row in naming.heads[head]))}
    variables = {}
    for path, a in params.items():
        variables |= stored(rows[path], a, naming, config)
    return params, variables


def garden(variables: dict[str, np.ndarray], root: str = "model/") -> dict[str, np.ndarray]:
    return {f"{root}{name}/.ATTRIBUTES/VARIABLE_VALUE": a for name, a in variables.items()}


@pytest.mark.parametrize(("naming", "settings"), CASES, ids=KINDS)
def test_every_parameter_has_a_row_that_reads_what_it_wrote(tmp_path, naming, settings):
    config = EncoderConfig(**settings)
    params, variables = tensors_of(naming, config)
    slots = {f"{name}/{slot}": a for name, a in variables.items() for slot in ("adam_m", "adam_v")}
    if naming is BERT_TF2:
        variables = garden(variables)
        slots = {name.replace("/.ATTR", "/.OPTIMIZER_SLOT/optimizer/m/.ATTR"): a for name, a in variables.items()}
        slots |= garden({"save_counter": np.int64(1), "optimizer/iter": np.int64(2), "global_step": np.int64(3)}, "")
    else:
        slots["global_step"] = np.int64(7)
    write_bundle(tmp_path / "model.ckpt", {name: np.asarray(a) for name, a in (variables | slots).items()}, shards=2)
    bundle = TensorBundle(tmp_path / "model.ckpt")
    assert naming in recognise(bundle)
    assert set(naming.heads_in(bundle.shapes)) == set(config.with_heads)
    there = naming.to_table(bundle.shapes)
    assert len(there) == len(bundle.shapes)
    found = {}
    for row in (*naming.encoder, *(row for head in config.with_heads for row in naming.heads[head])):
        if row.ours not in params:
            assert row.ours.startswith("embeddings/projection/")  # E is D
            continue
        shape = params[row.ours].shape
        if row.part in ("attention", "feed_forward"):
            names = [row.theirs.format(**place) for place in naming.places(config)]
            found[row.ours] = np.stack([row.transform.load(bundle.read(there.pop(name)), shape[1:]) for name in names])
        else:
            found[row.ours] = row.transform.load(bundle.read(there.pop(row.theirs)), shape)
    assert found.keys() == params.keys()
    for path, a in found.items():
        assert a.dtype == np.float32 and np.array_equal(a, params[path]), path
    assert all(naming.ignored.match(name) for name in there.values())
    assert len(there) == len(slots)


def test_kernels_are_inputs_by_outputs_and_heads_one_axis():
    config = EncoderConfig(**BERT)
    params, variables = tensors_of(BERT_TF1, config)
    query = params["attention/query/kernel"]  # [layers, D, N, H]
    assert np.array_equal(variables["bert/encoder/layer_2/attention/self/query/kernel"][3], query[2, 3].reshape(-1))
    output = params["attention/output/kernel"]  # [layers, N, H, D]
    assert np.array_equal(variables["bert/encoder/layer_1/attention/output/dense/kernel"][5], output[1, 1, 1])
    assert np.array_equal(variables["cls/seq_relationship/output_weights"], params["pair/dense/kernel"].T)
    _, variables = tensors_of(BERT_TF2, config)
    assert np.array_equal(variables["_transformer_layers/2/_attention_layer/_query_dense/kernel"], query[2])
    assert np.array_equal(variables["_transformer_layers/1/_attention_layer/_output_dense/kernel"], output[1])
    assert np.array_equal(variables["classification_heads/0/out_proj/kernel"], params["pair/dense/kernel"])


@pytest.mark.parametrize(
    ("naming", "attention", "feed_forward", "wide"),
    [
        (BERT_TF1, "/layer_0/attention/output/LayerNorm", "/layer_0/output/LayerNorm", "/layer_0/intermediate/dense"),
        (ALBERT_TF1, "/inner_group_0/LayerNorm", "/inner_group_0/LayerNorm_1", "/ffn_1/intermediate/dense"),
        (ELECTRA_TF1, "/layer_0/attention/output/LayerNorm", "/layer_0/output/LayerNorm", "/layer_0/intermediate/dense"),
        (BERT_TF2, "/0/_attention_layer_norm", "/0/_output_layer_norm", "/0/_intermediate_dense"),
    ],
)
def test_blocks_of_equal_shapes_keep_their_places(naming, attention, feed_forward, wide):
    for ours, theirs in [
        ("attention/norm/scale", f"{attention}/gamma"),
        ("attention/norm/bias", f"{attention}/beta"),
        ("feed_forward/norm/scale", f"{feed_forward}/gamma"),
        ("feed_forward/norm/bias", f"{feed_forward}/beta"),
        ("feed_forward/intermediate/kernel", f"{wide}/kernel"),
    ]:
        assert naming.table_name(ours, layer=0, group=0, inner=0).endswith(theirs)
    for part in ("query", "key", "value"):
        for leaf in ("kernel", "bias"):
            assert f"/{part}/{leaf}" in naming.table_name(f"attention/{part}/{leaf}", layer=0, group=0, inner=0).replace(
                f"_{part}_dense", part
            )


# Names that google-research's code gave when it ran in TensorFlow 2.21; layer 0, and the heads.
ELECTRA_NAMES = """electra/embeddings/LayerNorm/beta electra/embeddings/LayerNorm/gamma
    electra/embeddings/position_embeddings electra/embeddings/token_type_embeddings electra/embeddings/word_embeddings
    electra/embeddings_project/bias electra/embeddings_project/kernel
    electra/encoder/layer_0/attention/output/LayerNorm/beta electra/encoder/layer_0/attention/output/LayerNorm/gamma
    electra/encoder/layer_0/attention/output/dense/bias electra/encoder/layer_0/attention/output/dense/kernel
    electra/encoder/layer_0/attention/self/key/bias electra/encoder/layer_0/attention/self/key/kernel
    electra/encoder/layer_0/attention/self/query/bias electra/encoder/layer_0/attention/self/query/kernel
    electra/encoder/layer_0/attention/self/value/bias electra/encoder/layer_0/attention/self/value/kernel
    electra/encoder/layer_0/intermediate/dense/bias electra/encoder/layer_0/intermediate/dense/kernel
    electra/encoder/layer_0/output/LayerNorm/beta electra/encoder/layer_0/output/LayerNorm/gamma
    electra/encoder/layer_0/output/dense/bias electra/encoder/layer_0/output/dense/kernel
    discriminator_predictions/dense/bias discriminator_predictions/dense/kernel
    discriminator_predictions/dense_1/bias discriminator_predictions/dense_1/kernel""".split()
GENERATOR_HEAD = """generator_predictions/LayerNorm/beta generator_predictions/LayerNorm/gamma
    generator_predictions/dense/bias generator_predictions/dense/kernel generator_predictions/output_bias""".split()


def names_in(naming: Naming) -> set[str]:
    return {row.theirs.format(layer=0) for row in (*naming.encoder, *(row for rows in naming.heads.values() for row in rows))}


def test_electra_names():
    assert names_in(ELECTRA_TF1) == set(ELECTRA_NAMES)
    encoder = {name for name in ELECTRA_NAMES if name.startswith("electra/")}
    assert names_in(ELECTRA_TIED_GENERATOR_TF1) == encoder | set(GENERATOR_HEAD)
    own = {name.replace("electra/", "generator/") for name in encoder}
    assert names_in(ELECTRA_UNTIED_GENERATOR_TF1) == own | set(GENERATOR_HEAD)
    shared = {name for name in encoder if name.startswith("electra/embeddings/")}
    own = {name for name in own if not name.startswith("generator/embeddings/")}
    assert names_in(ELECTRA_GENERATOR_TF1) == shared | own | set(GENERATOR_HEAD)


def write_electra(prefix, generator: Naming) -> None:
    _, variables = tensors_of(ELECTRA_TF1, EncoderConfig(**DISCRIMINATOR))
    width = 8 if generator is ELECTRA_UNTIED_GENERATOR_TF1 else 6
    variables |= tensors_of(generator, EncoderConfig(**GENERATOR | dict(embedding_width=width)))[1]
    write_bundle(prefix, variables)


@pytest.mark.parametrize("generator", [ELECTRA_GENERATOR_TF1, ELECTRA_UNTIED_GENERATOR_TF1, ELECTRA_TIED_GENERATOR_TF1])
def test_an_electra_checkpoint_holds_two_models(tmp_path, caplog, generator):
    write_electra(tmp_path / "electra_small", generator)
    bundle = TensorBundle(tmp_path / "electra_small")
    found = recognise(bundle)
    assert found == (ELECTRA_TF1, generator)
    claimed = [{row.theirs.format(layer=i) for row in naming.encoder for i in range(3)} for naming in found]
    for naming, names in zip(found, claimed, strict=True):
        names |= {row.theirs for rows in naming.heads.values() for row in rows}
        assert [name for name in bundle.shapes if name not in names and not naming.ignored.match(name)] == []
    with caplog.at_level(logging.WARNING):
        settings = read_config(tmp_path, bundle, found[0])
    assert settings["num_attention_heads"] == 1 and settings["hidden_act"] == "gelu"  # erf, unlike Google's BERT
    assert settings["embedding_size"] == 6 and settings["num_hidden_layers"] == 3
    (record,) = caplog.records
    assert "electra_small: no file beside it states num_attention_heads 1, hidden_act gelu" in record.getMessage()


# The model garden numbers layers or names them, and has several roots


def numbered(variables: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """As `BertEncoder` stores them."""
    first = ["_embedding_layer", "_position_embedding_layer", "_type_embedding_layer", "_embedding_norm_layer"]
    numbers = {name: i for i, name in enumerate(first)} | {"_pooler_layer": layers + 4}
    out = {}
    for name, a in variables.items():
        part, _, rest = name.partition("/")
        if part == "_transformer_layers":
            number, _, rest = rest.partition("/")
            out[f"encoder/layer_with_weights-{int(number) + 4}/{rest}"] = a
        elif part in numbers:
            out[f"encoder/layer_with_weights-{numbers[part]}/{rest}"] = a
        else:
            out[name] = a
    return out


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("root", ["", "model/"])
def test_model_garden_with_numbered_layers(tmp_path, root, old):
    config = EncoderConfig(**BERT | dict(layers=12))
    params, variables = tensors_of(BERT_TF2, config)
    expected = {**variables}
    there = numbered(variables, 12)
    if old:  # the shorter path of its day
        there = {name.replace("_attention_layer/_output_dense", "_attention_output_dense"): a for name, a in there.items()}
    there["masked_lm/embedding_table"] = there.pop("encoder/layer_with_weights-0/embeddings")
    pooler = {f"encoder/layer_with_weights-16/{part}" for part in ("kernel", "bias")}
    untrained = {name: there[name] + 1 for name in pooler}
    there |= {f"next_sentence..pooler_dense/{name.rpartition('/')[2]}": there[name] for name in pooler} | untrained
    write_bundle(tmp_path / "bert", garden(there, root))
    bundle = TensorBundle(tmp_path / "bert")
    assert recognise(bundle) == (BERT_TF2,)
    assert BERT_TF2.heads_in(bundle.shapes) == ("pooler", "mlm", "pair")
    table = BERT_TF2.to_table(bundle.shapes)
    for name, a in expected.items():
        assert np.array_equal(bundle.read(table.pop(name)), a), name
    # The encoder's pooler feeds nothing beside a next-sentence head: it is the one thing left.
    assert {*table.values()} == {f"{root}{name}/.ATTRIBUTES/VARIABLE_VALUE" for name in pooler}
    settings = read_config(tmp_path, bundle, BERT_TF2)
    assert settings["num_hidden_layers"] == 12 and settings["num_attention_heads"] == 2


# Settings


def write_bert(folder, naming: Naming = BERT_TF1, **changes) -> TensorBundle:
    config = EncoderConfig(**(ALBERT if naming is ALBERT_TF1 else BERT) | changes)
    write_bundle(folder / "bert_model.ckpt", tensors_of(naming, config)[1])
    return TensorBundle(folder / "bert_model.ckpt")


STATED = dict(
    hidden_size=8, hidden_act="gelu", num_attention_heads=2, hidden_dropout_prob=0.25, attention_probs_dropout_prob=0,
    initializer_range=0.01, vocab_size=31, directionality="bidi", pooler_type="first_token_transform",
)  # fmt: skip


@pytest.mark.parametrize("file", ["bert_config.json", "bert_model.ckpt.config.json", "config.json", "my_config_tiny.json"])
def test_settings_of_the_file_and_of_the_shapes(tmp_path, caplog, file):
    (tmp_path / file).write_text(json.dumps(STATED))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert read_config(tmp_path, write_bert(tmp_path), BERT_TF1) == {
        "model_type": "bert", "vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 10, "max_position_embeddings": 9, "type_vocab_size": 2, "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0, "initializer_range": 0.01, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    assert ["read as the tanh form" in record.getMessage() for record in caplog.records] == [True]


def test_albert_needs_a_file_for_its_depth(tmp_path, caplog):
    bundle = write_bert(tmp_path, ALBERT_TF1)
    with pytest.raises(BertJaxError, match="does not say num_hidden_layers.*albert_config.json beside bert_model.ckpt"):
        read_config(tmp_path, bundle, ALBERT_TF1)
    (tmp_path / "albert_config.json").write_text('{"num_hidden_layers": 6, "num_hidden_groups": 2, "inner_group_num": 3}')
    settings = read_config(tmp_path, bundle, ALBERT_TF1)
    assert (settings["num_hidden_layers"], settings["num_hidden_groups"], settings["inner_group_num"]) == (6, 2, 3)
    assert settings["embedding_size"] == 6 and settings["hidden_act"] == "gelu_new" and settings["hidden_dropout_prob"] == 0
    assert "assumed" in caplog.text


def test_settings_that_are_wrong_are_refused(tmp_path):
    bundle = write_bert(tmp_path)
    file = tmp_path / "bert_config.json"
    file.write_text(json.dumps(STATED | {"num_hidden_layers": 4}))
    with pytest.raises(BertJaxError, match="says num_hidden_layers 4, bert_model.ckpt and its code 3: .* another model"):
        read_config(tmp_path, bundle, BERT_TF1)
    file.write_text("[]")
    with pytest.raises(BertJaxError, match="a JSON object is needed"):
        read_config(tmp_path, bundle, BERT_TF1)
    file.write_bytes(b"\xff\xfe{")
    with pytest.raises(BertJaxError, match="is not JSON"):
        read_config(tmp_path, bundle, BERT_TF1)
    file.rename(tmp_path / "a_config.json")
    (tmp_path / "b_config.json").touch()
    with pytest.raises(BertJaxError, match="a_config.json, b_config.json: name the one of bert_model.ckpt bert_config.json"):
        read_config(tmp_path, bundle, BERT_TF1)


def test_variables_that_are_wrong_are_refused(tmp_path):
    _, variables = tensors_of(BERT_TF1, EncoderConfig(**BERT))
    position, token = "bert/embeddings/position_embeddings", "bert/embeddings/word_embeddings"
    for changes, why in [
        ({position: None}, "position_embeddings is missing"),
        ({position: np.zeros(4, np.float32)}, r"position_embeddings is \[4\]"),
        ({token: np.zeros((31, 6), np.float32)}, "embeddings of width 6 in a BERT of width 8"),
    ]:
        changed = {name: a for name, a in (variables | changes).items() if a is not None}
        write_bundle(tmp_path / "bert", changed)
        with pytest.raises(BertJaxError, match=why):
            read_config(tmp_path, TensorBundle(tmp_path / "bert"), BERT_TF1)
    write_bundle(tmp_path / "bert", {"bert/encoder/layer_shared/attention/self/query/kernel": np.zeros((8, 8), np.float32)})
    with pytest.raises(BertJaxError, match="1 variables .bert/encoder/layer_shared/.* are not named as in BERT, ALBERT"):
        recognise(TensorBundle(tmp_path / "bert"))


@pytest.mark.parametrize(
    ("name", "naming", "expected"),
    [
        ("bert_wwm", BERT_TF1, dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=21128)),
        ("llSiddharthll_bert", BERT_TF1, dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8)),
        ("uncased_L-4_H-256_A-4", BERT_TF1, dict(hidden_size=256, num_hidden_layers=4, intermediate_size=1024)),
        ("albert_tiny_zh_google", ALBERT_TF1, dict(hidden_size=312, embedding_size=128, num_attention_heads=12)),
    ],
)
def test_real_indexes(data_dir, caplog, name, naming, expected):
    bundle = TensorBundle(data_dir / "tf_index" / name)
    assert recognise(bundle) == (naming,)
    assert naming.heads_in(bundle.shapes) == ("pooler", "mlm", "pair")
    settings = read_config(data_dir / "tf_index", bundle, naming)
    assert settings["hidden_act"] == "gelu_new"
    assert {key: settings[key] for key in expected} == expected
    assert not [record for record in caplog.records if "read as the tanh form" not in record.getMessage()]
    rows = (*naming.encoder, *(row for head in ("pooler", "mlm", "pair") for row in naming.heads[head]))
    claimed = {row.theirs.format(layer=i, group=0, inner=0) for row in rows for i in range(settings["num_hidden_layers"])}
    assert claimed <= bundle.shapes.keys()
    assert all(naming.ignored.match(name) for name in bundle.shapes.keys() - claimed)


def test_every_naming_is_tested():
    assert {naming.name for naming, _ in CASES} == {naming.name for naming in NAMINGS}


@pytest.mark.parametrize(("naming", "settings"), CASES, ids=KINDS)
def test_load_and_hand_over(tmp_path, naming, settings, caplog):
    """A folder as Google packs it -> the same parameters -> a Hugging Face directory -> the same parameters."""
    config = EncoderConfig(**settings)
    params, variables = tensors_of(naming, config)
    folder = tmp_path / "google"
    folder.mkdir()
    both = variables
    if naming.name == "electra-tf1" and naming is not ELECTRA_TF1:  # the discriminator lies beside its generator
        both = tensors_of(ELECTRA_TF1, EncoderConfig(**DISCRIMINATOR | dict(embedding_width=config.embedding_width)))[1] | both
    write_bundle(folder / "model.ckpt", garden(variables) if naming is BERT_TF2 else both)
    sizes = {
        "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": config.layers, "intermediate_size": 10,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        "max_position_embeddings": 9, "type_vocab_size": 2, "vocab_size": 31,
    } | ({"embedding_size": config.embedding_width} if naming.model_type != "bert" else {})  # fmt: skip
    (folder / ("albert_config.json" if naming.model_type == "albert" else "bert_config.json")).write_text(json.dumps(sizes))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]))
    generator = naming.model_type == "electra" and config.with_heads == ("mlm",)
    with caplog.at_level(logging.WARNING, "bert_jax"):
        model = bert_jax.load(f"{folder}#generator" if generator else folder)
    gelu = "gelu" if naming.model_type == "electra" else "gelu_new"
    assert model.config.activation == gelu and model.config.with_heads == config.with_heads
    assert model.tokenizer.vocab_size == 31
    assert_same_bits(model.params, params)

    bert_jax.save(model, tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["model_type"] == naming.model_type and written["hidden_act"] == gelu
    again = bert_jax.load(tmp_path / "hf")
    assert again.config == model.config
    assert_same_bits(again.params, params)


def assert_same_bits(tree, params) -> None:
    found = flatten(tree)
    assert found.keys() == params.keys()
    for path, a in params.items():  # a generator has no file of settings: its heads are counted by width 64
        assert np.array_equal(found[path].reshape(a.shape), a), path


def test_electra_has_two_models(tmp_path, caplog):
    cases = ((ELECTRA_TF1, DISCRIMINATOR), (ELECTRA_GENERATOR_TF1, GENERATOR))
    both = {name: a for naming, settings in cases for name, a in tensors_of(naming, EncoderConfig(**settings))[1].items()}
    write_bundle(tmp_path / "electra", both)
    with caplog.at_level(logging.WARNING, "bert_jax"):
        assert bert_jax.load(tmp_path).config.with_heads == ("discriminator",)
    assert "put #generator behind the path" in caplog.text
    assert bert_jax.load(f"{tmp_path}/electra#generator").config.with_heads == ("mlm",)
    assert bert_jax.inspect(f"{tmp_path}#discriminator").config.with_heads == ("discriminator",)
    with pytest.raises(BertJaxError, match="has no part 'judge': discriminator, generator is there"):
        bert_jax.load(f"{tmp_path}#judge")
