"""BERT-large (24 layers, width 1,024), uncased, first phase: 128 tokens, LAMB, batch 65,536.

Command: bert-jax pretrain --config configs/pretrain/bert_large_128.py --data DIR --workdir runs/bert_large_128
         then the second phase, configs/pretrain/bert_large_512.py.
Recipe:  You et al. 2020 (LAMB), the mixed batch of 65,536 and 32,768 in 8,599 updates, with the settings that NVIDIA published
         for it (DeepLearningExamples, PyTorch BERT, pretrain_config.sh): rate 6e-3, warm-up 28.43% of 7,038 updates. Their
         rate falls with the square root of what is left; ours falls linearly.
Chips:   a v5e-64 at 64 sequences a chip and micro-batch. On N chips set train.accumulate to 65,536 / N / 64.
Figure:  not measured here. You et al.: both phases in 76 minutes on 1,024 TPU v3 chips.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.parallel.mesh import MeshConfig
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import Lamb


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset("bert-large", activation="gelu_new", compute_dtype="bfloat16", vocab_multiple=1024),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=128, pairs="nsp"),
        ),
        optimizer=Lamb(learning_rate=6e-3, warmup_steps=2_001),
        train=TrainConfig(
            steps=7_038, batch_size=65_536, accumulate=16, eval_batch_size=4_096, eval_batches=5, eval_every=200, save_every=200
        ),
        mesh=MeshConfig(fsdp=8),
    )
