"""BERT-large, second phase: 512 tokens, LAMB, batch 32,768, from what the first phase left.

Command: bert-jax pretrain --config configs/pretrain/bert_large_512.py --data DIR --workdir runs/bert_large_512
         on the same token store. The first phase is looked for in runs/bert_large_128; --init says another place.
Recipe:  as configs/pretrain/bert_large_128.py: rate 4e-3, warmed up again (You et al. 2020: it steadies the second stage)
         over 12.8% of 1,563 updates.
Chips:   a v5e-64 at 16 sequences a chip and micro-batch. On N chips set train.accumulate to 32,768 / N / 16.
Figure:  not measured here; see the first phase.
"""

from pathlib import Path

from bert_jax import config
from bert_jax.training.experiment import Experiment
from bert_jax.training.pretrain import load_config


def get_config() -> Experiment:
    return config.override(load_config(Path(__file__).with_name("bert_large_128.py")), (
        "task.init=runs/bert_large_128",
        "task.examples.length=512",
        "optimizer.learning_rate=4e-3",
        "optimizer.warmup_steps=200",
        "train.steps=1563",
        "train.batch_size=32768",
        "train.accumulate=32",
        "train.eval_batch_size=1024",
        "train.eval_batches=20",
    ))
