"""BERT-base, cased, on WNLI: whether a sentence still says what another one said once a pronoun in it has been resolved.

Command: bert-jax finetune --config configs/finetune/wnli.py --workdir runs/wnli --set task.init=DIR_OF_BERT (after
         tfds build glue/wnli --file_format=array_record; or with GLUE's own files: --set task.data.folder=DIR
         --set task.heldout.folder=DIR)
Recipe:  huggingface/transformers, examples/pytorch/text-classification/README.md: bert-base-cased, batch 32, learning rate
         2e-5, 5 epochs, 128 tokens. Defaults of its Trainer: no warm-up, no decay, clip 1.0, eps 1e-8, bias corrected. 635
         examples (from memory; Wang et al. 2019, table 1: 634) make 99 steps. Devlin et al. 2019, section 4.1, leave WNLI out.
Chips:   one chip or GPU; CPU cores will do.
Figure:  that README prints an accuracy of 56.34 on dev, 40 of 71, no more than the larger class alone (from memory): sentences
         of training come again there with another label (GLUE's FAQ, question 12). Not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.classification import Classification
from bert_jax.tasks.datasets import DATASETS, Named
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    encoder = preset("bert-base-cased", compute_dtype="bfloat16")
    return Experiment(
        task=Classification(
            encoder=finetuned_encoder(encoder, DATASETS["glue/wnli"].labels), init="bert-base-cased",
            data=Named("glue/wnli"), heldout=Named("glue/wnli", "validation"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=0, weight_decay=0.0, eps=1e-8, bias_correction=True),
        train=TrainConfig(
            steps=99, batch_size=32, eval_every=20, save_every=20, log_every=10, eval_batches=None, eval_batch_size=64,
        ),
    )
