"""ALBERT-large, version 2: no dropout, many more updates, on more text.

Command: bert-jax pretrain --config configs/pretrain/albert_large_v2.py --data DIR --workdir runs/albert_large_v2
Recipe:  the README of google-research/albert: no dropout, additional data, 3,000,000 updates. The rest is that of version 1,
         configs/pretrain/albert_large_v1.py; what else may have changed was not published.
Chips:   as version 1.
Figure:  not measured here.
"""

from pathlib import Path

from bert_jax import config
from bert_jax.training.experiment import Experiment
from bert_jax.training.pretrain import load_config


def get_config() -> Experiment:
    return config.override(load_config(Path(__file__).with_name("albert_large_v1.py")), (
        "task.encoder.dropout=0",
        "task.encoder.attention_dropout=0",
        "train.steps=3000000",
    ))
