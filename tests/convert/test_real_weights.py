"""Checkpoints that nobody here made: published figures, PyTorch's numbers, and the way there and back.

rxnmapper's (3 MB) is fetched; the others are used where ``make weights`` has put them. What is measured is defined in
benchmarks/checkpoints_data.py; benchmarks/checkpoints.py measures all of it and writes docs/results/checkpoints.md.
"""

import json

import checkpoints_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from safetensors.numpy import load_file

import bert_jax
from bert_jax.convert import hf
from bert_jax.convert.tensors import open_tensors
from bert_jax.embedding.sentence import embed
from bert_jax.errors import BertJaxError
from bert_jax.models import api

torch = pytest.importorskip("torch", reason="pytorch_model.bin and the reference need PyTorch (the torch extra)")
transformers = pytest.importorskip("transformers", reason="the reference is transformers (the torch extra)")


def folder(name: str):
    """Where a checkpoint lies; the small one is fetched, the others are not."""
    path = weights.weights_dir() / name
    if not path.is_dir():
        if name != "rxnmapper":
            pytest.skip(f"no {name} under {weights.weights_dir()}: make weights fetches it")
        try:
            weights.fetch(name)
        except BertJaxError as error:
            pytest.skip(f"rxnmapper cannot be fetched: {error}")
    return path


@pytest.fixture(scope="module")
def rxnmapper():
    return folder("rxnmapper")


def run(model, ids, mask=None, collect=()):
    batch = {"input_ids": jnp.asarray(ids)} | ({} if mask is None else {"attention_mask": jnp.asarray(mask, bool)})
    return jax.jit(lambda params, batch: api.apply(params, model.config, batch, collect=collect))(model.params, batch)


def reactions(path) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of the reactions whose atom maps rxnmapper's own tests state."""
    vocabulary = checkpoints_data.smiles_vocabulary(path)
    rows = [checkpoints_data.smiles_ids(reaction, vocabulary) for reaction in checkpoints_data.CONFIDENCES]
    length = max(map(len, rows))
    ids = np.array([row + [0] * (length - len(row)) for row in rows])
    return ids, np.arange(length) < np.array([[len(row)] for row in rows])


def test_rxnmapper_computes_what_pytorch_computes(rxnmapper):
    """Hidden states of every layer within 1e-5, attention within 1.5e-5 (ALBERT, shared layers, factorised embeddings).

    Logits reach 17, where float32 itself is coarser than that: they must be as near to PyTorch's float64 as its float32 is.
    """
    model, (ids, mask) = bert_jax.load(rxnmapper), reactions(rxnmapper)
    assert model.config.with_heads == ("pooler", "mlm") and model.config.share == "all" and model.config.embedding_width == 128
    theirs = transformers.AlbertForMaskedLM.from_pretrained(rxnmapper, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor(ids), torch.tensor(mask).long(), output_hidden_states=True, output_attentions=True)
        exact = theirs.double()(torch.tensor(ids), torch.tensor(mask).long()).logits.numpy()[mask]
    found = run(model, ids, mask, ("hidden_states", "attentions"))
    rounding = np.abs(expected.logits.numpy()[mask] - exact).max()  # 1.1e-5 to 1.8e-5, as the processor has it
    assert np.abs(np.asarray(found.logits["mlm"])[mask] - exact).max() < 3 * rounding < 1e-4
    for layer in range(1, 13):
        hidden = expected.hidden_states[-layer].numpy()[mask]
        np.testing.assert_allclose(np.asarray(found.collected["hidden_states"])[-layer][mask], hidden, atol=1e-5, rtol=1e-6)
        ours, wanted = np.asarray(found.collected["attentions"])[-layer], expected.attentions[-layer].numpy()
        np.testing.assert_allclose(np.moveaxis(ours, 1, 2)[mask], np.moveaxis(wanted, 1, 2)[mask], atol=1.5e-5, rtol=0)


def test_rxnmapper_confidences(rxnmapper):
    """What its own scorer makes of our attentions is what its own tests state, to the rounding of float32."""
    pytest.importorskip("rxn.chemutils", reason="atom maps need rdkit and rxn-chem-utils (the dev extra)")
    model, vocabulary = bert_jax.load(rxnmapper), checkpoints_data.smiles_vocabulary(rxnmapper)
    wheel = weights.download(weights.MODELS["rxnmapper"].wheel)
    for reaction, published in checkpoints_data.CONFIDENCES.items():
        shown = checkpoints_data.canonical(reaction, wheel)
        outputs = run(model, [checkpoints_data.smiles_ids(shown, vocabulary)], collect=("attentions",))
        attention = outputs.collected["attentions"][checkpoints_data.MAPPER_LAYER, 0, checkpoints_data.MAPPER_HEAD]
        found = checkpoints_data.confidence(shown, attention, wheel)
        assert abs(found - published) < checkpoints_data.CONFIDENCE_TOLERANCE, reaction


