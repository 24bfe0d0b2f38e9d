"""ERNIE 1.0 base (12 layers, width 768), Chinese: masked characters, then masked phrases, then masked entities.

Command: bert-jax pretrain --config configs/pretrain/ernie_base.py --data DIR --workdir runs/ernie_base_1
         then the second and the third stage, each from what the one before left:
         ... --workdir runs/ernie_base_2 --init runs/ernie_base_1 --set task.objectives.0.unit=phrase
         ... --workdir runs/ernie_base_3 --init runs/ernie_base_2 --set task.objectives.0.unit=entity
         with a store that `bert-jax annotate` has given phrases and entities.
Recipe:  Sun et al. 2019 (arXiv 1904.09223), section 3.2: three stages, 15% masked in the first; the size of BERT-base. The
         paper says no other number. From PaddlePaddle/ERNIE, script/zh_task/pretrain.sh: 8 GPUs with 8,192 tokens each
         in rows of up to 512 (128 rows), 1e-4, decay 0.01, a million updates, of which each stage has a third here, as
         nothing says how they are shared; warm-up 4,000 and linear decay are the defaults of its pretrain_args.py (seen in
         copies). The next-sentence label is of that code, not of the paper (from memory). The vocabulary is that of
         Chinese BERT, 21,128 (ERNIE's own has 17,964 pieces, from memory).
         GELU is BERT's here (relu in copies of its ernie_config.json), and so is Adam, without bias correction, eps 1e-6
         (Paddle's fluid has both otherwise, 1e-8, from memory).
         Left out: the dialogue language model (section 3.3) and Baidu's corpora.
Chips:   8 chips or GPUs, as that script.
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): mined phrases, English: held-out MLM accuracy 0.259, SST-2 74.0.
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
            encoder=preset("bert-base-chinese", compute_dtype="bfloat16", vocab_multiple=1024),
            objectives=(MaskedLM(unit="piece"), NextSentence()),
            examples=PairSpec(length=512, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=4_000),
        train=TrainConfig(steps=333_000, batch_size=128, eval_every=5_000, save_every=5_000, log_every=100),
    )
