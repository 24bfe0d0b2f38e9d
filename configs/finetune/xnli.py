"""Multilingual BERT, on XNLI in German, trained on English alone (zero-shot).

Command: bert-jax finetune --config configs/finetune/xnli.py --workdir runs/xnli --set task.init=DIR_OF_BERT (after
         tfds build glue/mnli --file_format=array_record and the same of xnli, which has all languages; another one:
         --set task.heldout.name=xnli/fr)
Recipe:  google-research/bert, multilingual.md: batch 32, learning rate 5e-5, 2 epochs, 128 tokens; warm-up over a tenth of the
         steps (run_classifier.py), decay 0.01, eps 1e-6, clip 1.0 (optimization.py). Bias correction is on here, after Mosbach
         et al. 2021. MNLI's 392,702 examples make 24,543 steps.
Chips:   one chip or GPU.
Figure:  multilingual.md prints an accuracy of 70.5 on the German test set for the uncased model, zero-shot. Not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.datasets import DATASETS, Named
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    encoder = preset("bert-base-multilingual-cased", compute_dtype="bfloat16")
    return Experiment(
        task=Classification(
            encoder=finetuned_encoder(encoder, DATASETS["xnli"].labels), init="bert-base-multilingual-cased",
            data=Named("glue/mnli"), heldout=Named("xnli/de", "validation"),
        ),
        optimizer=AdamW(learning_rate=5e-5, warmup_steps=2_454, bias_correction=True),
        train=TrainConfig(
            steps=24_543, batch_size=32, eval_every=12_272, save_every=12_272, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
