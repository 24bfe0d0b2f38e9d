"""ALBERT-base, version 2, on RACE: which of four answers to a question about a text of an English exam is right.

Command: bert-jax finetune --config configs/finetune/race.py --workdir runs/race --set task.init=DIR_OF_ALBERT
         --set task.data.path=RACE/train --set task.heldout.path=RACE/dev (the folders of the archive; RACE/train/high, or of
         TFDS, which has both levels apart, --set 'task.data={"kind": "Named", "name": "race/high"}' and
         --set 'task.heldout={"kind": "Named", "name": "race/high", "split": "dev"}')
Recipe:  google-research/albert, run_race.py: learning rate 1e-5, batch 32 (questions, so 128 sequences), 12,000 steps, warm-up
         over 1,000, 512 tokens. Its README, "New October 31, 2019": with version 2 this rate and no dropout, since what version
         1 had diverges; the 0.1 that run_race.py has before the last layer is not here. optimization.py: decay 0.01, eps 1e-6,
         clip 1.0. Bias correction is on here, after Mosbach et al. 2021. run_race.py keeps the best checkpoint on dev, and cuts
         question and answer at 128 tokens; here the last is kept, and the longest text is cut.
Chips:   one chip or GPU; where memory is short --set train.accumulate=8.
Figure:  that README prints an accuracy of 66.8 for ALBERT-base, version 2. Not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.choice import Choice
from bert_jax.tasks.race import Race
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    encoder = preset("albert-base-v2", compute_dtype="bfloat16")
    return Experiment(
        task=Choice(
            encoder=finetuned_encoder(encoder, (), ("pooler", "choice")), init="albert-base-v2",
            data=Race("RACE/train"), heldout=Race("RACE/dev"), lengths=(512,),
        ),
        optimizer=AdamW(learning_rate=1e-5, warmup_steps=1_000, bias_correction=True),
        train=TrainConfig(
            steps=12_000, batch_size=32, eval_every=3_000, save_every=1_000, log_every=50, eval_batches=None,
            eval_batch_size=16,
        ),
    )
