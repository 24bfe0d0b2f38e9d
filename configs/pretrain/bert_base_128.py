"""BERT-base (12 layers, width 768), uncased, first phase: 128 tokens.

Command: bert-jax pretrain --config configs/pretrain/bert_base_128.py --data DIR --workdir runs/bert_base_128
         then the second phase, configs/pretrain/bert_base_512.py.
Recipe:  Devlin et al. 2019, appendix A.2: batch 256, Adam 1e-4, betas 0.9 / 0.999, decay 0.01, warm-up 10,000, dropout 0.1,
         tanh GELU; 90% of a million updates at 128 tokens, the rest at 512. The tokenizer of the data may have up to 30,522
         pieces. The original's one learning rate for both phases falls to 1e-5 here; ours falls to 0 and starts again.
Chips:   8 to 32 chips or GPUs (the original: 16 TPU chips for 4 days).
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): held-out MLM accuracy 0.279, next sentences 69.6%, SST-2 72.8.
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
            encoder=preset("bert-base", activation="gelu_new", compute_dtype="bfloat16", vocab_multiple=1024),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=128, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=10_000),
        train=TrainConfig(steps=900_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
