"""Mixout: its draws, mean and gradient, what it leaves alone; all tricks together in the loop, restarted, exported, loaded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bert_jax.errors import BertJaxError
from bert_jax.model import load
from bert_jax.models import api
from bert_jax.parallel.mesh import MeshConfig, make_mesh, parameter_shardings
from bert_jax.tasks import Classification, finetuning_task
from bert_jax.tasks.base import finetuned_encoder, without_anchors
from bert_jax.tasks.freelb import FreeLB
from bert_jax.tasks.mixout import Mixout, kept, mixed_part
from bert_jax.tasks.smart import Smart
from bert_jax.tasks.tables import Table
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from bert_jax.training.train import train
from tests.tasks.tiny_tasks import ENCODER, KINDS, finetune, make_batch, make_task, scattered, updated

KEY = jax.random.key(7)
HEADS = dataclasses.replace(ENCODER, with_heads=("pooler", "classifier"), labels=("a", "b", "c"))
AXES = api.logical_axes(HEADS)


def flat(tree):
    """Arrays by their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def trained():
    """Parameters, and the ones that they began with."""
    start = jax.device_get(api.init(HEADS, KEY))
    return scattered(start), start


def mixed(trick, params, start, key=KEY, new=("classifier",)):
    return jax.jit(lambda params: trick.mixed(params, trick.anchor(start, new), AXES, key))(params)


def test_maps_are_mixed_by_the_neuron_that_they_read(trained):
    """Every map has of each input neuron either all weights of before, or all of (w - p w0) / (1 - p)."""
    params, start = trained
    p, found = 0.6, flat(mixed(Mixout(0.6), params, start))
    ours, before = flat(params), flat(start)
    inputs = {"attention/output/kernel": 2}
    maps = {name for name in ours if name.endswith("kernel")}
    assert maps == set(flat(mixed_part(params))) and len(maps) == 8
    for name in ours.keys() - maps:  # tables, biases, norms
        np.testing.assert_array_equal(found[name], ours[name], err_msg=name)
    draws = {}
    for name in maps:
        old = before[name] * (name != "classifier/dense/kernel")  # a new head: dropout
        lead = (0 if name.startswith(("pooler", "classifier")) else 1) + inputs.get(name, 1)
        shape = ours[name].shape
        new = (ours[name] - p * old) / (1 - p)
        ours_here, is_old = np.isclose(found[name], new, atol=1e-5), np.isclose(found[name], old, atol=1e-6)
        rows = int(np.prod(shape[:lead]))
        draws[name] = ours_here.reshape(rows, -1).all(axis=1)
        assert (draws[name] | is_old.reshape(rows, -1).all(axis=1)).all(), name
        assert draws[name].any() and not draws[name].all(), name
    assert not np.array_equal(draws["attention/query/kernel"], draws["attention/key/kernel"])
    first, second = draws["feed_forward/intermediate/kernel"].reshape(2, -1)
    assert not np.array_equal(first, second)  # layers have draws of their own


@pytest.mark.parametrize("p", [0.1, 0.7, 0.9])
def test_as_many_are_kept_as_there_should_be(p):
    """Exact binomial intervals at 1 in 10^6."""
    shape, axes = (4, 512, 2, 8), ("layers", "model", "heads", "head_width")
    drawn = np.array(kept(KEY, shape, axes, 1 - p))
    assert drawn.shape == (4, 512, 1, 1)
    low, high = stats.binom.interval(1 - 1e-6, drawn.size, 1 - p)
    assert low <= drawn.sum() <= high
    assert kept(KEY, (4, 8, 64, 16), ("layers", "heads", "head_width", "model"), 0.5).shape == (4, 8, 64, 1)
    assert kept(KEY, (32, 3), ("model", None), 0.5).shape == (32, 1)


