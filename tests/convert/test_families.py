"""Every family with every head against transformers, on random weights: in, computed alike, and out again unchanged.

docs/checkpoints.md has a table of family x head x direction; ``test_the_manual_shows_what_is_tested`` holds it against CASES.
"""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="the reference is PyTorch (the torch extra)")
transformers = pytest.importorskip("transformers", reason="the reference is transformers (the torch extra)")

from bert_jax.convert import hf  # noqa: E402
from bert_jax.convert.settings import FAMILIES  # noqa: E402
from bert_jax.models import api  # noqa: E402

SIZES = dict(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
    max_position_embeddings=20, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
)
SPECIFIC = {
    "bert": {"type_vocab_size": 3},
    "albert": {
        "embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2, "hidden_act": "gelu_new",
    },
    "electra": {"embedding_size": 8, "hidden_act": "gelu_new"},  # its heads have a gelu of their own
    "roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    "xlm-roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 3, "hidden_act": "relu"},
    "distilbert": {},
    "xlnet": {"pad_token_id": 0, "use_mems_eval": False},
}
HEADS = {  # ours -> the ending of the class, and where its logits are
    "encoder": ("Model", None),
    "pre-training": ("ForPreTraining", None),
    "masked LM": ("ForMaskedLM", "mlm"),
    "next sentence": ("ForNextSentencePrediction", "pair"),
    "sequence classification": ("ForSequenceClassification", "classifier"),
    "token classification": ("ForTokenClassification", "tagger"),
    "question answering": ("ForQuestionAnswering", "span"),
    "multiple choice": ("ForMultipleChoice", "choice"),
}
CASES = [
    (family.model_type, head)
    for family in FAMILIES for head, (ending, _) in HEADS.items()
    if any(name.endswith(ending) for name, _ in family.architectures)
]  # fmt: skip
B, L = 3, 9


def make_config(family: str, **changes):
    sizes = SIZES | SPECIFIC[family] | changes
    if family == "distilbert":
        names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
                 "intermediate_size": "hidden_dim", "hidden_dropout_prob": "dropout",
                 "attention_probs_dropout_prob": "attention_dropout"}  # fmt: skip
        sizes = {names.get(name, name): value for name, value in sizes.items()}
    if family == "xlnet":  # no longest sequence, one rate of dropout
        names = {"hidden_size": "d_model", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                 "intermediate_size": "d_inner", "hidden_dropout_prob": "dropout", "vocab_size": "vocab_size"}  # fmt: skip
        sizes = {names.get(name, name): a for name, a in sizes.items() if name in names or name in SPECIFIC[family] | changes}
    config = transformers.AutoConfig.for_model(family, **sizes)
    config._attn_implementation = "eager"
    return config


def make_model(family: str, head: str, **changes):
    named = {"id2label": {i: f"class {i}" for i in range(5)}} if "classification" in head else {}
    config = make_config(family, **named, **changes)
    cls = getattr(transformers, next(
        name for f in FAMILIES if f.model_type == family for name, _ in f.architectures if name.endswith(HEADS[head][0])
    ))
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():  # far from the usual 0.02, so that every bias, norm and activation shows
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, std=0.3)
    return model


def make_batch(model) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    pad = model.config.pad_token_id or 0
    mask = np.arange(L) < np.array([[L], [5], [7]])
    ids = np.where(mask, noise.integers(4, 50, (B, L)), pad)
    segments = 2 if model.config.model_type == "xlnet" else getattr(model.config, "type_vocab_size", 0)
    return {"input_ids": ids, "attention_mask": mask, "segment_ids": noise.integers(0, max(segments, 1), (B, L)) * mask}


def theirs(model, batch):
    names = {"input_ids": "input_ids", "attention_mask": "attention_mask", "token_type_ids": "segment_ids"}
    inputs = {name: batch[ours] for name, ours in names.items()}
    if model.config.model_type == "distilbert":
        del inputs["token_type_ids"]
    inputs = {name: torch.tensor(a).long() for name, a in inputs.items()}
    if type(model).__name__.endswith("ForMultipleChoice"):
        inputs = {name: a[None] for name, a in inputs.items()}
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True, output_attentions=True)


def expected_logits(model, output) -> dict[str, np.ndarray]:
    """By our head's name, as our shapes."""
    name = type(model).__name__
    if name.endswith("ForPreTraining"):
        if name.startswith("Electra"):
            return {"discriminator": output.logits}
        pair = output.sop_logits if name.startswith("Albert") else output.seq_relationship_logits
        return {"mlm": output.prediction_logits, "pair": pair}
    if name.endswith("ForQuestionAnswering"):
        return {"span": torch.stack([output.start_logits, output.end_logits], -1)}
    if name.endswith("ForMultipleChoice"):
        return {"choice": output.logits[0]}
    head = next((ours for ending, ours in HEADS.values() if ours and name.endswith(ending)), None)
    return {head: output.logits} if head else {}