ALL = ["rxnmapper"] + [pytest.param(name, marks=pytest.mark.weights) for name in weights.MODELS if name != "rxnmapper"]


@pytest.mark.parametrize("name", ALL)
def test_there_and_back(name, tmp_path):
    """Every tensor comes back as the same bits, and config.json as it was but for what transformers needs."""
    path = folder(name)
    model = bert_jax.load(path)
    bert_jax.save(model, tmp_path / "own", format="bert_jax")
    bert_jax.save(bert_jax.load(tmp_path / "own"), tmp_path / "out")
    plan, original, written = hf.plan(path), open_tensors(path), load_file(tmp_path / "out" / "model.safetensors")
    bare = plan.origin.heads in ((), ("pooler",))
    found = {plan.names[f"{plan.origin.family}.{key}" if bare else key]: a for key, a in written.items()}
    for theirs, a in found.items():
        assert original.read(theirs).dtype == a.dtype and np.array_equal(original.read(theirs), a), theirs
    kept = set(found) | {plan.names[copy] for copy in plan.tied if copy in plan.names}
    assert {theirs for theirs in set(original.shapes) - kept if "position_ids" not in theirs} == set()
    before, after = (json.loads((place / "config.json").read_text()) for place in (path, tmp_path / "out"))
    needed = {"architectures", "model_type", "id2label", "label2id"}  # where they were absent or wrong
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} <= needed | {"num_labels"}
    assert "model_type" not in before or before["model_type"] == after["model_type"]
    again = bert_jax.load(tmp_path / "out")
    assert again.config == model.config
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    ids = np.random.default_rng(0).integers(5, 500, (2, 12))
    with torch.inference_mode():
        hidden = theirs(torch.tensor(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(run(model, ids).hidden, hidden, atol=1e-5, rtol=0)


@pytest.mark.weights
def test_rxnfp_masked_language_model(data_dir):
    """MLM and pair logits as PyTorch's, and the published top-1 and cross entropy as near as other masks allow."""
    path = folder("rxnfp-pretrained")
    vocabulary, model = checkpoints_data.smiles_vocabulary(path), bert_jax.load(path)
    masked = checkpoints_data.masked_reactions(vocabulary, data_dir, count=96)
    found = run(model, masked.input_ids, masked.attention_mask)
    theirs = transformers.BertForPreTraining.from_pretrained(path).eval()
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(masked.input_ids).long(), torch.from_numpy(masked.attention_mask).long())
    real = masked.attention_mask == 1
    logits = expected.prediction_logits.numpy()[real]
    np.testing.assert_allclose(np.asarray(found.logits["mlm"])[real], logits, atol=1e-6 * np.abs(logits).max(), rtol=1e-6)
    np.testing.assert_allclose(found.logits["pair"], expected.seq_relationship_logits.numpy(), atol=1e-5, rtol=0)
    chosen = masked.labels >= 0
    scores = checkpoints_data.masked_scores(np.asarray(found.logits["mlm"])[chosen], masked.labels[chosen])
    for (what, published, tolerance), score in zip(checkpoints_data.MASKED, scores, strict=True):
        assert abs(score - published) < 2 * tolerance, what  # 96 reactions instead of 256


@pytest.mark.weights
@pytest.mark.parametrize("name, cls", [("rxnfp-ft", "BertModel"), ("rxnfp-classifier", "BertForSequenceClassification")])
def test_rxnfp_fine_tuned(name, cls):
    """The bare encoder without a prefix, and 50 classes of which config.json names two."""
    path = folder(name)
    model = bert_jax.load(path)
    ids, mask = reactions(path)
    theirs = getattr(transformers, cls).from_pretrained(path, **({} if cls == "BertModel" else {"num_labels": 50})).eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor(ids), torch.tensor(mask).long())
    found = run(model, ids, mask)
    if cls == "BertModel":
        np.testing.assert_allclose(np.asarray(found.hidden)[mask], expected.last_hidden_state.numpy()[mask], atol=1e-5, rtol=0)
        np.testing.assert_allclose(found.pooled, expected.pooler_output.numpy(), atol=1e-5, rtol=0)
    else:
        assert len(model.config.labels) == 50
        np.testing.assert_allclose(found.logits["classifier"], expected.logits.numpy(), atol=1e-5, rtol=0)


@pytest.mark.weights
@pytest.mark.parametrize("row", [row for row in checkpoints_data.SIMILARITIES if row.data.startswith("stsb")],
                         ids=lambda row: f"{row.model}-{row.data}")
def test_sentence_similarity(row, data_dir):
    """The published Spearman correlations on STS-B; benchmarks/checkpoints.py has those of the larger sets."""
    model = bert_jax.load(folder(row.model))
    pairs, gold = checkpoints_data.sts(row.data, data_dir)
    found = checkpoints_data.spearman(
        lambda texts: embed(model.params, model.config, model.tokenizer, model.sentence, texts, progress=False),
        pairs, gold, row.prompt,
    )
    assert abs(found - row.published) <= row.tolerance