def test_the_mean_is_what_was_there(trained):
    """Over 400 keys the mean of each neuron's weights is theirs: the count of draws has its exact binomial interval."""
    params, start = trained
    trick, draws = Mixout(0.8), 400
    keys = jax.random.split(jax.random.key(1), draws)
    anchor = trick.anchor(start, ())
    name = ("feed_forward", "intermediate", "kernel")
    w, w0 = (tree["feed_forward"]["intermediate"]["kernel"] for tree in (params, start))

    @jax.jit
    def mean(keys):
        def one(key):
            return trick.mixed(params, anchor, AXES, key)[name[0]][name[1]][name[2]]
        return jax.lax.map(one, keys).mean(axis=0)

    # The mean is w0 + count / draws / (1 - p) * (w - w0): the counts follow from it.
    counts = np.array((mean(keys) - w0) / (w - w0) * draws * (1 - trick.p)).reshape(2 * 16, -1)
    np.testing.assert_allclose(counts, np.median(counts, axis=1, keepdims=True) * np.ones_like(counts), atol=0.5)
    counts = np.round(np.median(counts, axis=1))
    low, high = stats.binom.interval(1 - 1e-6 / len(counts), draws, 1 - trick.p)
    assert (low <= counts).all() and (counts <= high).all()
    low, high = stats.binom.interval(1 - 1e-6, draws * len(counts), 1 - trick.p)
    assert low <= counts.sum() <= high


def test_gradients_are_masked_and_scaled(trained):
    """M / (1 - p) times the gradient of what enters, against the reference formula in PyTorch; none for what was before."""
    torch = pytest.importorskip("torch", reason="parity needs torch (the torch extra)")
    params, start = trained
    p, rng = 0.7, np.random.default_rng(0)
    trick = Mixout(p)
    anchor = trick.anchor(start, ())
    weight = np.float32(rng.standard_normal((2, 16, 32)))

    def value(params, anchor):
        return (weight * trick.mixed(params, anchor, AXES, KEY)["feed_forward"]["intermediate"]["kernel"] ** 2).sum()

    gradient = jax.jit(jax.grad(value))(params, anchor)["feed_forward"]["intermediate"]["kernel"]
    found = trick.mixed(params, anchor, AXES, KEY)["feed_forward"]["intermediate"]["kernel"]
    w, u = (torch.tensor(tree["feed_forward"]["intermediate"]["kernel"]) for tree in (params, start))
    w.requires_grad_()
    m = torch.tensor(~np.isclose(found, u.numpy(), atol=1e-6).all(axis=-1, keepdims=True)).float()
    theirs = ((1 - m) * u + m * w - p * u) / (1 - p)  # bloodwass/mixout, mixout.py, Mixout.forward
    np.testing.assert_allclose(found, theirs.detach().numpy(), atol=1e-5)
    (torch.tensor(weight) * theirs.square()).sum().backward()
    np.testing.assert_allclose(gradient, w.grad.numpy(), atol=1e-4)
    assert 0 < m.mean() < 1 and not np.any(np.array(gradient)[m.expand(2, 16, 32).numpy() == 0])


def test_without_probability_or_way_to_go_it_changes_nothing(trained):
    params, start = trained
    jax.tree.map(np.testing.assert_array_equal, mixed(Mixout(0.0), params, start), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), mixed(Mixout(0.9), start, start, new=()), start)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_the_checkpoint_lacks_have_dropout(kind):
    task = make_task(kind, (Mixout(0.5),), dropout=0.0, attention_dropout=0.0)
    params = task.start(KEY)
    for head in task.config.encoder.with_heads:
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(params["anchor"]["mixout"][head])), head
    for part in ("attention", "feed_forward"):
        jax.tree.map(np.testing.assert_array_equal, params["anchor"]["mixout"][part], mixed_part(params[part]))
    assert jax.tree.structure(task.init(KEY)) == jax.tree.structure(params)
    axes = jax.tree.map(lambda _: 0, task.logical_axes(), is_leaf=lambda x: isinstance(x, tuple))
    assert jax.tree.structure(axes) == jax.tree.structure(params)
    batch = make_batch(task)
    losses = jax.jit(lambda params, key: task.loss(params, batch, key))
    (name,) = jax.eval_shape(lambda: task.loss(params, batch, None)).terms
    one, other = (losses(params, jax.random.key(seed)).terms[name].value for seed in range(2))
    assert np.isfinite([one, other]).all() and one != other
    known = task._model._replace(params=task.finished(params), config=task.config.encoder)  # as it would be loaded
    again = finetuning_task(task.config, known).start(jax.random.key(8))
    jax.tree.map(np.testing.assert_array_equal, again["anchor"]["mixout"], mixed_part(without_anchors(params)))


