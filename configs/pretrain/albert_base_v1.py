"""ALBERT-base (12 layers, width 768), version 1: dropout 0.1, 125,000 updates.

ALBERT has no phases: it reads 512 tokens throughout, a tenth of the examples aiming at a random shorter length.

Command: bert-jax pretrain --config configs/pretrain/albert_base_v1.py --data DIR --workdir runs/albert_base_v1
Recipe:  Lan et al. 2020, section 4.1 and google-research/albert: LAMB 1.76e-3, batch 4,096, warm-up 3,125,
         125,000 updates; sentence order, n-grams up to 3,
         SentencePiece of 30,000 pieces (bert-jax tokenizer --kind sentencepiece). The code predicts at most 20 pieces of a
         row (max_predictions_per_seq), here they are 15%, up to 77; the paper names no such limit.
Chips:   64 (the paper: 64 to 512 TPU v3, by size), 64 sequences a chip and micro-batch.
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): MLM + SOP, of one model without shared parameters: held-out MLM
         accuracy 0.278, sentence order 66.0%, SST-2 73.4. With them: docs/results/books.md.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, SentenceOrder
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import Lamb


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset("albert-base-v1", compute_dtype="bfloat16", vocab_multiple=1024),
            objectives=(MaskedLM(unit="word", max_ngram=3), SentenceOrder()),
            examples=PairSpec(length=512, pairs="sop"),
        ),
        optimizer=Lamb(learning_rate=1.76e-3, warmup_steps=3_125),
        train=TrainConfig(
            steps=125_000, batch_size=4_096, accumulate=1, eval_batch_size=512, eval_every=2_500, save_every=2_500,
            log_every=50,
        ),
    )
