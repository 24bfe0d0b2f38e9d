"""XLNet's directories beyond what every family has: the language model and question answering, in and out."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="the reference is PyTorch (the torch extra)")
transformers = pytest.importorskip("transformers", reason="the reference is transformers (the torch extra)")

from bert_jax import model  # noqa: E402
from bert_jax.convert import hf  # noqa: E402
from bert_jax.errors import BertJaxError  # noqa: E402
from bert_jax.models import api  # noqa: E402

SIZES = dict(vocab_size=40, d_model=16, n_layer=3, n_head=2, d_inner=20, ff_activation="gelu_new", mem_len=7,
             id2label={0: "x", 1: "y"})


def make_model(kind: str, **changes):
    torch.manual_seed(0)
    reference = getattr(transformers, kind)(transformers.XLNetConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(mean=1.0 if "layer_norm.weight" in name else 0.0, std=0.3)
    return reference


@pytest.mark.parametrize("kind, head", [
    ("XLNetModel", None), ("XLNetLMHeadModel", "mlm"), ("XLNetForTokenClassification", "tagger"),
    ("XLNetForQuestionAnsweringSimple", "span"),
])  # fmt: skip
def test_in_and_out(kind, head, tmp_path):
    reference = make_model(kind)
    reference.save_pretrained(tmp_path / "theirs")
    found = model.load(tmp_path / "theirs")
    assert found.config.with_heads == ((head,) if head else ()) and found.config.positions == "relative"
    ids = np.random.default_rng(0).integers(0, 40, (2, 9))
    segments = np.array([[0] * 4 + [1] * 4 + [2]] * 2)
    with torch.no_grad():
        theirs = reference(torch.tensor(ids), token_type_ids=torch.tensor(segments), use_mems=False)
    ours = api.apply(found.params, found.config, {"input_ids": ids, "segment_ids": segments})
    if head is None:
        np.testing.assert_allclose(ours.hidden, theirs.last_hidden_state.numpy(), atol=1e-5, rtol=0)
    elif head == "span":
        np.testing.assert_allclose(ours.logits["span"][..., 0], theirs.start_logits.numpy(), atol=1e-5, rtol=0)
        np.testing.assert_allclose(ours.logits["span"][..., 1], theirs.end_logits.numpy(), atol=1e-5, rtol=0)
    else:
        np.testing.assert_allclose(ours.logits[head], theirs.logits.numpy(), atol=1e-5, rtol=0)

    for format in ("hf", "bert_jax"):
        model.save(found, tmp_path / format, format=format)
        again = model.load(tmp_path / format)
        assert again.config == found.config and again.origin == found.origin
        model.save(again, tmp_path / f"from-{format}", format="hf")
        saved, written = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", f"from-{format}"))
        assert written.keys() == saved.keys()
        for name, a in saved.items():
            np.testing.assert_array_equal(written[name], a, err_msg=name)
        before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", f"from-{format}"))
        assert after == before
    again, report = type(reference).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize("changes", [{"attn_type": "uni"}, {"bi_data": True}, {"clamp_len": 64}], ids=str)
def test_other_xlnets_are_refused(changes, tmp_path):
    make_model("XLNetModel", **changes).save_pretrained(tmp_path / "theirs")
    with pytest.raises(BertJaxError, match=f"{next(iter(changes))} is .*, only .* can be read"):
        hf.load(tmp_path / "theirs")
