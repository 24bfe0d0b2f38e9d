"""ELECTRA-small (12 layers, width 256, embeddings 128), uncased, with a generator a quarter as wide.

Command: bert-jax pretrain --config configs/pretrain/electra_small.py --data DIR --workdir runs/electra_small
         then bert-jax export runs/electra_small OUT for the discriminator, 'runs/electra_small#generator' for the generator.
Recipe:  the defaults of configure_pretraining.py in google-research/electra: 128 tokens, batch 128, a million updates, peak
         5e-4, warm-up 10,000, linear to 0, decay 0.01, 15% masked, 85% of that by [MASK], losses 1 and 50 times, generator
         0.25; sizes from util/training_utils.py (256, 12 layers, 4 heads, feed-forward 1,024); Adam 0.9 / 0.999, eps 1e-6
         without bias correction, clipping at 1.0 from model/optimization.py; erf GELU and dropout 0.1 from model/modeling.py.
         The released small model had other settings: its README says a generator as wide as the discriminator, and 4 million
         updates.
         Differences: no position is drawn twice (compat=True draws as the original); an example is one segment, where
         build_pretraining_dataset.py cuts nine of ten into two without a label, so that the second row of the segment table
         is not trained. A twentieth of the examples are shorter, as there.
Chips:   one chip or GPU (the README: four days on a V100).
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): 0.4% of the replaced tokens found (accuracy 0.876, as without
         finding any: 12.5% are replaced), generator's held-out MLM accuracy 0.239, SST-2 61.2.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import ReplacedTokens
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                embedding_width=128, hidden_width=256, layers=12, heads=4, ffn_width=1024, with_heads=("discriminator",),
                compute_dtype="bfloat16", vocab_multiple=1024,
            ),
            objectives=(ReplacedTokens(),),
            examples=PairSpec(length=128, pairs="none", short_fraction=0.05),
        ),
        optimizer=AdamW(learning_rate=5e-4, warmup_steps=10_000),
        train=TrainConfig(steps=1_000_000, batch_size=128, eval_every=5_000, save_every=5_000, log_every=100),
    )
