"""ELECTRA's objective against its arithmetic: what is drawn and sampled, who gets which gradient, PyTorch's numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bert_jax import functional
from bert_jax.convert import hf
from bert_jax.convert.reading import Origin
from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.models import api, generator
from bert_jax.models.config import EncoderConfig, preset
from bert_jax.objectives import MaskedLM, ReplacedTokens, replaced_tokens
from bert_jax.objectives.base import Pieces
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask, Turn
from bert_jax.parallel.mesh import MeshConfig, make_mesh, to_devices
from bert_jax.training.optimizer import AdamW, make_optimizer
from bert_jax.training.step import abstract_state, init_state, make_train_step
from tests.objectives.test_mlm import shapes_in

V = 40
PIECES = Pieces(vocab_size=V, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4, special_ids=(0, 1, 2, 3, 4))
SMALL = EncoderConfig(  # E < D, as ELECTRA-small; the token table is padded
    vocab_size=V, embedding_width=12, hidden_width=32, layers=2, heads=4, ffn_width=48, max_length=32, vocab_multiple=16,
    with_heads=("discriminator",),
)
BASE = dataclasses.replace(SMALL, embedding_width=32)  # E = D: the generator alone has a projection
SURE = 1 - 1e-6  # how much of a law an interval covers


def inside(count: int, trials: int, probability: float) -> bool:
    low, high = stats.binom.interval(SURE, trials, probability)
    return low <= count <= high


def seeds(rows: int, key: int = 3):
    return functional.fold(jax.random.bits(jax.random.key(key), (2,), jnp.uint32), jnp.arange(rows))


def make_batch(lengths, length: int = 32) -> dict[str, np.ndarray]:
    """[CLS] pieces [SEP] and padding."""
    lengths = np.asarray(lengths)[:, None]
    place, mask = np.arange(length), np.arange(length) < lengths
    ids = np.random.default_rng(0).integers(5, V, mask.shape)
    ids = np.where(place == 0, 2, np.where(place == lengths - 1, 3, ids))
    segments = (place > lengths // 2) & mask
    return {"input_ids": np.where(mask, ids, 0).astype(np.int32), "attention_mask": mask,
            "segment_ids": segments.astype(np.int32)}


@functools.partial(jax.jit, static_argnums=0)
def corrupted(objective, batch, seeds):
    return objective.corrupt(batch, seeds, PIECES, None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def completed(objective, encoder, params, batch, seeds):
    batch = objective.corrupt(batch, seeds, PIECES, None)
    return objective.complete(params, encoder, batch, seeds, None)


def as_numpy(batch) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in batch.items()}


def lively(encoder: EncoderConfig, objective: ReplacedTokens) -> api.Params:
    """Parameters far from their initial values, biases and norms included."""
    noise = np.random.default_rng(0)

    def value(path, leaf):
        return np.float32((path[-1].key == "scale") + 0.2 * noise.standard_normal(leaf.shape))

    tree = jax.eval_shape(lambda: api.init(encoder, jax.random.key(0)) | objective.init(encoder, jax.random.key(1)))
    return jax.tree_util.tree_map_with_path(value, tree)


def always(encoder: EncoderConfig, objective: ReplacedTokens, logits: np.ndarray) -> api.Params:
    """Parameters whose generator gives the same logits everywhere: its head's norm is 0, the bias is left."""
    params = lively(encoder, objective)
    mlm = dict(params["rtd"]["mlm"])
    mlm["norm"] = jax.tree.map(np.zeros_like, mlm["norm"])
    mlm["bias"] = np.pad(logits.astype(np.float32), (0, encoder.padded_vocab_size - V))
    return params | {"rtd": params["rtd"] | {"mlm": mlm}}


# What is drawn


def budget(tokens: int) -> int:
    return max(1, int(np.round(np.float32(0.15) * np.float32(tokens))))


