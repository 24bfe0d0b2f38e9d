"""ALBERT-base v2 with LAMB: 512 tokens, n-gram masking, sentence order, no dropout.

Command: bert-jax pretrain --config configs/pretrain/albert_base.py --data DIR --workdir runs/albert_base
Recipe:  Lan et al. 2020, section 4.1 and google-research/albert: LAMB 1.76e-3, batch 4,096, 125,000 updates, warm-up 3,125,
         n-grams up to 3, SentencePiece of 30,000 pieces (bert-jax tokenizer --kind sentencepiece).
Figure:  not measured here: it needs an accelerator for days. tests/test_configs.py builds it.
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
            encoder=preset("albert-base-v2", compute_dtype="bfloat16", remat="attention"),
            objectives=(MaskedLM(unit="word", max_ngram=3), SentenceOrder()),
            examples=PairSpec(length=512, pairs="sop"),
        ),
        optimizer=Lamb(learning_rate=1.76e-3, warmup_steps=3_125),
        train=TrainConfig(steps=125_000, batch_size=4_096, eval_every=2_500, save_every=2_500, log_every=50),
    )
