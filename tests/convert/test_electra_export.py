"""A run of ReplacedTokens leaves two models: both are loaded, filled in, exported, and say the same in transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bert_jax
from bert_jax.cli import main
from bert_jax.config import save
from bert_jax.data.pairs import PairSpec
from bert_jax.data.store import TokenStore
from bert_jax.errors import BertJaxError
from bert_jax.fill_mask import fill_mask
from bert_jax.model import find, load_run
from bert_jax.models import api
from bert_jax.models.config import EncoderConfig
from bert_jax.models.heads import Discriminator
from bert_jax.objectives import MaskedLM, ReplacedTokens
from bert_jax.objectives.base import Objective
from bert_jax.objectives.pretraining import Pretraining, PretrainingTask
from bert_jax.parallel.mesh import make_mesh
from bert_jax.task import Ratio
from bert_jax.training import train as train_module
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW
from bert_jax.training.pretrain import evaluate_checkpoint, pretrain
from bert_jax.training.record import read

ENCODER = EncoderConfig(
    vocab_size=96, embedding_width=16, hidden_width=64, layers=2, heads=4, ffn_width=64, max_length=16, vocab_multiple=64,
    with_heads=("discriminator",),
)

HALF = (ReplacedTokens(generator_width=0.5),)


def experiment(encoder=ENCODER, objectives=HALF, steps=60) -> Experiment:
    return Experiment(
        task=Pretraining(encoder, objectives, PairSpec(length=16, pairs="none")),
        optimizer=AdamW(learning_rate=5e-3, warmup_steps=min(5, steps - 1)),
        train=TrainConfig(steps=steps, batch_size=32, eval_every=steps, save_every=steps // 2, log_every=1, eval_batches=2),
    )


@pytest.fixture(scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def electra(one_device, tiny_store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("electra") / "run"
    return workdir, pretrain(experiment(), tiny_store, workdir)


@pytest.mark.slow
def test_both_losses_fall(electra):
    workdir, result = electra
    rows = [row for row in read(workdir / "metrics.jsonl") if row["kind"] == "train"]
    for name, first, last in (("rtd_generator_loss", 3.8, 2.9), ("rtd_discriminator_loss", 0.6, 0.45)):
        losses = [row[name] for row in rows]
        assert np.mean(losses[:3]) > first and np.mean(losses[-10:]) < last, (name, losses[:3], losses[-10:])
    assert 0.05 < rows[-1]["rtd_replaced"] < 0.2
    assert result.evaluation["rtd_generator_loss"] < 2.9 and result.evaluation["rtd_discriminator_loss"] < 0.45


def test_evaluation_needs_the_generator(electra, tiny_store):
    workdir, result = electra
    found = evaluate_checkpoint(str(workdir), tiny_store, 32, 2)
    for name in ("rtd_generator_loss", "rtd_discriminator_loss", "rtd_recall"):
        assert found[name] == pytest.approx(result.evaluation[name], rel=1e-5)
    with pytest.raises(BertJaxError, match="no work directory of pretrain"):
        evaluate_checkpoint(f"{workdir}#generator", tiny_store, 32, 2)


def everything(workdir, tiny_store):
    task = PretrainingTask(experiment().task, TokenStore(tiny_store))
    return load_run(workdir, jax.eval_shape(task.init, jax.random.key(0))).params


def test_the_parts_of_a_run(electra, tiny_store):
    workdir, _ = electra
    whole = everything(workdir, tiny_store)
    discriminator, generator = bert_jax.load(workdir), bert_jax.load(f"{workdir}#generator")
    assert discriminator.config == ENCODER
    assert discriminator.params.keys() == {"embeddings", "attention", "feed_forward", "discriminator"}
    assert generator.config == dataclasses.replace(
        ENCODER, hidden_width=32, heads=1, ffn_width=128, with_heads=("mlm",)
    ) == ReplacedTokens(generator_width=0.5).generator_config(ENCODER)
    assert jax.tree.map(np.shape, generator.params) == jax.tree.map(
        np.shape, jax.eval_shape(lambda: api.init(generator.config, jax.random.key(0)))
    )
    for name in ("token", "position", "segment"):
        assert (generator.params["embeddings"][name] == discriminator.params["embeddings"][name]).all()
    assert (generator.params["attention"]["query"]["kernel"] == whole["rtd"]["attention"]["query"]["kernel"]).all()
    assert (generator.params["embeddings"]["projection"]["kernel"] == whole["rtd"]["projection"]["kernel"]).all()
    assert bert_jax.load(f"{workdir}#discriminator").config == ENCODER
    earlier = bert_jax.load(f"{workdir}@30#generator")
    assert (earlier.params["mlm"]["bias"] != generator.params["mlm"]["bias"]).any()


def test_what_a_run_does_not_have(electra):
    workdir, _ = electra
    with pytest.raises(BertJaxError, match="has no part 'critic': discriminator, generator is there"):
        bert_jax.load(f"{workdir}#critic")
    with pytest.raises(BertJaxError, match=r"no checkpoint at step 7"):
        bert_jax.load(f"{workdir}@7#generator")
    assert find(f"{workdir}@30#generator")[2:] == (None, 30, "generator")


def test_filling_masks(electra, capsys):
    workdir, _ = electra
    model = bert_jax.load(f"{workdir}#generator")
    (guesses,) = fill_mask(model.params, model.config, model.tokenizer, "the cat [MASK] on the mat .")
    assert len(guesses) == 5 and guesses[0].probability > 2 / 96
    assert main(["fill-mask", f"{workdir}#generator", "the cat [MASK] on the mat ."]) in (0, None)
    assert guesses[0].piece in capsys.readouterr().out
    with pytest.raises(BertJaxError, match="no masked-language-model head"):
        model = bert_jax.load(workdir)
        fill_mask(model.params, model.config, model.tokenizer, "the [MASK]")


def test_inspection_names_the_part(electra):
    workdir, _ = electra
    assert "electra, trained here" in str(bert_jax.inspect(workdir))
    report = str(bert_jax.inspect(f"{workdir}#generator"))
    assert "electra, trained here" in report and "mlm" in report and "1 attention heads" in report


def ours(model, ids, mask):
    batch = {"input_ids": jnp.asarray(ids, jnp.int32), "attention_mask": jnp.asarray(mask)}
    outputs = api.apply(model.params, model.config, batch)
    return np.asarray(next(iter(outputs.logits.values())))


@pytest.mark.parametrize(("command", "kind"), [("export", "narrow"), ("convert", "as wide as its embeddings")])
def test_in_transformers(electra, command, kind, tiny_store, one_device, tmp_path):
    """The second kind has E = D in both models: shapes alone would make the generator a BERT."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    workdir = electra[0]
    if kind != "narrow":
        workdir = tmp_path / "run"
        square = dataclasses.replace(ENCODER, embedding_width=64)
        pretrain(experiment(square, (ReplacedTokens(generator_width=1.0),), steps=2), tiny_store, workdir)
    ids = np.random.default_rng(0).integers(5, 60, (3, 12))
    mask = np.arange(12) < np.array([[12], [7], [9]])
    parts = (("", "discriminator", "ElectraForPreTraining"), ("#generator", "generator", "ElectraForMaskedLM"))
    for part, name, class_name in parts:
        source, out = f"{workdir}{part}", str(tmp_path / name)
        arguments = ["export", source, out] if command == "export" else ["convert", "--from", source, "--to", out]
        assert main(arguments) in (0, None)
        theirs, info = getattr(transformers, class_name).from_pretrained(out, output_loading_info=True)
        assert not any(info.values()), info
        assert theirs.config.model_type == "electra" and theirs.config.architectures == [class_name]
        with torch.no_grad():
            logits = theirs.eval()(
                input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()
            ).logits.numpy()
        model = bert_jax.load(source)
        mine = ours(model, ids, mask)[..., : model.config.vocab_size] if part else ours(model, ids, mask)
        assert mine.shape == logits.shape and np.abs(logits[mask]).max() > 0.01
        np.testing.assert_allclose(mine[mask], logits[mask], atol=1e-5, rtol=0)
        assert transformers.AutoTokenizer.from_pretrained(out).mask_token_id == model.tokenizer.mask_id
        again = bert_jax.load(out)
        assert again.config == model.config
        np.testing.assert_array_equal(ours(again, ids, mask), ours(model, ids, mask))
        bert_jax.save(model, tmp_path / f"own-{name}", format="bert_jax")
        own = bert_jax.load(tmp_path / f"own-{name}")
        assert own.config == model.config and own.origin == model.origin
        with pytest.raises(BertJaxError, match="only a run and a TensorFlow checkpoint have parts"):
            bert_jax.load(f"{tmp_path / f'own-{name}'}#generator")