def test_every_length_without_replacement():
    lengths = np.arange(0, 513)
    batch, objective = make_batch(lengths, 512), ReplacedTokens()
    out = as_numpy(corrupted(objective, batch, seeds(len(lengths))))
    used = out["rtd_weights"] > 0
    assert out["rtd_weights"].shape == (513, 77) and out["rtd_weights"].dtype == np.float32
    assert used.sum(axis=1).tolist() == [min(budget(n), max(n - 2, 0)) for n in lengths]
    for row, (positions, taken) in enumerate(zip(out["rtd_positions"], used, strict=True)):
        assert len(set(positions[taken])) == taken.sum(), "a position was drawn twice"
        assert not np.isin(batch["input_ids"][row, positions[taken]], PIECES.special_ids).any()
    labels = np.take_along_axis(batch["input_ids"], out["rtd_positions"], axis=1)
    assert (out["rtd_labels"] == labels)[used].all()
    assert (out["input_ids"] == batch["input_ids"]).all(), "the discriminator's input is made of the original"
    changed = out["rtd_input_ids"] != batch["input_ids"]
    assert (out["rtd_input_ids"][changed] == PIECES.mask_id).all(), "nothing but [MASK] is written, no random piece"
    assert inside(changed.sum(), used.sum(), 0.85)
    drawn = np.zeros(changed.shape, bool)
    np.put_along_axis(drawn, np.where(used, out["rtd_positions"], 0), True, axis=1)
    assert not (changed & ~drawn).any()


def test_large_model_draws_a_quarter():
    objective = ReplacedTokens(rate=0.25)
    out = as_numpy(corrupted(objective, make_batch([512] * 4, 512), seeds(4)))
    assert objective.predictions(512) == 128 and out["rtd_weights"].sum(axis=1).tolist() == [128] * 4
    assert [ReplacedTokens().predictions(n) for n in (3, 64, 128, 512)] == [1, 10, 19, 77]
    original = ReplacedTokens(compat=True)  # int((0.15 + 0.005) * length)
    assert [original.predictions(n) for n in (3, 64, 128, 512)] == [1, 9, 19, 79]
    assert ReplacedTokens(rate=0.25, compat=True).predictions(512) == 130


@pytest.mark.parametrize("compat", [False, True])
def test_positions_are_uniform(compat):
    out = as_numpy(corrupted(ReplacedTokens(compat=compat), make_batch([22] * 6000), seeds(6000)))
    used = out["rtd_weights"] > 0
    assert (used.sum(axis=1) == 3).all()
    for slot in range(3):  # each slot alone, whatever the others hold
        counts = np.bincount(out["rtd_positions"][:, slot], minlength=32)
        assert counts[0] == counts[21:].sum() == 0
        assert stats.chisquare(counts[1:21]).pvalue > 1e-6


def test_compat_draws_with_replacement():
    """Slots are independent: of k = 3 among n = 20 positions, (1 - 1/n)(1 - 2/n) are all different."""
    batch, rows = make_batch([22] * 6000), 6000
    out = as_numpy(corrupted(ReplacedTokens(compat=True), batch, seeds(rows)))
    positions = out["rtd_positions"][:, :3]
    different = np.array([len(set(row)) for row in positions])
    assert inside((different == 3).sum(), rows, 19 / 20 * 18 / 20)
    assert inside((different == 1).sum(), rows, 1 / 20 * 1 / 20)
    assert (out["rtd_weights"].sum(axis=1) == 3).all(), "a position drawn twice counts twice"
    times = np.zeros((rows, 32), int)
    np.add.at(times, (np.arange(rows)[:, None], positions), 1)
    masked = out["rtd_input_ids"] == PIECES.mask_id
    for k in (1, 2):  # hidden if any of its slots hides it
        assert inside(masked[times == k].sum(), (times == k).sum(), 1 - 0.15**k)
    assert not masked[times == 0].any()


def test_compat_may_draw_the_unknown_piece():
    batch = make_batch([32] * 400)
    batch["input_ids"][:, 1:31] = np.where(np.arange(30) < 15, PIECES.unk_id, 7)
    found = {compat: as_numpy(corrupted(ReplacedTokens(compat=compat), batch, seeds(400))) for compat in (False, True)}
    unknown = {compat: (out["rtd_labels"] == PIECES.unk_id)[out["rtd_weights"] > 0] for compat, out in found.items()}
    assert not unknown[False].any() and inside(unknown[True].sum(), len(unknown[True]), 0.5)


def test_rows_without_text():
    for compat in (False, True):
        batch = make_batch([0, 1, 2, 3])
        out = as_numpy(completed(ReplacedTokens(compat=compat), SMALL, lively(SMALL, ReplacedTokens()), batch, seeds(4)))
        assert out["rtd_weights"].sum(axis=1).tolist() == [0, 0, 0, 1]
        assert (out["input_ids"][:3] == batch["input_ids"][:3]).all() and not out["rtd_replaced"][:3].any()


