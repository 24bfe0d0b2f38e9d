"""BERT-large, uncased, on SQuAD 2.0: some questions have no answer.

Command: bert-jax finetune --config configs/finetune/squad_2.py --workdir runs/squad_2
         --set task.init=DIR_OF_BERT --set task.data.path=train-v2.0.json --set task.heldout.path=dev-v2.0.json
         The evaluation names best_f1_threshold, of the very data that it is measured on; for others,
         bert-jax predict runs/squad_2 --null-threshold=THAT ..., and bert-jax evaluate likewise.
Recipe:  the README of google-research/bert, "SQuAD 2.0": batch 24, learning rate 3e-5, 2 epochs, 384 tokens, stride 128;
         run_squad.py's defaults: questions of 64 tokens, answers of 30, a threshold of 0, warm-up over a tenth of the steps,
         which are counted in questions: 130,319 of them (Rajpurkar et al. 2018, from memory) make 10,859 steps.
         optimization.py: decay 0.01, clip 1.0, eps 1e-6. Bias correction is on here, after Mosbach et al. 2021;
         run_squad.py has none.
Chips:   the README says one Cloud TPU of 64 GB; for less, --set train.accumulate=4.
Figure:  not measured here; the README prints none.
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
            encoder=finetuned_encoder(preset("bert-large", compute_dtype="bfloat16"), (), ("span",)),
            init="bert-large-uncased", data=Squad("train-v2.0.json"), heldout=Squad("dev-v2.0.json"), null_threshold=0.0,
        ),
        optimizer=AdamW(learning_rate=3e-5, warmup_steps=1_085, bias_correction=True),
        train=TrainConfig(
            steps=10_859, batch_size=24, eval_every=10_859, save_every=1_000, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
