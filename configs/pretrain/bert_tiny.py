"""BERT-tiny (2 layers, width 128) with next-sentence prediction: the smallest published size, for two cores.

Command:  bert-jax pretrain --config configs/pretrain/bert_tiny.py --data DIR --workdir runs/bert_tiny
Recipe:   Devlin et al. 2019, appendix A.2 (15% masking, NSP, AdamW without bias correction); the learning rate and the
          length of the run suit a single small machine.
Figure:   see docs/results/ for what was measured on which data.
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
            encoder=preset("bert-tiny"),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=128, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=1_000),
        train=TrainConfig(steps=20_000, batch_size=64),
    )
