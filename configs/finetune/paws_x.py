"""Multilingual BERT, on PAWS-X in German, trained on English alone: whether two sentences of the same words say the same.

Command: bert-jax finetune --config configs/finetune/paws_x.py --workdir runs/paws_x --set task.init=DIR_OF_BERT (after
         tfds build paws_x_wiki/en --file_format=array_record and the same of paws_x_wiki/de; another language:
         --set task.heldout.name=paws_x_wiki/fr)
Recipe:  google-research/xtreme, scripts/train_pawsx.sh: batch 32 (8 by 4 accumulated), learning rate 2e-5, 5 epochs, 128
         tokens. Defaults of its run_classify.py: no warm-up, no decay, clip 1.0, eps 1e-8. XTREME keeps the best checkpoint on
         English dev; here the last. 49,401 examples (Yang et al. 2019, from memory) make 7,718 steps.
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
    encoder = preset("bert-base-multilingual-cased", compute_dtype="bfloat16")
    return Experiment(
        task=Classification(
            encoder=finetuned_encoder(encoder, DATASETS["paws_x_wiki"].labels), init="bert-base-multilingual-cased",
            data=Named("paws_x_wiki/en"), heldout=Named("paws_x_wiki/de", "validation"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=0, weight_decay=0.0, eps=1e-8, bias_correction=True),
        train=TrainConfig(
            steps=7_718, batch_size=32, eval_every=1_544, save_every=1_544, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