def scatter_update(ids, positions, values, used):
    """Row by row what the original's function of that name computes for integers."""
    ids = ids.copy()
    for row in range(len(ids)):
        for position in set(positions[row][used[row]]):
            here = values[row][used[row] & (positions[row] == position)]
            ids[row, position] = here.sum() // len(here)
    return ids


def test_writing_is_the_originals():
    rng = np.random.default_rng(0)
    ids, values = rng.integers(5, V, (64, 8)), rng.integers(5, V, (64, 6))
    positions, used = rng.integers(0, 8, (64, 6)), rng.random((64, 6)) < 0.7
    found = np.asarray(jax.jit(replaced_tokens._write)(*(jnp.asarray(a) for a in (ids, positions, values, used))))
    assert (found == scatter_update(ids, positions, values, used)).all() and (found != ids).any()
    alone = np.argsort(rng.random((64, 8)), axis=1)[:, :6]
    plain = ids.copy()
    np.put_along_axis(plain, alone, values, axis=1)
    everywhere = np.ones((64, 6), bool)
    assert (np.asarray(replaced_tokens._write(*(jnp.asarray(a) for a in (ids, alone, values, everywhere)))) == plain).all()


# What is sampled

LOGITS = np.concatenate([np.full(5, -4.0), np.linspace(-7, 3, V - 5)])


def law(logits, temperature=1.0) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, np.float64) / temperature)
    return exponentials / exponentials.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_follow_the_generator(temperature):
    """With one input piece throughout that is never sampled, the row itself tells the samples."""
    objective = ReplacedTokens(temperature=temperature)
    logits = LOGITS.copy()
    logits[7] = -1e4
    batch = make_batch([32] * 8000)
    batch["input_ids"][:, 1:31] = 7
    out = as_numpy(completed(objective, SMALL, always(SMALL, objective, logits), batch, seeds(8000)))
    used = out["rtd_weights"] > 0
    samples = np.take_along_axis(out["input_ids"], out["rtd_positions"], axis=1)[used]
    assert len(samples) == 8000 * 5 and out["rtd_replaced"].sum() == len(samples)
    counts, expected = np.bincount(samples, minlength=V), law(logits, temperature)
    assert len(counts) == V, "a row that only pads the token table was sampled"
    for piece in range(V):
        assert inside(counts[piece], len(samples), expected[piece]), piece
    seen = expected > 0
    assert stats.chisquare(counts[seen], expected[seen] * len(samples)).pvalue > 1e-6
    near = law(logits, temperature * 1.1)  # and tells it from its neighbours
    assert stats.chisquare(counts[seen], near[seen] * len(samples)).pvalue < 1e-6


def test_samples_of_slots_and_rows_are_independent():
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (12_000, 4, V))
    samples = np.asarray(jax.jit(replaced_tokens._sample)(logits, seeds(12_000)))
    grouped = samples >= np.searchsorted(np.cumsum(law(LOGITS)), 0.5)  # two kinds, of about half each
    for one, other in (((slice(None), 0), (slice(None), 1)), ((slice(None), 2), (slice(None), 3)),
                       ((slice(0, None, 2), 0), (slice(1, None, 2), 0))):
        table = np.histogram2d(grouped[one], grouped[other], bins=2)[0]
        assert stats.chi2_contingency(table).pvalue > 1e-6
    again = np.asarray(jax.jit(replaced_tokens._sample)(logits[:7], seeds(12_000)[:7]))
    assert (again == samples[:7]).all(), "a row's samples depend on its seed alone"


def test_rare_pieces_keep_their_share():
    """65,536 pieces of 2**-17 each against one of a half; then the noise of a single piece beyond what 24 bits can show."""
    count = 2**16
    logits = jnp.broadcast_to(jnp.concatenate([jnp.zeros(count), jnp.full(1, np.log(count))]), (16, 16, count + 1))
    samples = np.asarray(jax.jit(replaced_tokens._sample)(logits, seeds(16)))
    assert inside((samples == count).sum(), 256, 0.5)


