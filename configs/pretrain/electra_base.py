"""ELECTRA-base (12 layers, width 768), uncased, with a generator a third as wide.

Command: bert-jax pretrain --config configs/pretrain/electra_base.py --data DIR --workdir runs/electra_base
Recipe:  the comments of configure_pretraining.py in google-research/electra: 512 tokens, batch 256, peak 2e-4, embeddings as
         wide as the model, generator 0.33333; 766,000 updates from its flops_computation.py. The rest, and the differences,
         are those of configs/pretrain/electra_small.py.
Chips:   16 chips or GPUs (the paper, from memory: 16 TPU v3 for four days).
Figure:  not measured here.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import ReplacedTokens
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base", with_heads=("discriminator",), compute_dtype="bfloat16", vocab_multiple=1024
            ),
            objectives=(ReplacedTokens(generator_width=1 / 3),),
            examples=PairSpec(length=512, pairs="none", short_fraction=0.05),
        ),
        optimizer=AdamW(learning_rate=2e-4, warmup_steps=10_000),
        train=TrainConfig(steps=766_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
