"""The BERT of the tests: every axis that a mesh may shard has a size that 8 divides."""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                vocab_size=96, embedding_width=32, hidden_width=32, layers=2, heads=8, ffn_width=64, max_length=16
            ),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=16, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=5e-3, warmup_steps=2),
        train=TrainConfig(steps=12, batch_size=16, eval_every=6, save_every=4, log_every=2, eval_batches=2),
    )
