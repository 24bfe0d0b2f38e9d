"""BERT-base, uncased, on SWAG: which of four endings goes on from a caption.

Command: bert-jax finetune --config configs/finetune/swag.py --workdir runs/swag --set task.init=DIR_OF_BERT
         --set task.data.path=train.csv --set task.heldout.path=val.csv (the files of rowanz/swagaf's folder data)
Recipe:  Devlin et al. 2019, section 4.4: 3 epochs, learning rate 2e-5, batch 16 (questions, so 64 sequences). The section names
         nothing else: warm-up over a tenth of the steps, decay 0.01 and clip 1.0 are those of google-research/bert's
         run_classifier.py and optimization.py; 128 tokens are ours. Bias correction is on here, after Mosbach et al. 2021.
         73,546 questions (Zellers et al. 2018, from memory; its site says 73k) make 13,789 steps.
Chips:   one chip or GPU.
Figure:  the paper's table 4 has an accuracy of 81.6 on dev. Not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.choice import Choice, swag
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Choice(
            encoder=finetuned_encoder(preset("bert-base", compute_dtype="bfloat16"), (), ("pooler", "choice")),
            init="bert-base-uncased", data=swag("train.csv"), heldout=swag("val.csv"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=1_378, bias_correction=True),
        train=TrainConfig(
            steps=13_789, batch_size=16, eval_every=13_789, save_every=1_000, log_every=50, eval_batches=None
        ),
    )
