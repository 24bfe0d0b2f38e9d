"""BERT-base, uncased, the paper's first phase: 128 tokens for 90% of a million updates.

Command: bert-jax pretrain --config configs/pretrain/bert_base.py --data DIR --workdir runs/bert_base
         then the second phase from its export: 512 tokens for the remaining 10%.
Recipe:  Devlin et al. 2019, appendix A.2: batch 256, Adam 1e-4, betas 0.9 / 0.999, decay 0.01, warm-up 10,000, dropout 0.1,
         GELU; google-research/bert's README for the two phases. The tokenizer of the data needs at most 30,522 pieces.
Figure:  not measured here: it needs an accelerator for days. tests/test_configs.py builds it.
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
            encoder=preset("bert-base", activation="gelu_new", compute_dtype="bfloat16"),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=128, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=10_000),
        train=TrainConfig(steps=900_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