def test_layers_that_begin_anew_are_mixed_with_what_they_begin_with():
    """And so is a pooler that the checkpoint has; only a head that it lacks has zeros."""
    task = make_task(tricks=(Mixout(0.5),))
    theirs = without_anchors(scattered(task.start(KEY)))
    anew = dataclasses.replace(task.config, reinitialise=1)
    model = task._model._replace(params=theirs, config=task.config.encoder)
    params = finetuning_task(anew, model).start(KEY)
    jax.tree.map(np.testing.assert_array_equal, params["anchor"]["mixout"], mixed_part(without_anchors(params)))
    query, old = (tree["attention"]["query"]["kernel"] for tree in (params, theirs))
    np.testing.assert_array_equal(query[0], old[0])
    assert np.abs(query[1] - old[1]).max() > 0.01
    assert np.abs(params["pooler"]["dense"]["kernel"] - theirs["pooler"]["dense"]["kernel"]).max() > 0.01
    headless = {name: part for name, part in theirs.items() if name != "pooler"}
    anchor = finetuning_task(anew, model._replace(params=headless)).start(KEY)["anchor"]["mixout"]
    assert not np.any(anchor["pooler"]["dense"]["kernel"]) and np.any(anchor["classifier"]["dense"]["kernel"])


def test_after_lora_maps_are_mixed_with_what_it_made_of_them():
    low = dataclasses.replace(HEADS, lora_rank=2)
    theirs = scattered(api.init(low, KEY))
    task = make_task(tricks=(Mixout(0.5),))
    model = task._model._replace(params=theirs, config=dataclasses.replace(low, labels=task.config.encoder.labels))
    params = finetuning_task(task.config, model).start(KEY)
    expected, _ = api.merged(theirs, low)
    jax.tree.map(np.testing.assert_array_equal, params["anchor"]["mixout"], mixed_part(expected))
    assert np.abs(expected["attention"]["query"]["kernel"] - theirs["attention"]["query"]["kernel"]).max() > 0.01


def test_draws_are_the_same_on_eight_devices(trained):
    params, start = trained
    mesh = make_mesh(MeshConfig(2, 2, 2), None)
    trick, shardings = Mixout(0.5), parameter_shardings(AXES, params, mesh)
    mix = jax.jit(lambda params, anchor: trick.mixed(params, anchor, AXES, KEY))
    one = mix(params, trick.anchor(start, ()))
    spread = jax.device_put(params, shardings)
    assert len(spread["attention"]["query"]["kernel"].sharding.device_set) == 8
    many = mix(spread, trick.anchor(jax.device_put(start, shardings), ()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), many, one)


def test_what_was_before_stays(trained):
    task = make_task(tricks=(Mixout(0.7),))
    history, _ = updated(task, 3)
    jax.tree.map(np.testing.assert_array_equal, history[0]["anchor"], history[-1]["anchor"])
    assert np.abs(history[0]["embeddings"]["token"] - history[-1]["embeddings"]["token"]).max() > 1e-3


ALL = (FreeLB(2, 0.3, 0.2, 0.4), Smart(radius=0.5, noise=1e-2, step_size=0.1, early_average=0.5), Mixout(0.5))


@pytest.mark.slow
def test_with_other_rates_for_other_layers_they_are_the_same_times_these_rates():
    """The first update of all tricks with layer_decay, to the rounding of parameters; unfreeze_every waits with them too."""
    (begin, plain), _ = updated(make_task(tricks=ALL), 1)
    (_, decayed), _ = updated(make_task(tricks=ALL), 1, layer_decay=0.5)
    (_, waiting), _ = updated(make_task(tricks=ALL), 1, unfreeze_every=5)
    layers = np.float32([0.125, 0.25])
    factors = {"embeddings": np.float32([0.0625]), "attention": layers, "feed_forward": layers}
    for part in begin.keys() - {"anchor"}:
        trees = (jax.tree.leaves(tree[part]) for tree in (begin, plain, decayed, waiting))
        for old, full, less, none in zip(*trees, strict=True):
            factor = factors.get(part, np.ones(1, np.float32)).reshape(-1, *(1,) * (old.ndim - 1))
            np.testing.assert_allclose(less - old, (full - old) * factor, atol=2e-7)
            assert np.array_equal(none, old) == (part in factors), part
        assert max(np.abs(a - b).max() for a, b in zip(*(jax.tree.leaves(t[part]) for t in (plain, begin)), strict=True)) > 5e-3
    jax.tree.map(np.testing.assert_array_equal, decayed["anchor"]["mixout"], begin["anchor"]["mixout"])


