"""Multilingual BERT on WikiANN: names of people, places and organisations.

Command: bert-jax finetune --config configs/finetune/wikiann.py --workdir runs/wikiann
         --set task.init=DIR_OF_BERT --set task.data.path=en/train --set task.heldout.path=en/dev
         (another language: also --set task.data.prefix=de: --set task.heldout.prefix=de:)
Recipe:  google-research/xtreme, scripts/train_panx.sh: bert-base-multilingual-cased, batch 32 (8 by 4 accumulated), learning
         rate 2e-5, 10 epochs, 128 tokens; the best by F1 on dev of every 1,000 updates (of every epoch here). Defaults of its
         run_tag.py: no warm-up, no decay, clip 1.0, eps 1e-8; transformers' AdamW corrects the bias. 20,000 sentences (data of
         Rahimi et al. 2019) make 625 steps an epoch. What XTREME cuts at 128 tokens takes a second row here.
Chips:   one chip or GPU.
Figure:  not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.columns import wikiann
from bert_jax.tasks.tagging import Tagging
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW

LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")


def get_config() -> Experiment:
    encoder = preset("bert-base-multilingual-cased", compute_dtype="bfloat16")
    return Experiment(
        task=Tagging(
            encoder=finetuned_encoder(encoder, LABELS, ("tagger",)), init="bert-base-multilingual-cased",
            data=wikiann("en/train", "en"), heldout=wikiann("en/dev", "en"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=0, weight_decay=0.0, eps=1e-8, bias_correction=True),
        train=TrainConfig(
            steps=6_250, batch_size=32, eval_every=625, save_every=625, log_every=50, eval_batches=None, eval_batch_size=64,
            best="f1",
        ),
    )
