"""ELECTRA-large (24 layers, width 1,024), uncased, with a generator a quarter as wide and a quarter of the tokens masked.

Command: bert-jax pretrain --config configs/pretrain/electra_large.py --data DIR --workdir runs/electra_large
         --set train.steps=1750000 for the released model, ELECTRA-1.75M.
Recipe:  the comments of configure_pretraining.py in google-research/electra: 512 tokens, batch 2,048, peak 2e-4, embeddings as
         wide as the model, 25% masked; 400,000 updates from its flops_computation.py. The rest, and the differences, are those
         of configs/pretrain/electra_small.py.
Chips:   a slice of 64 or more, 32 sequences a chip.
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
                "bert-large", with_heads=("discriminator",), compute_dtype="bfloat16", vocab_multiple=1024, remat="attention"
            ),
            objectives=(ReplacedTokens(rate=0.25),),
            examples=PairSpec(length=512, pairs="none", short_fraction=0.05),
        ),
        optimizer=AdamW(learning_rate=2e-4, warmup_steps=10_000),
        train=TrainConfig(
            steps=400_000, batch_size=2_048, eval_batch_size=256, eval_every=5_000, save_every=5_000, log_every=100
        ),
    )
