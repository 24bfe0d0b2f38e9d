"""Chinese BERT, on ChnSentiCorp: whether a Chinese review is positive.

Command: bert-jax finetune --config configs/finetune/chnsenticorp.py --workdir runs/chnsenticorp --set task.init=DIR_OF_BERT
         --set task.data.folder=DIR --set task.heldout.folder=DIR (of train.tsv and dev.tsv)
Recipe:  ymcui/Chinese-BERT-wwm, README: learning rate 2e-5 for BERT on ChnSentiCorp; batch 64 and 256 tokens are from its
         report (Cui et al. 2019), from memory, the 3 epochs are run_classifier.py's default, as are warm-up over a tenth of
         the steps, and decay 0.01, eps 1e-6, clip 1.0 optimization.py's. Bias correction is on here, after Mosbach et al.
         2021. 9,600 examples (counted) make 450 steps.
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
    encoder = preset("bert-base-chinese", compute_dtype="bfloat16")
    return Experiment(
        task=Classification(
            encoder=finetuned_encoder(encoder, DATASETS["chnsenticorp"].labels), init="bert-base-chinese",
            data=Named("chnsenticorp", "train", "chnsenticorp"), heldout=Named("chnsenticorp", "validation", "chnsenticorp"),
            lengths=(256,),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=45, bias_correction=True),
        train=TrainConfig(
            steps=450, batch_size=64, eval_every=150, save_every=150, log_every=50, eval_batches=None,
            eval_batch_size=64,
        ),
    )
