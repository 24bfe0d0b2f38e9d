"""The settings of a sentence encoder: what they refuse, and that they survive JSON."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.config import from_json, to_json
from bert_jax.embedding.settings import POOLINGS, Prompt, SentenceSettings
from bert_jax.errors import BertJaxError


@st.composite
def settings(draw):
    prompts = draw(st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=3))
    return SentenceSettings(
        pooling=tuple(draw(st.lists(st.sampled_from(POOLINGS), min_size=1, unique=True))),
        normalize=draw(st.booleans()),
        max_length=draw(st.integers(3, 4096)),
        prompts=tuple(Prompt(name, text) for name, text in prompts.items()),
        default_prompt=draw(st.sampled_from([None, *prompts])),
        lowercase=draw(st.booleans()),
        include_prompt=draw(st.booleans()),
        similarity=draw(st.sampled_from(["cosine", "dot", "euclidean", "manhattan"])),
    )


@given(settings())
def test_survive_json(value):
    assert from_json(SentenceSettings, json.loads(json.dumps(to_json(value)))) == value
    assert value.prompt_text(None) == (value.prompt_text(value.default_prompt) if value.default_prompt is not None else "")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"pooling": ()}, "pooling is empty: name one or more of cls, max, mean"),
        ({"pooling": ("mean", "max", "mean")}, "pooling is mean, max, mean: .* each once"),
        ({"pooling": ("median",)}, "pooling is median"),
        ({"max_length": 2}, "max_length is 2"),
        ({"prompts": (Prompt("query", "a"), Prompt("query", "b"))}, "'query' is given twice"),
        ({"default_prompt": "query"}, "no prompt is called 'query': this encoder has none"),
        ({"prompts": (Prompt("a", "x"), Prompt("b", "y")), "default_prompt": "c"}, "'c': there are 'a', 'b'"),
    ],
)
def test_refusals(fields, complaint):
    with pytest.raises(BertJaxError, match=complaint):
        SentenceSettings(**fields)


def test_need_no_jax():
    code = "import sys, bert_jax.embedding.settings, bert_jax.convert.sentence_transformers; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
