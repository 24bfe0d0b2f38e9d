"""Directories of sentence-transformers: every form that its versions wrote, the form that we write, and every refusal."""

import json
import logging
import pathlib
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bert_jax.convert import sentence_transformers as files
from bert_jax.embedding.settings import POOLINGS, Prompt, SentenceSettings
from bert_jax.errors import BertJaxError

OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
MEAN = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def modules(*kinds: str, root: str = "", new: bool = False, **changes: Any) -> list[dict]:
    """modules.json; the first module lies in `root`, `changes` are made to the second."""
    paths = [root, *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": NEW[kind] if new else OLD + kind}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    listed[1] |= changes
    return listed


@pytest.fixture
def lay(tmp_path):
    """``lay({name: content})`` writes files (content as JSON, or text as it is) over a directory that is complete."""

    def write(changes: dict[str, Any]) -> pathlib.Path:
        complete = {
            "modules.json": modules("Transformer", "Pooling"),
            "config.json": {"model_type": "bert", "max_position_embeddings": 512},
            "1_Pooling/config.json": MEAN,
        }
        for name, content in (complete | changes).items():
            if content is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


def settings_of(directory: pathlib.Path) -> SentenceSettings:
    return files.read(directory)[1]


def test_an_ordinary_directory_is_none_of_these(lay):
    directory = lay({})
    (directory / "modules.json").unlink()
    assert files.read(directory) is None


def test_another_kind_of_their_models_is_read_as_what_its_config_describes(lay, caplog):
    """A CrossEncoder has modules.json too, and is a classifier like any other."""
    directory = lay({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}})
    assert files.read(directory) is None
    assert "is a CrossEncoder of sentence-transformers: read as the model that its config.json describes" in caplog.text


def test_defaults(lay):
    directory = lay({})
    assert files.read(directory) == (directory, SentenceSettings(("mean",), max_length=512))


def test_form_of_version_2(lay):
    directory = lay({
        "modules.json": modules("Transformer", "Pooling", "Normalize"),
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
        "config_sentence_transformers.json": {"__version__": {"sentence_transformers": "2.0.0"}},
    })
    assert settings_of(directory) == SentenceSettings(("mean",), normalize=True, max_length=128, lowercase=True)


def test_form_of_version_6(lay, caplog):
    directory = lay({
        "modules.json": modules("Transformer", "Pooling", "Normalize", new=True),
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        },
        "tokenizer_config.json": {"model_max_length": 256},
        "1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": False},
        "2_Normalize/config.json": dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding"),
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer", "similarity_fn_name": "dot", "default_prompt_name": "query",
            "prompts": {"query": "q: ", "document": "", "none": None},
        },
    })  # fmt: skip
    assert settings_of(directory) == SentenceSettings(
        ("lasttoken",), normalize=True, max_length=256, default_prompt="query", include_prompt=False, similarity="dot",
        prompts=(Prompt("query", "q: "), Prompt("document", ""), Prompt("none", "")),
    )  # fmt: skip
    assert not caplog.records


