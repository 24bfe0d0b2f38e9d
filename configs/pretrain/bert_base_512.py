"""BERT-base, second phase: 512 tokens for the last tenth of the updates, from what the first phase left.

Command: bert-jax pretrain --config configs/pretrain/bert_base_512.py --data DIR --workdir runs/bert_base_512
         on the same token store. The first phase is looked for in runs/bert_base_128; --init says another place.
Recipe:  Devlin et al. 2019, appendix A.2. Their single line from 1e-4 to 0 has 1e-5 left when 90% is done: this phase begins
         there, after a warm-up that fills the new Adam's moments (google-research/bert drops them between phases as well).
Chips:   as the first phase.
Figure:  not measured here.
"""

from pathlib import Path

from bert_jax import config
from bert_jax.training.experiment import Experiment
from bert_jax.training.pretrain import load_config


def get_config() -> Experiment:
    return config.override(load_config(Path(__file__).with_name("bert_base_128.py")), (
        "task.init=runs/bert_base_128",
        "task.examples.length=512",
        "optimizer.learning_rate=1e-5",
        "optimizer.warmup_steps=1000",
        "train.steps=100000",
    ))
