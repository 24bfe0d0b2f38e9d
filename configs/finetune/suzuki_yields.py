"""rxnfp's reaction BERT on the yields of 5,760 Suzuki couplings (Perera et al. 2018), split 0 of rxn_yields.

Command: python benchmarks/yields.py run --data ../shared/data --dir runs/yields (all five splits; it makes the start, weights
         with a tokenizer.json), or with such a folder bert-jax finetune --config configs/finetune/suzuki_yields.py
         --workdir runs/suzuki --set task.init=runs/yields/start/rxnfp-ft
Recipe:  what rxn4chemistry/rxn_yields keeps beside the models behind its published R2
         (trained_models/suzuki_miyaura/random_split_*/checkpoint-3780-epoch-15/model_args.json and config.json): from bert_ft,
         learning rate 9.116e-5 falling linearly without warm-up, 15 epochs of 4,032 rows, batch 16, no decay, eps 1e-8, clip
         1.0, up to 300 tokens, batches at random, yields less their mean over their deviation. simpletransformers 0.34.4 on
         transformers 2.11, whose AdamW corrects the bias. The last parameters count. Upstream's dropout, 0.7542 on hidden
         states and 0.1 on attention, acts in the first epoch alone: simpletransformers calls model.train() once, before its
         loop over epochs (classification_model.py, line 393), and the evaluation after each epoch leaves the model in
         evaluation mode. So here there is none; benchmarks/yields.py has the first epoch too.
Chips:   one chip or GPU; two CPU cores take hours a split.
Figure:  upstream's notebook 04 prints R2 0.8078 on split 0 (0.8311 0.8394 0.8208 0.8171 on 1 to 4), of predictions clipped to
         0 to 100% (the r2 of finetune is of predictions as they are; benchmarks/yields.py clips them). With dropout in all
         epochs, on an H100: 0.0133 0.0163 0.0001 -0.0034 -0.0061, nothing learnt. Without it from the second epoch on: 0.8051
         on split 0, 0.8359 on 1, 0.8353 on 2, 0.7699 on 3, two cores (docs/results/yields_full.md); on split 0 0.7840 where
         batches hold reactions of about equal length (the same to four digits when the second epoch began with fresh moments,
         and attention had no dropout in the first).
"""

from bert_jax.models.config import EncoderConfig
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.regression import Regression
from bert_jax.tasks.tables import Table
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW

FILE = "../shared/data/chem/suzuki_random_split_0.tsv"


def get_config() -> Experiment:
    reactions = EncoderConfig(vocab_size=591, embedding_width=256, hidden_width=256, layers=12, heads=4, ffn_width=512)
    return Experiment(
        task=Regression(
            encoder=finetuned_encoder(reactions, ("yield",), dropout=0.0, attention_dropout=0.0),
            init="runs/yields/start/rxnfp-ft", data=Table(FILE, ("rxn",), "y", rows=(0, 4032)),
            heldout=Table(FILE, ("rxn",), "y", rows=(4032, 5760)), lengths=(300,), group_by_length=False,
            offset=0.40328, scale=0.28192,
        ),
        optimizer=AdamW(learning_rate=9.116e-5, warmup_steps=0, weight_decay=0.0, eps=1e-8, bias_correction=True),
        train=TrainConfig(
            steps=3_780, batch_size=16, eval_every=3_780, save_every=252, log_every=50, eval_batches=None, eval_batch_size=32,
            keep=1, seed=42,
        ),
    )