@pytest.mark.parametrize("kind", ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"))
def test_encoder_in_a_folder_of_its_own(lay, kind):
    directory = lay({
        "modules.json": modules("Transformer", "Pooling", root="0_Transformer"),
        "0_Transformer/config.json": {"max_position_embeddings": 300},
        f"0_Transformer/sentence_{kind}_config.json": {"max_seq_length": 75},
    })
    assert files.read(directory) == (directory / "0_Transformer", SentenceSettings(("mean",), max_length=75))


@pytest.mark.parametrize("mode", POOLINGS)
def test_each_pooling_in_both_forms(lay, mode):
    names = {"cls": "cls_token", "mean_sqrt_len_tokens": mode, "lasttoken": mode}
    flag = f"pooling_mode_{names.get(mode, mode + '_tokens')}"
    flags = MEAN | {"pooling_mode_mean_tokens": False, flag: True}
    assert settings_of(lay({"1_Pooling/config.json": flags})).pooling == (mode,)
    assert settings_of(lay({"1_Pooling/config.json": {"pooling_mode": mode}})).pooling == (mode,)


def test_several_poolings(lay):
    """Flags are concatenated in the order of the module's code, whatever their order in the file; a list has its own."""
    flags = {"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}
    assert settings_of(lay({"1_Pooling/config.json": flags})).pooling == ("cls", "max", "lasttoken")
    listed = {"pooling_mode": ["lasttoken", "cls"], "pooling_mode_max_tokens": True}
    assert settings_of(lay({"1_Pooling/config.json": listed})).pooling == ("lasttoken", "cls")


@pytest.mark.parametrize(
    ("own", "tokenizer", "encoder", "expected"),
    [
        (128, 256, {}, 128),
        (None, 256, {}, 256),
        (None, 1000000000000000019884624838656, {}, 512),
        (None, None, {}, 512),
        (None, 512, {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        (None, None, {"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
    ],
)
def test_maximum_length(lay, caplog, own, tokenizer, encoder, expected):
    directory = lay({
        "sentence_bert_config.json": {"max_seq_length": own},
        "tokenizer_config.json": {"model_max_length": tokenizer},
        "config.json": {"model_type": "bert", "max_position_embeddings": 512} | encoder,
    })
    assert settings_of(directory).max_length == expected
    assert not caplog.records


@pytest.mark.parametrize(("own", "tokenizer", "expected"), [(700, 600, 700), (None, 600, 600), (None, None, int(1e30))])
def test_maximum_length_of_an_encoder_without_positions(lay, caplog, own, tokenizer, expected):
    directory = lay({
        "sentence_bert_config.json": {"max_seq_length": own},
        "tokenizer_config.json": {"model_max_length": tokenizer},
        "config.json": {"model_type": "xlnet", "d_model": 8},
    })
    assert settings_of(directory).max_length == expected
    assert not caplog.records


def test_maximum_length_beyond_the_positions(lay, caplog):
    """A published XLM-RoBERTa says 514, at which its position table has ended."""
    directory = lay({
        "sentence_bert_config.json": {"max_seq_length": 514},
        "config.json": {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1},
    })
    with caplog.at_level(logging.WARNING, "bert_jax"):
        assert settings_of(directory).max_length == 512
    assert "has 512 positions, so this is the maximum length, not 514" in caplog.text


def test_arguments_of_loaders_are_named(lay, caplog):
    settings_of(lay({"sentence_bert_config.json": {"model_args": {"torch_dtype": "float16"}, "config_args": {}}}))
    assert caplog.messages[0].endswith("not applied: model_args")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"modules.json": modules("Transformer", "Dense")}, "module 1 is sentence_transformers.models.Dense: only"),
        ({"modules.json": modules("Transformer", "CNN")}, "models.CNN: only Transformer, Pooling and Normalize"),
        ({"modules.json": modules("Transformer", "LSTM")}, "models.LSTM"),
        ({"modules.json": modules("Transformer", "WeightedLayerPooling")}, "models.WeightedLayerPooling"),
        ({"modules.json": modules("Router", "Pooling")}, "module 0 is sentence_transformers.models.Router"),
        ({"modules.json": modules("Transformer", "Pooling", type="custom_st.Pooling")}, "module 1 is custom_st.Pooling"),
        ({"modules.json": modules("Transformer", "Pooling", kwargs=["task"])}, "models.Pooling with arguments"),
        ({"modules.json": modules("Transformer", "Normalize")}, "the modules are Transformer, Normalize: Transformer, Poo"),
        ({"modules.json": modules("Pooling", "Transformer")}, "the modules are Pooling, Transformer"),
        ({"modules.json": modules("Transformer", "Pooling")[:1]}, "the modules are Transformer:"),
        ({"modules.json": []}, "the modules are none"),
        ({"modules.json": {"0": "Transformer"}}, "a JSON list is needed, this is a dict"),
        ({"modules.json": ["Transformer"]}, "a list of modules is needed"),
        ({"modules.json": modules("Transformer", "Pooling", path=None)}, "module 1 needs a type and a path"),
        ({"modules.json": modules("Transformer", "Pooling", path="../1_Pooling")}, "'../1_Pooling' of module 1 leads out"),
        ({"modules.json": modules("Transformer", "Pooling", path="/etc")}, "'/etc' of module 1 leads out"),
        ({"modules.json": modules("Transformer", "Pooling", path="a\0b")}, "of module 1 leads out of the directory"),
        ({"modules.json": modules("Transformer", "Pooling", root="link")}, "'link' of module 0 leads out"),
        ({"modules.json": "[{"}, "modules.json is not JSON"),
        ({"1_Pooling/config.json": None}, "1_Pooling/config.json cannot be read: No such file"),
        ({"1_Pooling/config.json": []}, "1_Pooling/config.json: a JSON object is needed"),
        ({"1_Pooling/config.json": {"pooling_mode": []}}, "pooling is empty: name one or more of cls"),
        ({"1_Pooling/config.json": {"pooling_mode": "median"}}, "settings.pooling.0: 'median' is not one of cls, max"),
        ({"1_Pooling/config.json": {"pooling_mode": ["cls", "cls"]}}, "pooling is cls, cls"),
        ({"1_Pooling/config.json": MEAN | {"include_prompt": "yes"}}, "include_prompt: expected bool, got 'yes'"),
        ({"config.json": None}, "config.json cannot be read"),
        ({"config.json": {}}, "max_position_embeddings is None: a number is needed"),
        ({"sentence_bert_config.json": {"max_seq_length": "256"}}, "max_seq_length is '256'"),
        ({"sentence_bert_config.json": {"max_seq_length": True}}, "max_seq_length is True"),
        ({"sentence_bert_config.json": {"max_seq_length": 1}}, "max_length is 1"),
        ({"sentence_bert_config.json": {"transformer_task": "fill-mask"}}, "transformer_task is 'fill-mask': only 'feat"),
        ({"sentence_bert_config.json": {"module_output_name": "sentence_embedding"}}, "module_output_name is 'sentence_e"),
        ({"sentence_bert_config.json": {"modality_config": {"image": {}}}}, "modality_config is .*image"),
        ({"config_sentence_transformers.json": {"prompts": ["query: "]}}, "prompts is .*an object of names and texts"),
        ({"config_sentence_transformers.json": {"prompts": {"query": 1}}}, "prompts.0.text: expected str, got 1"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "no prompt is called 'query'"),
        ({"config_sentence_transformers.json": {"similarity_fn_name": "angle"}}, "'angle' is not one of cosine, dot"),
        (
            {
                "modules.json": modules("Transformer", "Pooling", "Normalize"),
                "2_Normalize/config.json": {"module_input_name": "token_embeddings"},
            },
            "module_input_name is 'token_embeddings': only 'sentence_embedding'",
        ),
    ],
)
def test_refusals(lay, tmp_path_factory, changes, complaint):
    directory = lay(changes)
    if changes.get("1_Pooling/config.json", MEAN) is None or changes.get("config.json", MEAN) is None:
        assert not (directory / next(iter(changes))).exists()
    (directory / "link").symlink_to(tmp_path_factory.mktemp("outside"))
    with pytest.raises(BertJaxError, match=complaint) as raised:
        files.read(directory)
    assert "\n" not in str(raised.value) and str(directory) in str(raised.value)


PROMPTS = st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=3)


@st.composite
def drawn(draw) -> SentenceSettings:
    prompts = draw(PROMPTS)
    return SentenceSettings(
        pooling=tuple(draw(st.lists(st.sampled_from(POOLINGS), min_size=1, unique=True))),
        normalize=draw(st.booleans()),
        max_length=draw(st.integers(3, 512)),
        prompts=tuple(Prompt(name, text) for name, text in prompts.items()),
        default_prompt=draw(st.sampled_from([None, *prompts])),
        lowercase=draw(st.booleans()),
        include_prompt=draw(st.booleans()),
        similarity=draw(st.sampled_from(["cosine", "dot", "euclidean", "manhattan"])),
    )


@hypothesis_settings(deadline=None)
@given(drawn())
def test_round_trip(settings):
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        (directory / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 512}')
        files.write(directory, settings, hidden_width=8)
        assert files.read(directory) == (directory, settings)


def test_form_that_old_versions_load(lay):
    """2.2.2 passes the pooling's keys to a constructor that knows these five and no more; it never reads 2_Normalize."""
    directory = lay({"modules.json": None, "1_Pooling/config.json": None})
    files.write(directory, SentenceSettings(("cls", "mean"), normalize=True, max_length=128), hidden_width=8)
    assert json.loads((directory / "1_Pooling" / "config.json").read_text()) == {
        "word_embedding_dimension": 8,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    sentence = json.loads((directory / "sentence_bert_config.json").read_text())
    assert sentence == {"max_seq_length": 128, "do_lower_case": False}
    listed = json.loads((directory / "modules.json").read_text())
    assert listed == modules("Transformer", "Pooling", "Normalize")
    assert (directory / "2_Normalize").is_dir() and not any((directory / "2_Normalize").iterdir())


def test_written_length_fits_the_encoder(lay, caplog):
    directory = lay({"modules.json": None, "1_Pooling/config.json": None, "config.json": {"max_position_embeddings": 64}})
    files.write(directory, SentenceSettings(), hidden_width=8)
    assert "has 64 positions, so this is the maximum length, not 512" in caplog.text
    assert settings_of(directory).max_length == 64


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("present", ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"))
def test_nothing_is_overwritten(lay, present):
    complete = {"modules.json": None, "1_Pooling/config.json": None}
    directory = lay(complete | {present: {"here": "before"}})
    before = contents(directory)
    with pytest.raises(BertJaxError, match=f"{present.partition('/')[0]} exists: export to another directory"):
        files.write(directory, SentenceSettings(normalize=True), hidden_width=8)
    assert contents(directory) == before


def test_nothing_stays_half_written(lay):
    directory = lay({"modules.json": None, "1_Pooling/config.json": None})
    unwritable = SentenceSettings(normalize=True, prompts=(Prompt("query", "\ud800"),))
    with pytest.raises(BertJaxError, match="cannot write the files of sentence-transformers"):
        files.write(directory, unwritable, hidden_width=8)
    assert [path.name for path in directory.rglob("*")] == ["config.json"]


def test_an_encoder_is_needed(tmp_path):
    with pytest.raises(BertJaxError, match="config.json cannot be read"):
        files.write(tmp_path, SentenceSettings(), hidden_width=8)
    assert not any(tmp_path.iterdir())
