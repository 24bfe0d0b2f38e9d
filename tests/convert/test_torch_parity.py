"""The same numbers as transformers in PyTorch: hidden states, attentions, logits and gradients, to 1e-5 in float32."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from bert_jax.convert import hf
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.tokenizers.wordpiece import SPECIALS, WordPieceTokenizer

torch = pytest.importorskip("torch", reason="parity needs torch and transformers (the torch extra)")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers (the torch extra)")

TOKENIZER = WordPieceTokenizer([*SPECIALS, *"abcdefghijklmnopqrstuvwxyz"])
BERT = EncoderConfig(
    vocab_size=TOKENIZER.vocab_size, embedding_width=32, hidden_width=32, layers=3, heads=4, ffn_width=48, max_length=16
)
ALBERT = dataclasses.replace(BERT, embedding_width=12, share="all")
GROUPED = dataclasses.replace(ALBERT, layers=4, groups=2, inner_layers=2, activation="gelu_new", vocab_multiple=8)
SAME_FORM = {
    "bert-gelu": BERT,
    "bert-gelu_new": dataclasses.replace(BERT, activation="gelu_new", segments=3),
    "bert-quick_gelu": dataclasses.replace(BERT, activation="quick_gelu", norm_eps=1e-3, vocab_multiple=8),
    "albert-gelu": ALBERT,
    "albert-gelu_new-groups-inner": GROUPED,
    "albert-quick_gelu": dataclasses.replace(ALBERT, activation="quick_gelu", norm_eps=1e-3),
}
COPIED = {
    "albert-equal-widths": dataclasses.replace(BERT, share="all"),
    "bert-shared-attention": dataclasses.replace(BERT, share="attention"),
    "bert-shared-feed-forward": dataclasses.replace(GROUPED, embedding_width=32, share="feed_forward"),
    "albert-private": dataclasses.replace(ALBERT, share="none"),
    "albert-shared-feed-forward": dataclasses.replace(GROUPED, share="feed_forward"),
}



def lively(config: EncoderConfig, seed: int = 0) -> api.Params:
    """Parameters far from their initial values, biases and norms included, so that a lost one shows."""
    noise = np.random.default_rng(seed)

    def value(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return np.float32(centre + 0.1 * noise.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(lambda: api.init(config, jax.random.key(0))))


@functools.partial(jax.jit, static_argnames=("config", "collect"))
def run(params, config, batch, collect=()) -> api.Outputs:
    names = ("input_ids", "attention_mask", "segment_ids")
    return api.apply(params, config, {name: batch[name] for name in names}, collect=collect)


def make_batch(config: EncoderConfig) -> dict[str, np.ndarray]:
    """Three padded rows with segments; masked positions are real ones."""
    rng, lengths = np.random.default_rng(1), np.array([12, 7, 9])
    mask = np.arange(12) < lengths[:, None]
    return {
        "input_ids": np.where(mask, rng.integers(5, config.vocab_size, mask.shape), TOKENIZER.pad_id).astype(np.int32),
        "attention_mask": mask,
        "segment_ids": (rng.integers(0, config.segments, mask.shape) * mask).astype(np.int32),
        "masked_positions": np.array([[1, 4, 10], [2, 3, 6], [0, 7, 8]], np.int32),
        "labels": rng.integers(5, config.vocab_size, (3, 3)).astype(np.int32),
        "pair_labels": np.array([0, 1, 1], np.int32),
    }


def to_torch(params: api.Params, config: EncoderConfig, directory):
    """The exported model in PyTorch, dropout off; loading must find exactly the tensors that it expects."""
    hf.export(params, config, TOKENIZER, directory)
    model, info = transformers.AutoModelForPreTraining.from_pretrained(
        directory, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    return model.eval()


def torch_inputs(batch: dict[str, np.ndarray]) -> dict:
    return {
        "input_ids": torch.tensor(batch["input_ids"]).long(),
        "attention_mask": torch.tensor(batch["attention_mask"]).long(),
        "token_type_ids": torch.tensor(batch["segment_ids"]).long(),
    }


def pair_logits(outputs):
    return outputs["sop_logits"] if "sop_logits" in outputs else outputs["seq_relationship_logits"]


@pytest.mark.parametrize("config", (SAME_FORM | COPIED).values(), ids=(SAME_FORM | COPIED).keys())
def test_forward(config, tmp_path):
    params, batch = lively(config), make_batch(config)
    model = to_torch(params, config, tmp_path / "exported")
    with torch.no_grad():
        theirs = model(**torch_inputs(batch), output_hidden_states=True, output_attentions=True)
    ours = run(params, config, batch, collect=("hidden_states", "attentions"))

    real = batch["attention_mask"]
    logits = np.asarray(ours.logits["mlm"])[:, :, : config.vocab_size]
    assert np.abs(logits[real]).max() > 0.3 and np.abs(ours.logits["pair"]).max() > 0.03
    np.testing.assert_allclose(logits[real], theirs.prediction_logits.numpy()[real], atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours.logits["pair"], pair_logits(theirs).numpy(), atol=1e-5, rtol=0)
    # transformers records ALBERT's embeddings before the map to D in some versions: compare layers from the end.
    assert len(theirs.hidden_states) >= config.depth
    for layer in range(1, config.depth + 1):
        hidden = theirs.hidden_states[-layer].numpy()
        np.testing.assert_allclose(ours.collected["hidden_states"][-layer][real], hidden[real], atol=1e-5, rtol=0)
        attentions = np.moveaxis(np.asarray(ours.collected["attentions"][-layer]), 1, 2)[real]
        theirs_here = np.moveaxis(theirs.attentions[-layer].numpy(), 1, 2)[real]
        np.testing.assert_allclose(attentions, theirs_here, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pad_id", "offset", "family"), [(0, 2, "bert"), (0, 1, "roberta"), (1, 2, "roberta")])
def test_offset_positions(pad_id, offset, family, tmp_path, caplog):
    """A RoBERTa counts positions from its padding piece's id, and passes over what has it: [UNK], had it been written so."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]
    pieces[0], pieces[pad_id] = pieces[pad_id], pieces[0]
    tokenizer = WordPieceTokenizer(pieces)
    assert tokenizer.pad_id == pad_id
    config = dataclasses.replace(BERT, vocab_size=11, segments=1, position_offset=offset, with_heads=("mlm",))
    params = lively(config)
    hf.export(params, config, tokenizer, tmp_path / "m")
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()) and (model.config.model_type, model.config.pad_token_id) == (family, pad_id)
    assert len([record for record in caplog.records if "serve no token" in record.message]) == (family == "bert")
    mask = np.arange(9) < np.array([[9], [5]])
    ids = np.where(mask, [[2, 5, 1 - pad_id, 6, 7, 1 - pad_id, 8, 9, 3], [2, 1 - pad_id, 5, 8, 3, 0, 0, 0, 0]], pad_id)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    ours = api.apply(params, config, {"input_ids": ids, "attention_mask": mask}).logits["mlm"]
    np.testing.assert_allclose(np.asarray(ours)[mask], theirs[mask], atol=1e-5, rtol=0)
    again, found, _ = hf.load(tmp_path / "m")
    np.testing.assert_allclose(
        api.apply(again, found, {"input_ids": ids, "attention_mask": mask}).logits["mlm"], ours, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("config", SAME_FORM.values(), ids=SAME_FORM.keys())
def test_gradients(config, tmp_path):
    params, batch = lively(config), make_batch(config)
    model = to_torch(params, config, tmp_path / "exported")
    labels = np.full(batch["input_ids"].shape, -100)
    np.put_along_axis(labels, batch["masked_positions"], batch["labels"], axis=1)
    theirs_pair = "sentence_order_label" if model.config.model_type == "albert" else "next_sentence_label"
    loss = model(
        **torch_inputs(batch), labels=torch.tensor(labels), **{theirs_pair: torch.tensor(batch["pair_labels"]).long()}
    ).loss
    loss.backward()

    def our_loss(params):
        outputs = api.apply(params, config, batch)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        mlm = cross_entropy(outputs.logits["mlm"], batch["labels"]).mean()
        return mlm + cross_entropy(outputs.logits["pair"], batch["pair_labels"]).mean()

    value, gradients = jax.jit(jax.value_and_grad(our_loss))(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    ours = hf.to_tensors(gradients, config)
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        largest = np.abs(gradient).max()
        if ".key.bias" in name:  # softmax ignores it: its gradient is zero but for rounding
            assert max(largest, np.abs(ours[name]).max()) < 1e-6
            continue
        assert largest > 1e-4, name
        np.testing.assert_allclose(ours[name], gradient, atol=1e-5 * largest, rtol=0, err_msg=name)


def test_bare_encoder_and_masked_language_model(tmp_path):
    for heads, kind in ((("pooler",), transformers.AutoModel), (("mlm",), transformers.AutoModelForMaskedLM)):
        for config in (BERT, ALBERT):
            config = dataclasses.replace(config, with_heads=heads)
            params, batch = lively(config), make_batch(config)
            directory = hf.export(params, config, TOKENIZER, tmp_path / f"{heads[0]}-{config.share}")
            model, info = kind.from_pretrained(directory, output_loading_info=True)
            assert not any(info.values()), info
            with torch.no_grad():
                theirs = model(**torch_inputs(batch))
            ours = run(params, config, batch)
            real = batch["attention_mask"]
            if heads == ("mlm",):
                np.testing.assert_allclose(ours.logits["mlm"][real], theirs.logits.numpy()[real], atol=1e-5, rtol=0)
            else:
                np.testing.assert_allclose(ours.hidden[real], theirs[0].numpy()[real], atol=1e-5, rtol=0)
                np.testing.assert_allclose(ours.pooled, theirs.pooler_output.numpy(), atol=1e-5, rtol=0)


def test_bert_pair_head_alone(tmp_path):
    config = dataclasses.replace(BERT, with_heads=("pooler", "pair"))
    params, batch = lively(config), make_batch(config)
    directory = hf.export(params, config, TOKENIZER, tmp_path / "exported")
    model, info = transformers.AutoModelForNextSentencePrediction.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        theirs = model(**torch_inputs(batch)).logits.numpy()
    np.testing.assert_allclose(run(params, config, batch).logits["pair"], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", (BERT, ALBERT), ids=("bert", "albert"))
def test_reads_what_transformers_saves(config, tmp_path):
    """A model that PyTorch made and saved, its own file names and extra settings included."""
    hf.export(lively(config), config, TOKENIZER, tmp_path / "ours")
    theirs = transformers.AutoModelForPreTraining.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path / "ours"), attn_implementation="eager"
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    params, read, _ = hf.load(tmp_path / "theirs")
    assert read == config
    batch = make_batch(config)
    with torch.no_grad():
        logits = theirs(**torch_inputs(batch)).prediction_logits.numpy()
    real = batch["attention_mask"]
    np.testing.assert_allclose(run(params, config, batch).logits["mlm"][real], logits[real], atol=1e-5, rtol=0)
