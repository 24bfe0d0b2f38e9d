"""BERT-base, uncased, on STS-B: how alike in meaning two sentences are, from 0 to 5.

Command: bert-jax finetune --config configs/finetune/stsb.py --workdir runs/stsb --set task.init=DIR_OF_BERT (after
         tfds build glue/stsb --file_format=array_record; or with GLUE's own files: --set task.data.folder=DIR
         --set task.heldout.folder=DIR)
Recipe:  google-research/bert: its README's run for MRPC (batch 32, learning rate 2e-5, 3 epochs, 128 tokens; Devlin et al.
         2019, section 4.1, has batch 32 and 3 epochs for all of GLUE and the best of 5e-5, 4e-5, 3e-5 and 2e-5), warm-up over
         a tenth of the steps (run_classifier.py), decay 0.01, eps 1e-6, clip 1.0 (optimization.py). Bias correction is on
         here, after Mosbach et al. 2021. 5,749 examples with a mean of 2.70 and a deviation of 1.46 (counted in
         stsb-en-train.csv) make 538 steps.
Chips:   one chip or GPU.
Figure:  not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.datasets import Named
from bert_jax.tasks.regression import Regression
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    encoder = preset("bert-base", compute_dtype="bfloat16")
    return Experiment(
        task=Regression(
            encoder=finetuned_encoder(encoder, ("score",)), init="bert-base-uncased",
            data=Named("glue/stsb"), heldout=Named("glue/stsb", "validation"), offset=2.7, scale=1.46,
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=53, bias_correction=True),
        train=TrainConfig(
            steps=538, batch_size=32, eval_every=180, save_every=180, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
