"""StructBERT-base (12 layers, width 768), uncased: BERT with shuffled trigrams and a three-way sentence label.

Command: bert-jax pretrain --config configs/pretrain/structbert_base.py --data DIR --workdir runs/structbert_base
Recipe:  Wang et al. 2020 (arXiv 1908.04577). Section 2.2, read in several summaries that agree: 15% masked as BERT does; then
         5% of trigrams (K = 3) of what is not masked are shuffled; next, previous and random sentence a third each; all
         three losses weigh the same. Section 3.1, from memory and not verified: 512 tokens throughout, Adam 1e-4, betas
         0.9 / 0.999, decay 0.01, dropout 0.1, GELU, warm-up over the first tenth of the updates, 40 epochs of Wikipedia and
         BookCorpus. The batch is not said: BERT's, 256, with which 40 epochs are its million updates (Devlin et al. 2019,
         appendix A.2).
Chips:   16 to 64 chips or GPUs (the paper, from memory: 64 V100 for 38 hours).
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): word order 0.457, three-way label 0.402, held-out MLM accuracy
         0.255, SST-2 73.0.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, Structural, WordOrder
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base", compute_dtype="bfloat16", vocab_multiple=1024, with_heads=("pooler", "mlm")
            ),
            objectives=(MaskedLM(), WordOrder(), Structural()),
            examples=PairSpec(length=512, pairs="structural"),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=100_000),
        train=TrainConfig(steps=1_000_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