def test_labels():
    """A generator that knows one piece only: where that was the original, the token counts as original."""
    objective = ReplacedTokens(rate=0.5)
    batch = make_batch([32] * 64)
    batch["input_ids"][:, 1:16] = 9
    logits = np.full(V, -1e4)
    logits[9] = 0
    out = as_numpy(completed(objective, SMALL, always(SMALL, objective, logits), batch, seeds(64)))
    used = out["rtd_weights"] > 0
    drawn = np.zeros(batch["input_ids"].shape, bool)
    for row in range(64):
        drawn[row, out["rtd_positions"][row][used[row]]] = True
    assert (out["input_ids"] == np.where(drawn, 9, batch["input_ids"])).all()
    assert (out["rtd_replaced"] == (drawn & (batch["input_ids"] != 9))).all()
    assert (drawn & (batch["input_ids"] == 9)).any() and out["rtd_replaced"].any()
    assert (out["rtd_sampled_hit"] == (out["rtd_labels"] == 9)).all()
    assert (out["rtd_hit"] == (out["rtd_labels"] == 9)).all()


# Losses


def test_losses_against_numpy():
    rng, objective = np.random.default_rng(0), ReplacedTokens(discriminator_weight=30.0, generator_weight=2.0, weight=0.5)
    logits, mask = rng.standard_normal((3, 8)).astype(np.float32) * 4, np.arange(8) < np.array([[8], [5], [0]])
    replaced = (rng.random((3, 8)) < 0.4) & mask
    entropy, weights = rng.random((3, 4)).astype(np.float32), np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0] * 4], np.float32)
    hit, sampled = rng.random((3, 4)) < 0.5, rng.random((3, 4)) < 0.5
    batch = {"attention_mask": mask, "rtd_weights": weights, "rtd_entropy": entropy, "rtd_replaced": replaced,
             "rtd_hit": hit, "rtd_sampled_hit": sampled}
    outputs = api.Outputs(None, None, {"discriminator": jnp.asarray(logits)}, {})
    found = objective.loss(outputs, jax.tree.map(jnp.asarray, batch))
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    called, real, total = logits > 0, mask.sum(), weights.sum()
    expected = {
        "discriminator_loss": -(np.log(np.where(replaced, p, 1 - p)) * mask).sum() / real,
        "discriminator_accuracy": ((called == replaced) & mask).sum() / real,
        "precision": (called & replaced).sum() / (called & mask).sum(),
        "recall": (called & replaced).sum() / replaced.sum(),
        "replaced": replaced.sum() / real,
        "generator_loss": (entropy * weights).sum() / total,
        "generator_accuracy": (hit * weights).sum() / total,
        "sampled_accuracy": (sampled * weights).sum() / total,
    }
    assert found.keys() == expected.keys() and 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].value, value, rtol=1e-5, err_msg=name)
    assert objective.terms() == {"generator_loss": 1.0, "discriminator_loss": 15.0}
    assert ReplacedTokens().terms() == {"generator_loss": 1.0, "discriminator_loss": 50.0}


def gradients(objective, encoder=SMALL):
    """Of each term with respect to all parameters, and which must be zero."""
    params, batch = lively(encoder, objective), make_batch([32, 20, 32, 9])

    @jax.jit
    def both(params):
        ready = objective.corrupt(batch, seeds(4), PIECES, None)
        ready = objective.complete(params, encoder, ready, seeds(4), None)
        found = objective.loss(api.apply(params, encoder, ready), ready)
        return found["generator_loss"].value, found["discriminator_loss"].value

    rows = jax.jacrev(both)(params)
    return jax.tree.map(lambda g: float(np.abs(g).max()), rows)


def check_who_learns_what(objective, encoder=SMALL):
    from_generator, from_discriminator = gradients(objective, encoder)
    assert max(jax.tree.leaves(from_discriminator["rtd"])) == 0, "the discriminator's loss reaches the generator"
    own = {name: part for name, part in from_generator.items() if name not in ("embeddings", "rtd")}
    own["projection"] = from_generator["embeddings"].get("projection", {})
    assert max(jax.tree.leaves(own)) == 0, "the generator's loss reaches the discriminator"
    for name in ("token", "position", "segment", "norm"):
        for tree in (from_generator, from_discriminator):
            assert min(jax.tree.leaves(tree["embeddings"][name])) > 1e-6, f"{name} is shared, and learns from both"
    del from_generator["rtd"]["attention"]["key"]["bias"]  # softmax ignores it
    assert min(jax.tree.leaves(from_generator["rtd"])) > 1e-6


@pytest.mark.parametrize("encoder", [SMALL, BASE], ids=["small", "base"])
def test_who_learns_what(encoder):
    check_who_learns_what(ReplacedTokens(), encoder)


