"""BERT-base, uncased, on SQuAD 1.1: which part of a paragraph answers a question.

Command: bert-jax finetune --config configs/finetune/squad.py --workdir runs/squad
         --set task.init=DIR_OF_BERT --set task.data.path=train-v1.1.json --set task.heldout.path=dev-v1.1.json
         (where only one file is at hand: both paths to it, --set task.data.articles=[0,0.75]
         --set task.heldout.articles=[0.75,1]).
Recipe:  the README of google-research/bert, "SQuAD 1.1", its command for BERT-base: batch 12, learning rate 3e-5, 2 epochs,
         384 tokens, stride 128; run_squad.py's defaults: questions of 64 tokens, answers of 30, warm-up over a tenth of the
         steps, which are counted in questions: 87,599 of them (Rajpurkar et al. 2016, from memory) make 14,599 steps.
         optimization.py: decay 0.01, clip 1.0, eps 1e-6. Bias correction is on here, after Mosbach et al. 2021;
         run_squad.py has none.
Chips:   one chip or GPU; the README says 12 to 16 GB.
Figure:  the README prints F1 88.41 and exact match 81.25 on dev. Not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.question_answering import QuestionAnswering
from bert_jax.tasks.squad import Squad
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=QuestionAnswering(
            encoder=finetuned_encoder(preset("bert-base", compute_dtype="bfloat16"), (), ("span",)),
            init="bert-base-uncased", data=Squad("train-v1.1.json"), heldout=Squad("dev-v1.1.json"),
        ),
        optimizer=AdamW(learning_rate=3e-5, warmup_steps=1_459, bias_correction=True),
        train=TrainConfig(
            steps=14_599, batch_size=12, eval_every=14_599, save_every=1_000, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