@pytest.mark.parametrize("family, head", CASES)
def test_in_and_out(family, head, tmp_path):
    """Reads what PyTorch saved, computes the same, and writes what PyTorch reads as the same bits and settings."""
    model = make_model(family, head)
    model.save_pretrained(tmp_path / "theirs")
    params, config, origin = hf.load(tmp_path / "theirs")
    batch = make_batch(model)
    output = theirs(model, batch)
    ours = jax.jit(lambda p, b: api.apply(p, config, b, collect=("hidden_states", "attentions")))(
        params, {name: jnp.asarray(a) for name, a in batch.items()}
    )
    real = batch["attention_mask"]

    expected = expected_logits(model, output)
    assert ours.logits.keys() == expected.keys()
    for name, logits in expected.items():
        found, wanted = np.asarray(ours.logits[name]), logits.numpy()
        by_token = found.shape[:2] == (B, L)
        np.testing.assert_allclose(found[real] if by_token else found, wanted[real] if by_token else wanted, atol=1e-5, rtol=0)
    for layer in range(1, config.depth + 1):
        hidden = output.hidden_states[-layer].numpy()
        np.testing.assert_allclose(ours.collected["hidden_states"][-layer][real], hidden[real], atol=1e-5, rtol=0)
        attentions = np.moveaxis(np.asarray(ours.collected["attentions"][-layer]), 1, 2)[real]
        wanted = np.moveaxis(output.attentions[-layer].numpy(), 1, 2)[real]
        np.testing.assert_allclose(attentions, wanted, atol=1e-5, rtol=0)
    if head == "encoder" and "pooler" in config.with_heads:
        np.testing.assert_allclose(ours.pooled, output.pooler_output.numpy(), atol=1e-5, rtol=0)

    for source in (origin, None):  # as it came, and as a model that came from nowhere
        out = tmp_path / f"ours-{source is None}"
        if source is None and family == "xlm-roberta":
            continue  # a RoBERTa by any other name
        hf.export(params, config, None, out, origin=source)
        again, report = type(model).from_pretrained(out, output_loading_info=True, attn_implementation="eager")
        assert not any(report.values()), report
        saved, written = load_file(tmp_path / "theirs" / "model.safetensors"), load_file(out / "model.safetensors")
        for name, a in written.items():
            assert a.dtype == saved[name].dtype and np.array_equal(a, saved[name]), name
        assert {name: a for name, a in again.state_dict().items() if not torch.equal(a, model.state_dict()[name])} == {}
        if source is not None:
            assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}
            before, after = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "theirs", out))
            assert after == before
        np.testing.assert_allclose(theirs(again, batch)[0].numpy(), output[0].numpy(), atol=1e-6, rtol=0)
        assert hf.load(out)[1] == config


@pytest.mark.parametrize("family", [family.model_type for family in FAMILIES])
def test_gradients(family, tmp_path):
    """Of a loss on all tokens' states, mapped into their names by the same table."""
    model = make_model(family, "token classification").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for flag in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(model.config, flag):
            setattr(model.config, flag, 0.0)
    model.save_pretrained(tmp_path / "theirs")
    params, config, origin = hf.load(tmp_path / "theirs")
    batch = make_batch(model)
    real = batch["attention_mask"]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": real, "token_type_ids": batch["segment_ids"]}
    if family == "distilbert":
        del inputs["token_type_ids"]
    # In float64: beside PyTorch's float32 its rounding adds to ours, on one processor to 3.6e-5 of a gradient's largest.
    logits = model.double()(**{name: torch.tensor(a).long() for name, a in inputs.items()}).logits
    (logits[torch.tensor(real)] ** 2).mean().backward()

    def loss(params):
        found = api.apply(params, config, {name: jnp.asarray(a) for name, a in batch.items()}).logits["tagger"]
        return ((found**2).mean(-1) * real).sum() / real.sum()

    gradients = hf.to_tensors(jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params)), config, origin)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_emb"):  # XLNet's second stream, which is not asked here (tests/models/test_relative.py)
            assert parameter.grad is None and not gradients[name].any()
            continue
        wanted = parameter.grad.numpy()
        largest = np.abs(wanted).max()
        if "key.bias" in name or "k_lin.bias" in name:  # softmax ignores it: its gradient is zero but for rounding
            assert max(largest, np.abs(gradients[name]).max()) < 1e-5
            continue
        # Ours is float32: ALBERT's queries, through sums that nearly cancel, are off by up to 3.0e-5 of their largest.
        np.testing.assert_allclose(gradients[name], wanted, atol=5e-5 * largest, rtol=0, err_msg=name)


def test_the_manual_shows_what_is_tested():
    """Every family and head has a cell in both directions, and no cell promises what is not tested."""
    text = (pathlib.Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    rows = re.findall(r"^\| ([a-z -]+) \|(.*)\|$", text, re.MULTILINE | re.IGNORECASE)
    names = [name.model_type for name in FAMILIES]
    header = next(cells for first, cells in rows if first == "head")
    assert [cell.strip() for cell in header.split("|")] == names
    shown = {
        (family, head)
        for head, cells in rows if head in HEADS
        for family, cell in zip(names, cells.split("|"), strict=True) if cell.strip() == "in, out"
    }  # fmt: skip
    assert shown == set(CASES)


def test_positions_are_offset(tmp_path):
    """RoBERTa's first token has position padding id + 1, and its longest sequence is shorter than its table."""
    model = make_model("xlm-roberta", "encoder")
    model.save_pretrained(tmp_path)
    params, config, _ = hf.load(tmp_path)
    assert (config.position_offset, config.max_length, params["embeddings"]["position"].shape[0]) == (4, 16, 20)
    ones = np.ones((1, 16), int)
    longest = {"input_ids": 7 * ones, "attention_mask": ones.astype(bool), "segment_ids": 0 * ones}
    found = api.apply(params, config, {name: jnp.asarray(a) for name, a in longest.items()}).hidden
    np.testing.assert_allclose(found, theirs(model, longest)[0].numpy(), atol=1e-5, rtol=0)
    moved = {**longest, "position_ids": np.arange(16)[None]}
    np.testing.assert_array_equal(api.apply(params, config, {name: jnp.asarray(a) for name, a in moved.items()}).hidden, found)