def test_a_gradient_through_the_samples_would_be_seen():
    class Leaking(ReplacedTokens):
        """The label is the probability of a wrong piece instead of a sample."""

        def complete(self, *args):
            batch = super().complete(*args)
            rows = jnp.arange(4)[:, None]
            soft = (1 - jnp.exp(-batch["rtd_entropy"])) * batch["rtd_weights"]
            return batch | {"rtd_replaced": jnp.zeros((4, 32)).at[rows, batch["rtd_positions"]].add(soft)}

    with pytest.raises(AssertionError, match="the discriminator's loss reaches the generator"):
        check_who_learns_what(Leaking())


# Shapes


def test_one_table_for_both():
    for encoder, parts in ((SMALL, {"attention", "feed_forward", "mlm", "projection"}),
                           (BASE, {"attention", "feed_forward", "mlm", "projection"}),
                           (dataclasses.replace(SMALL, embedding_width=8), {"attention", "feed_forward", "mlm"})):
        objective = ReplacedTokens()
        own = jax.eval_shape(lambda o=objective, e=encoder: o.init(e, jax.random.key(0)))
        assert own.keys() == {"rtd"} and own["rtd"].keys() == parts
        params = lively(encoder, objective)
        whole = generator.merged(params["embeddings"], params["rtd"])
        for name in ("token", "position", "segment"):
            assert whole["embeddings"][name] is params["embeddings"][name]
        expected = jax.eval_shape(lambda o=objective, e=encoder: api.init(o.generator_config(e), jax.random.key(0)))
        assert jax.tree.map(np.shape, whole) == jax.tree.map(lambda x: x.shape, expected)
        axes = objective.logical_axes(encoder)
        flat = jax.tree.leaves_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))
        assert [(path, len(names)) for path, names in flat] == [(p, x.ndim) for p, x in jax.tree.leaves_with_path(own)]
        assert {axis for _, names in flat for axis in names} >= {"model", "heads", "ffn", "vocab", "layers"}


