"""BERT-base, uncased, on MRPC: whether two sentences of the news say the same.

Command: bert-jax finetune --config configs/finetune/mrpc.py --workdir runs/mrpc --set task.init=DIR_OF_BERT (after
         tfds build glue/mrpc --file_format=array_record; or with GLUE's own files: --set task.data.folder=DIR
         --set task.heldout.folder=DIR)
Recipe:  Mosbach et al. 2021, for small data sets;
         rte/pooler-bert-large-uncased_bsz_16_lr_2e-05_adamW_bias-correct_early-stopping_20.yaml of
         uds-lsv/bert-stable-fine-tuning: batch 16, learning rate 2e-5, 20 epochs, warm-up over a tenth of the steps, bias
         correction, decay 0.01, eps 1e-6, clip 1.0, 128 tokens. It is for BERT-large. Here the last parameters are kept, not
         the best. 3,668 examples (Wang et al. 2019, table 1: 3.7k; GLUE's split of 4,076, from memory) make 4,585 steps.
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
            encoder=finetuned_encoder(encoder, DATASETS["glue/mrpc"].labels), init="bert-base-uncased",
            data=Named("glue/mrpc"), heldout=Named("glue/mrpc", "validation"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=458, bias_correction=True),
        train=TrainConfig(
            steps=4_585, batch_size=16, eval_every=230, save_every=230, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