@dataclasses.dataclass(frozen=True)
class Throwaway(Objective):
    """A head of its own, which serves this run alone."""

    weight: float = 1.0
    name = "throwaway"

    def own_heads(self, encoder):
        return {self.name: Discriminator(encoder)}

    def loss(self, outputs, batch):
        return {"loss": Ratio(jnp.square(outputs.logits[self.name]).sum(), jnp.float32(outputs.hidden.shape[0]))}


@pytest.mark.slow
def test_heads_of_objectives_stay_behind(one_device, tiny_store, tmp_path):
    encoder = dataclasses.replace(ENCODER, with_heads=("mlm",))
    told = experiment(encoder, (MaskedLM(), Throwaway()), steps=2)
    pretrain(told, tiny_store, tmp_path / "run")
    model = bert_jax.load(tmp_path / "run")
    assert model.params.keys() == {"embeddings", "attention", "feed_forward", "mlm"}
    bert_jax.save(model, tmp_path / "out")
    assert bert_jax.load(tmp_path / "out").params.keys() == model.params.keys()
    with pytest.raises(BertJaxError, match="has no part 'generator': it trained no generator"):
        bert_jax.load(f"{tmp_path / 'run'}#generator")
    shapes = jax.eval_shape(PretrainingTask(told.task, None).init, jax.random.key(0))
    assert "throwaway" in load_run(tmp_path / "run", shapes).params
    wider = dataclasses.replace(told, task=dataclasses.replace(told.task, encoder=dataclasses.replace(encoder, ffn_width=128)))
    save(wider, tmp_path / "run" / "experiment.json")
    with pytest.raises(BertJaxError, match="another model"):  # what is asked for must still be there as it is asked for
        bert_jax.load(tmp_path / "run")