@pytest.mark.parametrize(("name", "width", "embedding", "share", "sizes"), [
    ("small", 256, 128, 0.25, (64, 1, 256)), ("base", 768, 768, 1 / 3, (256, 4, 1024)),
    ("base as rounded in the code", 768, 768, 0.33333, (256, 4, 1024)), ("large", 1024, 1024, 0.25, (256, 4, 1024)),
    ("narrow", 64, 64, 0.25, (16, 1, 64)),
])
def test_sizes_of_the_original(name, width, embedding, share, sizes):
    encoder = preset("bert-base", hidden_width=width, embedding_width=embedding, heads=width // 64)
    config = ReplacedTokens(generator_width=share).generator_config(encoder)
    assert (config.hidden_width, config.heads, config.ffn_width) == sizes
    assert (config.layers, config.embedding_width, config.with_heads) == (12, embedding, ("mlm",))


def test_only_predicted_positions_reach_the_vocabulary():
    objective, encoder = ReplacedTokens(), dataclasses.replace(SMALL, vocab_size=61, vocab_multiple=1)
    batch = make_batch([29] * 3, 29)

    def loss(params):
        ready = objective.complete(params, encoder, objective.corrupt(batch, seeds(3), PIECES, None), seeds(3), None)
        return sum(r.sum for r in objective.loss(api.apply(params, encoder, ready), ready).values())

    shapes = shapes_in(jax.make_jaxpr(jax.grad(loss))(lively(encoder, objective)).jaxpr)
    with_vocabulary = {shape for shape in shapes if 61 in shape}
    assert (3, 4, 61) in with_vocabulary
    assert not [shape for shape in with_vocabulary if 29 in shape or 87 in shape]


def test_refused():
    for wrong in ({"rate": 0.0}, {"rate": 1.0}, {"mask": 1.1}, {"generator_width": 0}, {"temperature": 0}):
        with pytest.raises(BertJaxError, match=f"ReplacedTokens.{next(iter(wrong))}"):
            ReplacedTokens(**wrong)
    examples = PairSpec(length=16, pairs="none")
    with pytest.raises(BertJaxError, match="width 200, not a multiple of its 3 heads"):
        Pretraining(dataclasses.replace(SMALL, hidden_width=400), (ReplacedTokens(generator_width=0.5),), examples)
    with pytest.raises(BertJaxError, match="'discriminator' in task.encoder.with_heads"):
        Pretraining(dataclasses.replace(SMALL, with_heads=("mlm",)), (ReplacedTokens(),), examples)


@pytest.mark.parametrize("order", [1, -1])
def test_other_masks_are_refused(order):
    """Tokens that another objective hides are none that a generator can be asked to restore."""
    encoder = dataclasses.replace(SMALL, with_heads=("mlm", "discriminator"))
    objectives, examples = (ReplacedTokens(), MaskedLM())[::order], PairSpec(length=16, pairs="none")
    task = PretrainingTask(Pretraining(encoder, objectives, examples), None)
    batch = task.batch_shapes(4)

    def loss(batch):
        return task.loss(task.init(jax.random.key(0)), task.corrupt(batch, jax.random.key(1), None), None)

    with pytest.raises(BertJaxError, match="give that one a turn of its own"):
        jax.eval_shape(loss, batch)


# On a mesh, in micro-batches

MESH_ENCODER = EncoderConfig(
    vocab_size=96, embedding_width=32, hidden_width=128, layers=2, heads=8, ffn_width=64, max_length=16, dropout=0.0,
    attention_dropout=0.0, with_heads=("mlm", "discriminator"),
)
MESH_TASK = Pretraining(  # a generator as wide as the discriminator has two heads, which two devices can share
    MESH_ENCODER, (ReplacedTokens(generator_width=1.0),), PairSpec(length=16, pairs="none"),
    turns=(Turn("plain", (MaskedLM(),), PairSpec(length=16, pairs="none")),),
)


@pytest.fixture(scope="module")
def two_updates(tiny_store):
    """``two_updates(mesh, accumulate)``: metrics of two updates, and the parameters after them, with their shardings."""

    @functools.cache
    def run(sizes, accumulate):
        task = PretrainingTask(dataclasses.replace(MESH_TASK, turns=()), TokenStore(tiny_store))
        mesh = make_mesh(MeshConfig(*(sizes or (1, 1, 1))), None if sizes else jax.devices()[:1])
        optimizer = make_optimizer(AdamW(1e-3, 0), 100, task.logical_axes())
        abstract = abstract_state(task, optimizer, mesh)
        with jax.set_mesh(mesh):
            start = jax.device_get(jax.jit(task.init)(jax.random.key(0)))
            state = init_state(task, optimizer, abstract, jax.random.key(0), start)
            step = make_train_step(task, optimizer, mesh, abstract, accumulate=accumulate)
            batches, seen = task.train_batches(16, 0), []
            for _ in range(2):
                state, metrics = step(state, to_devices(next(batches), mesh))
                seen.append({name: float(ratio.value) for name, ratio in metrics.items()})
            specs = jax.tree.map(lambda x: x.sharding.spec, state.params["rtd"])
            return seen, jax.device_get(state.params), specs

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "accumulate"), [(None, 2), ((8, 1, 1), 1), ((2, 2, 2), 2)], ids=str)
def test_the_same_everywhere(two_updates, sizes, accumulate):
    seen, params, specs = two_updates(sizes, accumulate)
    alone, expected, _ = two_updates(None, 1)
    for here, there in zip(seen, alone, strict=True):
        assert here == pytest.approx(there, rel=1e-5, abs=1e-5)
        assert here["rtd_replaced"] == there["rtd_replaced"] > 0.05, "other samples"
    for (path, a), b in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=0, err_msg=jax.tree_util.keystr(path))
    if sizes == (2, 2, 2):
        assert {axis for spec in jax.tree.leaves(specs, is_leaf=lambda x: hasattr(x, "index")) for axis in spec} == {
            None, "fsdp", "tensor"}


def test_beside_a_turn_of_masked_tokens(tiny_store):
    """Both in one run, each with its terms."""
    task = PretrainingTask(MESH_TASK, TokenStore(tiny_store))
    batches = task.train_batches(4, 0)
    params = jax.eval_shape(task.init, jax.random.key(0))

    def losses(params, batch):
        return task.loss(params, task.corrupt(batch, jax.random.key(1), None), jax.random.key(2))

    names = [set(jax.eval_shape(losses, params, next(batches)).terms) for _ in range(2)]
    own, other = {"rtd_generator_loss", "rtd_discriminator_loss"}, {"plain_mlm_loss"}
    assert own in names and other in names


