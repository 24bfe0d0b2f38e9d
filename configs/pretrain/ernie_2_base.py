"""ERNIE 2.0 base (12 layers, width 768), English: word-aware and structure-aware tasks that take turns.

Command: bert-jax pretrain --config configs/pretrain/ernie_2_base.py --data DIR --workdir runs/ernie_2_base
         with a store prepared with --case and annotated with entities (`bert-jax annotate --gazetteer`). One task after the
         other, as the paper adds them: begin with --set task.turns=[] and go on with --init (heads of single objectives
         then begin anew).
Recipe:  Sun et al. 2020 (arXiv 1907.12412), section 4.2; of the settings a summary was read, not the paper: 393,216 tokens an
         update (768 rows of 512), Adam 5e-5 for English, betas 0.9 / 0.98, warm-up 4,000, then noam's decay, which is linear
         here. Every task goes on when the next has joined (continual multi-task learning); a batch has one
         sentence-level loss and any number of token-level ones. From PaddlePaddle/ERNIE, ernie_base/ernie_config.json: GELU,
         dropout 0.1, 30,522 pieces. Not said: how updates are shared (equally here), the updates in all (50,000 a task
         here), loss weights (1 here), m of reordering (3 here), decay (0.01 here).
         Knowledge masking hides entities here, and no phrases: an objective has one unit (unit="phrase" for the other).
         Left out: discourse relation and IR relevance, whose labels come from other data, and task embeddings.
Chips:   64 chips or GPUs (the paper, from memory: 48 V100).
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): each task beside MLM alone: capitals 0.958, token-document
         0.835, reordering 0.650, distance 0.489 accuracy; SST-2 74.6, 73.6, 72.6, 75.0.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.data.reordered import Reordered
from bert_jax.models.config import preset
from bert_jax.objectives import Capitalisation, Distance, MaskedLM, Reordering, TokenDocument
from bert_jax.objectives.pretraining import Pretraining, Turn
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    knowledge = MaskedLM(unit="entity")
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base", compute_dtype="bfloat16", vocab_multiple=1024, with_heads=("pooler", "mlm")
            ),
            objectives=(knowledge, Capitalisation(), TokenDocument()),
            examples=PairSpec(length=512, pairs="none"),
            turns=(
                Turn("reorder", (knowledge, Reordering(most=3)), Reordered(length=512, most=3)),
                Turn("distance", (knowledge, Distance()), PairSpec(length=512, pairs="distance")),
            ),
        ),
        optimizer=AdamW(learning_rate=5e-5, warmup_steps=4_000, beta2=0.98),
        train=TrainConfig(steps=250_000, batch_size=768, eval_every=5_000, save_every=5_000, log_every=100),
    )
