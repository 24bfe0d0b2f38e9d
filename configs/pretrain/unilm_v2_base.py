"""UniLMv2-base (12 layers, width 768), uncased: autoencoding and partially autoregressive prediction in one pass.

Command: bert-jax pretrain --config configs/pretrain/unilm_v2_base.py --data DIR --workdir runs/unilm_v2_base
Recipe:  Bao et al. 2020 (arXiv 2002.12804), section 4.1: 512 tokens, 15% hidden, blocks of up to six, 80/10/10; batch 7,680,
         Adam 6e-4, betas 0.9 / 0.98, eps 1e-6, decay 0.01, dropout 0.1, warm-up 24,000 and linear decay, 500,000 updates;
         30,522 pieces. Accumulation is ours.
         Left out: the relative position bias (their row "- rel pos" of tables 2 and 3 is without it: MNLI 88.4 instead of
         88.5); their rows are two contiguous segments, ours one.
Chips:   64 chips or GPUs (the original: 64 V100 for 20 days).
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): held-out MLM accuracy 0.271, SST-2 76.1.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import PseudoMasked
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base", with_heads=("mlm",), compute_dtype="bfloat16", vocab_multiple=1024, remat="attention"
            ),
            objectives=(PseudoMasked(),),
            examples=PairSpec(length=512, pairs="none"),
        ),
        optimizer=AdamW(learning_rate=6e-4, warmup_steps=24_000, beta2=0.98),
        train=TrainConfig(
            steps=500_000, batch_size=7_680, accumulate=6, eval_batch_size=256, eval_every=5_000, save_every=5_000,
            log_every=100,
        ),
    )