def test_dropout_is_on_in_the_generator():
    objective, encoder = ReplacedTokens(), dataclasses.replace(SMALL, dropout=0.3)
    params, batch = lively(encoder, objective), make_batch([32] * 4)
    ready = objective.corrupt(batch, seeds(4), PIECES, None)
    entropy = jax.jit(lambda key: objective.complete(params, encoder, ready, seeds(4), key)["rtd_entropy"])
    found = [np.asarray(entropy(key)) for key in (None, None, jax.random.key(0), jax.random.key(1))]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any() and (found[2] != found[3]).any()


# PyTorch


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("encoder", [SMALL, BASE], ids=["small", "base"])
def test_parity_with_transformers(encoder, compat, tmp_path):
    """Both models of transformers, sharing their embeddings as the original does, on our samples: losses and all gradients."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    objective = ReplacedTokens(compat=compat, rate=0.3)
    params, batch, config = lively(encoder, objective), make_batch([32, 20, 32, 9]), objective.generator_config(encoder)
    params["embeddings"]["token"][V:] = 0
    params["rtd"]["mlm"]["bias"][PIECES.pad_id] = -30  # never sampled: PyTorch's tables give their padding row no gradient

    @functools.partial(jax.value_and_grad, has_aux=True)
    def ours(params):
        ready = objective.corrupt(batch, seeds(4), PIECES, None)
        ready = objective.complete(params, encoder, ready, seeds(4), None)
        found = objective.loss(api.apply(params, encoder, ready), ready)
        return sum(found[name].value * factor for name, factor in objective.terms().items()), (ready, found)

    (value, (ready, found)), gradient = jax.jit(ours)(params)
    ready = as_numpy(ready)

    hf.export({name: part for name, part in params.items() if name != "rtd"}, encoder, None, tmp_path / "discriminator")
    origin = Origin("electra", {}, ("mlm",), "float32")
    hf.export(generator.merged(params["embeddings"], params["rtd"]), config, None, tmp_path / "generator", origin=origin)
    made = {}
    for name, kind in (("discriminator", transformers.ElectraForPreTraining), ("generator", transformers.ElectraForMaskedLM)):
        made[name], info = kind.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values()), info
        made[name].eval()
    made["generator"].electra.embeddings = made["discriminator"].electra.embeddings
    made["generator"].tie_weights()
    assert made["generator"].generator_lm_head.weight is made["discriminator"].electra.embeddings.word_embeddings.weight

    common = {"attention_mask": torch.tensor(batch["attention_mask"]).long(),
              "token_type_ids": torch.tensor(batch["segment_ids"]).long()}
    logits = made["generator"](input_ids=torch.tensor(ready["rtd_input_ids"]).long(), **common).logits
    rows, weights = torch.arange(4)[:, None], torch.tensor(ready["rtd_weights"])
    chosen = logits[rows, torch.tensor(ready["rtd_positions"]).long()]
    labels = torch.tensor(ready["rtd_labels"]).long()
    entropy = torch.nn.functional.cross_entropy(chosen.transpose(1, 2), labels, reduction="none")
    generator_loss = (entropy * weights).sum() / weights.sum()
    discriminated = made["discriminator"](
        input_ids=torch.tensor(ready["input_ids"]).long(), labels=torch.tensor(ready["rtd_replaced"]).long(), **common
    )
    total = generator_loss + 50 * discriminated.loss
    total.backward()
    np.testing.assert_allclose(found["generator_loss"].value, generator_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(found["discriminator_loss"].value, discriminated.loss.item(), rtol=1e-5)
    np.testing.assert_allclose(value, total.item(), rtol=1e-5)

    compared = (
        (made["discriminator"], hf.to_tensors({n: g for n, g in gradient.items() if n != "rtd"}, encoder)),
        (made["generator"], hf.to_tensors(generator.merged(gradient["embeddings"], gradient["rtd"]), config, origin)),
    )
    for model, mine in compared:
        theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
        assert mine.keys() == theirs.keys()
        for name, expected in theirs.items():
            largest = np.abs(expected).max()
            if ".key.bias" in name:  # softmax ignores it: its gradient is zero but for rounding
                assert max(largest, np.abs(mine[name]).max()) < 1e-5
                continue
            assert largest > 1e-5, name
            np.testing.assert_allclose(mine[name], expected, atol=1e-5 * max(largest, 1), rtol=0, err_msg=name)
