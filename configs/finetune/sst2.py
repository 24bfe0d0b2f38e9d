"""BERT-base, uncased, on SST-2: whether a sentence about a film is positive.

Command: bert-jax finetune --config configs/finetune/sst2.py --workdir runs/sst2 --set task.init=DIR_OF_BERT (after
         tfds build glue/sst2 --file_format=array_record; or with GLUE's own files: --set task.data.folder=DIR
         --set task.heldout.folder=DIR)
Recipe:  google-research/bert: its README's run for MRPC (batch 32, learning rate 2e-5, 3 epochs, 128 tokens; Devlin et al.
         2019, section 4.1, has batch 32 and 3 epochs for all of GLUE and the best of 5e-5, 4e-5, 3e-5 and 2e-5), warm-up over
         a tenth of the steps (run_classifier.py), decay 0.01, eps 1e-6, clip 1.0 (optimization.py). Bias correction is on
         here, after Mosbach et al. 2021. 67,349 examples (counted in GLUE's file) make 6,313 steps.
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
            encoder=finetuned_encoder(encoder, DATASETS["glue/sst2"].labels), init="bert-base-uncased",
            data=Named("glue/sst2"), heldout=Named("glue/sst2", "validation"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=631, bias_correction=True),
        train=TrainConfig(
            steps=6_313, batch_size=32, eval_every=2_105, save_every=2_105, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