@pytest.mark.slow
def test_with_lora_the_others_move_its_factors_and_heads_alone():
    tricks = ALL[:2]
    (begin, _, end), metrics = updated(make_task(tricks=tricks, lora_rank=2), 2)
    for part in ("embeddings", "attention", "feed_forward"):
        jax.tree.map(np.testing.assert_array_equal, end[part], begin[part])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), end["anchor"]["smart"][part], begin[part])
    for tree, start in ((end, begin), (end["anchor"]["smart"], begin["anchor"]["smart"])):
        assert all(np.abs(a - b).max() > 1e-5 for part in ("lora", "pooler", "classifier")
                   for a, b in zip(jax.tree.leaves(tree[part]), jax.tree.leaves(start[part]), strict=True))
    assert metrics["smoothness_loss"].value > 0 and metrics["proximity_loss"].value > 0


@pytest.mark.slow
def test_all_together_on_eight_devices_in_micro_batches():
    (*_, one), _ = updated(make_task(tricks=ALL), accumulate=2)
    (*_, many), metrics = updated(make_task(tricks=ALL), sizes=(2, 2, 2), accumulate=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=0), one, many)
    assert {"classifier_loss", "smoothness_loss", "proximity_loss"} <= metrics.keys()


@pytest.mark.slow
def test_all_together_in_the_loop_go_on_and_leave_nothing_behind(tmp_path, monkeypatch, tiny_checkpoint):
    """Stopped and started again the run ends with the same bits; what is loaded and finished has no copies."""
    monkeypatch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    rng = np.random.default_rng(0)
    for name, count in (("train", 64), ("dev", 16)):
        rows = ["text\tlabel"]
        for _ in range(count):
            word = rng.choice(["cat", "tree"])
            rows.append(f"the {word} sat\t{'animal' if word == 'cat' else 'plant'}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    data, heldout = (Table(str(tmp_path / f"{name}.tsv"), ("text",), "label") for name in ("train", "dev"))
    model = load(tiny_checkpoint)
    config = Classification(
        finetuned_encoder(model.config, ("animal", "plant")), str(tiny_checkpoint), data, heldout, lengths=(8,), shapes=1,
        tricks=ALL,
    )
    settings = TrainConfig(steps=6, batch_size=16, eval_every=6, save_every=3, log_every=1, eval_batches=None)
    experiment = Experiment(config, AdamW(learning_rate=1e-3, warmup_steps=1, bias_correction=True), settings)
    whole = train(finetuning_task(config, model), experiment, tmp_path / "whole")

    class Stopped(Exception):
        pass

    class Stops(type(finetuning_task(config, model))):
        def train_batches(self, *given):
            batches, made = super().train_batches(*given), iter(range(4))
            take = type(batches).__next__

            class Until(type(batches)):
                def __next__(self):
                    if next(made, None) is None:
                        raise Stopped
                    return take(self)

            batches.__class__ = Until
            return batches

    with pytest.raises(Stopped):
        train(Stops(config, model), experiment, tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["3"]
    parts = train(finetuning_task(config, model), experiment, tmp_path / "parts")
    assert parts.step == whole.step == 6 and {*whole.params["anchor"]} == {"mixout", "smart"}
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((parts.params, whole.params)))
    loaded, task = load(tmp_path / "whole"), finetuning_task(config, model)
    kept_parts = set(api.init(config.encoder, KEY))
    assert set(loaded.params) == set(task.finished(whole.params)) == kept_parts and "anchor" not in kept_parts
    finished = jax.device_get(task.finished(whole.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), finished)
    assert finetune(experiment, tmp_path / "whole", model)["accuracy"] == whole.evaluation["accuracy"]


def test_what_is_refused():
    for p in (1.0, -0.1, jnp.nan):
        with pytest.raises(BertJaxError, match="from 0 to below 1"):
            Mixout(p)
    for changes in ({"fields": {"reinitialise": 1}}, {"tricks": (Mixout(),)}):
        with pytest.raises(BertJaxError, match="with task.encoder.lora_rank .*leave one out"):
            make_task(lora_rank=2, **changes)
    for changes in ({"fields": {"reinitialise": 1}}, {"tricks": (Mixout(),)}):
        with pytest.raises(BertJaxError, match="freeze_encoder: its layers stay"):
            Experiment(make_task(**changes).config, AdamW(freeze_encoder=True))
    half = make_task(tricks=(Mixout(),), compute_dtype="bfloat16").config
    with pytest.raises(BertJaxError, match="reduce_dtype bfloat16 rounds away what Mixout"):
        Experiment(half, train=TrainConfig(reduce_dtype="bfloat16"))
