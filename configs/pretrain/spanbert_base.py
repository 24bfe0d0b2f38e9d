"""SpanBERT-base (12 layers, width 768), cased: spans are hidden, and predicted once more from their boundaries.

Command: bert-jax pretrain --config configs/pretrain/spanbert_base.py --data DIR --workdir runs/spanbert_base
Recipe:  the command in pretraining/README.md of facebookresearch/SpanBERT, which is that of the large model; its released base
         model differs in size alone. 512 tokens of one segment, none of them short; spans with p = 0.2 of 1 to 10 words,
         15%, replaced 80/10/10 a span; both losses with weight 1, 15 targets of a span and 200 values for a place in it; 32
         GPUs with 4,096 tokens each (256 rows); Adam 1e-4, eps 1e-8 with bias correction, decay 0.01, clip 1, warm-up 10,000,
         2,400,000 updates. From its code (pair_bert.py): 28,996 pieces, erf GELU, dropout 0.1. The learning rate falls to 0
         here, to 1e-9 there; decay falls on biases and layer norms too there; random pieces come from the vocabulary here,
         from the corpus there; --clamp-attention is left out.
Chips:   32 chips or GPUs (the original: 32 V100).
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): accuracy of the boundary objective 0.098, held-out MLM accuracy at
         single pieces 0.254, SST-2 71.6.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, SpanBoundary
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base-cased", with_heads=("mlm",), compute_dtype="bfloat16", vocab_multiple=1024
            ),
            objectives=(MaskedLM(unit="span", replace="unit"), SpanBoundary()),
            examples=PairSpec(length=512, pairs="none", short_fraction=0.0),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=10_000, eps=1e-8, bias_correction=True),
        train=TrainConfig(steps=2_400_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
