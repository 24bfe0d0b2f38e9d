"""The ALBERT of the tests; see tiny_bert.py."""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, SentenceOrder
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import Lamb


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                vocab_size=96, embedding_width=16, hidden_width=32, layers=2, heads=8, ffn_width=64, max_length=16,
                activation="gelu_new", share="all",
            ),
            objectives=(MaskedLM(unit="word", max_ngram=3), SentenceOrder()),
            examples=PairSpec(length=16, pairs="sop"),
        ),
        optimizer=Lamb(learning_rate=5e-3, warmup_steps=2),
        train=TrainConfig(steps=12, batch_size=16, eval_every=6, save_every=4, log_every=2, eval_batches=2),
    )
