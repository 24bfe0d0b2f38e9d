"""Multilingual BERT on Universal Dependencies: the part of speech of every word, English (EWT).

Command: bert-jax finetune --config configs/finetune/ud_pos.py --workdir runs/ud_pos --set task.init=DIR_OF_BERT
         --set task.data.path=en_ewt-ud-train.conllu --set task.heldout.path=en_ewt-ud-dev.conllu
Recipe:  google-research/xtreme, scripts/train_udpos.sh: bert-base-multilingual-cased, batch 32 (8 by 4 accumulated), learning
         rate 2e-5, 10 epochs, 128 tokens; the best evaluation on dev is kept, by accuracy here. Defaults of its run_tag.py: no
         warm-up, no decay, clip 1.0, eps 1e-8; transformers' AdamW corrects the bias. XTREME trains on all English treebanks
         of UD 2.5; EWT alone (2.15: 12,544 sentences) makes 392 steps an epoch.
Chips:   one chip or GPU.
Figure:  not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.columns import conllu
from bert_jax.tasks.tagging import Tagging
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW

LABELS = (  # the 17 universal parts of speech
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB",
    "X",
)


def get_config() -> Experiment:
    encoder = preset("bert-base-multilingual-cased", compute_dtype="bfloat16")
    return Experiment(
        task=Tagging(
            encoder=finetuned_encoder(encoder, LABELS, ("tagger",)), init="bert-base-multilingual-cased",
            data=conllu("en_ewt-ud-train.conllu"), heldout=conllu("en_ewt-ud-dev.conllu"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=0, weight_decay=0.0, eps=1e-8, bias_correction=True),
        train=TrainConfig(
            steps=3_920, batch_size=32, eval_every=392, save_every=392, log_every=50, eval_batches=None, eval_batch_size=64,
            best="accuracy",
        ),
    )
