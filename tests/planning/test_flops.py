"""The arithmetic of a step by formula against the products in the traced program."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.planning.flops import state_traffic, work

BERT = EncoderConfig(
    vocab_size=1000, embedding_width=64, hidden_width=64, layers=3, heads=4, ffn_width=256, max_length=32, vocab_multiple=128
)
ALBERT = dataclasses.replace(BERT, embedding_width=32, share="all", layers=4)
LENGTH, PREDICTIONS, ROWS = 32, 5, 2


def products(jaxpr, times=1) -> int:
    """Operations of all products of matrices in a traced program, loops counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (left, _), (batch, _) = equation.params["dimension_numbers"]
            x, y = (v.aval.shape for v in equation.invars)
            out = equation.outvars[0].aval.size
            inner = 1
            for axis in left:
                inner *= x[axis]
            total += 2 * out * inner * times
        again = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for inside in value if isinstance(value, (tuple, list)) else (value,):
                inside = getattr(inside, "jaxpr", inside)
                if hasattr(inside, "eqns"):
                    total += products(inside, again)
    return total


def traced(config: EncoderConfig, backward: bool) -> float:
    params = jax.eval_shape(lambda: api.init(config, jax.random.key(0)))
    batch = {name: jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32) for name in ("input_ids", "segment_ids")}
    batch["masked_positions"] = jax.ShapeDtypeStruct((ROWS, PREDICTIONS), jnp.int32)

    def loss(params, batch):
        outputs = api.apply(params, config, batch, key=jax.random.key(0))
        return sum(logits.sum() for logits in outputs.logits.values())

    return products(jax.make_jaxpr(jax.grad(loss) if backward else loss)(params, batch).jaxpr) / ROWS


@pytest.mark.parametrize(
    "config", [BERT, ALBERT, dataclasses.replace(BERT, with_heads=("mlm",))], ids=["bert", "albert", "without a pooler"]
)
def test_forward(config):
    assert work(config, LENGTH, PREDICTIONS).forward == pytest.approx(traced(config, False), rel=1e-9)


@pytest.mark.parametrize("remat", ["elementwise", "attention", "feed_forward", "full"])
@pytest.mark.parametrize("config", [BERT, ALBERT], ids=["bert", "albert"])
def test_with_what_is_computed_again(config, remat):
    """The embeddings' inputs are ids, so that a few products have one gradient less: a hundredth at these sizes."""
    config = dataclasses.replace(config, remat=remat)
    found = work(config, LENGTH, PREDICTIONS)
    assert found.useful + found.repeated == pytest.approx(traced(config, True), rel=0.01)


def test_policies_repeat_more_and_keep_less():
    found = [work(dataclasses.replace(BERT, remat=remat), LENGTH, PREDICTIONS)
             for remat in ("elementwise", "attention", "feed_forward", "full")]
    repeated, stored = [one.repeated for one in found], [one.stored for one in found]
    assert repeated == sorted(repeated) and repeated[0] == 0 and len(set(repeated)) == 4
    assert stored == sorted(stored, reverse=True) and len(set(stored)) == 4


def test_published_figure():
    """BERT-large at 512 tokens: 6 operations a parameter and token, and the attention core on top (Narayanan et al. 2021)."""
    from bert_jax.models.config import preset

    config = preset("bert-large", with_heads=("mlm",))
    per_token = work(config, 512, 77).useful / 512
    layers = 24 * 12 * 1024**2
    assert per_token == pytest.approx(6 * layers * (1 + 512 / (6 * 1024)), rel=0.03)


def test_state_traffic_grows_with_micro_batches():
    assert state_traffic(100, 2, 2) - state_traffic(100, 1, 2) == 100 * (2 * 2 + 8)
