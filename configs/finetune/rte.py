"""BERT-base, uncased, on RTE: whether the second sentence follows from the first.

Command: bert-jax finetune --config configs/finetune/rte.py --workdir runs/rte --set task.init=DIR_OF_BERT (after
         tfds build glue/rte --file_format=array_record; or with GLUE's own files: --set task.data.folder=DIR
         --set task.heldout.folder=DIR)
Recipe:  Mosbach et al. 2021, for small data sets;
         rte/pooler-bert-large-uncased_bsz_16_lr_2e-05_adamW_bias-correct_early-stopping_20.yaml of
         uds-lsv/bert-stable-fine-tuning: batch 16, learning rate 2e-5, 20 epochs, warm-up over a tenth of the steps, bias
         correction, decay 0.01, eps 1e-6, clip 1.0, 128 tokens. It is for BERT-large. Here the last parameters are kept, not
         the best. 2,490 examples (counted in GLUE's file) make 3,112 steps.
Chips:   one chip or GPU.
Figure:  not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.datasets import DATASETS, Named
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    encoder = preset("bert-base", compute_dtype="bfloat16")
    return Experiment(
        task=Classification(
            encoder=finetuned_encoder(encoder, DATASETS["glue/rte"].labels), init="bert-base-uncased",
            data=Named("glue/rte"), heldout=Named("glue/rte", "validation"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=311, bias_correction=True),
        train=TrainConfig(
            steps=3_112, batch_size=16, eval_every=156, save_every=156, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
