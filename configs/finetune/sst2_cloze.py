"""BERT-base, uncased, on 32 sentences of SST-2 as a cloze: whether "It was great." or "It was terrible." follows them.

Command: bert-jax finetune --config configs/finetune/sst2_cloze.py --checkpoint DIR_OF_BERT --workdir runs/sst2_cloze
         --set task.data.table.path=SST-2/train.tsv --set task.heldout.table.path=SST-2/dev.tsv (GLUE's own files; the
         checkpoint must have a masked-language-model head)
Recipe:  princeton-nlp/LM-BFF, run_experiment.sh (Gao et al. 2021): pattern and words, 1,000 steps, 128 tokens, and of its
         grids batch 8 and learning rate 1e-5; no warm-up and clip 1.0, transformers' defaults. There 16 sentences of each
         label are drawn, here the first 32 are taken, 15 of which are positive (counted in GLUE's file); there the best of ten
         evaluations is kept, here the last parameters. Decay 0.01, eps 1e-6 and bias correction as in the other recipes. Other
         sentences: --set task.data.table.rows=[32,64].
Chips:   one chip or GPU.
Figure:  not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.masked_words import Cloze, MaskedWords
from bert_jax.tasks.tables import Table
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=MaskedWords(
            encoder=finetuned_encoder(preset("bert-base", compute_dtype="bfloat16"), (), ("mlm",)), init="bert-base-uncased",
            data=cloze("train.tsv", (0, 32)), heldout=cloze("dev.tsv"),
        ),
        optimizer=AdamW(learning_rate=1e-5, warmup_steps=0, bias_correction=True),
        train=TrainConfig(
            steps=1_000, batch_size=8, eval_every=100, save_every=500, log_every=50, eval_batches=None, eval_batch_size=64
        ),
    )


def cloze(path: str, rows: tuple[int, ...] = ()) -> Cloze:
    table = Table(path, ("sentence",), "label", rows)
    return Cloze(table, "{0} It was [MASK].", labels=("0", "1"), words=("terrible", "great"))
