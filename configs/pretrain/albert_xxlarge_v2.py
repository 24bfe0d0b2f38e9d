"""ALBERT-xxlarge, version 2: twice as many updates.

Command: bert-jax pretrain --config configs/pretrain/albert_xxlarge_v2.py --data DIR --workdir runs/albert_xxlarge_v2
Recipe:  the README of google-research/albert: 3,000,000 updates are the only difference to version 1,
         configs/pretrain/albert_xxlarge_v1.py.
Chips:   as version 1.
Figure:  not measured here.
"""

from pathlib import Path

from bert_jax import config
from bert_jax.training.experiment import Experiment
from bert_jax.training.pretrain import load_config


def get_config() -> Experiment:
    return config.override(load_config(Path(__file__).with_name("albert_xxlarge_v1.py")), (
        "train.steps=3000000",
    ))
