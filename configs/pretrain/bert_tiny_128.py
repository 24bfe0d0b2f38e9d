"""BERT-tiny (2 layers, width 128), uncased, first phase: 128 tokens.

Command: bert-jax pretrain --config configs/pretrain/bert_tiny_128.py --data DIR --workdir runs/bert_tiny_128
         then the second phase, configs/pretrain/bert_tiny_512.py.
         (configs/pretrain/bert_tiny.py is the same encoder for two cores and an afternoon.)
Recipe:  Turc et al. 2019 give their small models the recipe of BERT-base (the README of google-research/bert: "the same
         regime as the original model"): Devlin et al. 2019, appendix A.2, batch 256, Adam 1e-4, betas 0.9 / 0.999, decay 0.01,
         warm-up 10,000, dropout 0.1, tanh GELU; 90% of a million updates at 128 tokens, the rest at 512.
Chips:   one chip or GPU.
Figure:  not measured here.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset("bert-tiny", activation="gelu_new", compute_dtype="bfloat16", vocab_multiple=1024),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=128, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=10_000),
        train=TrainConfig(steps=900_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
