"""The ALBERT beside configs/pretrain/bert_books.py: the same depth, width, data and number of updates.

Command: bert-jax pretrain --config configs/pretrain/albert_books.py --data runs/books/store --workdir runs/books/albert
Recipe:  Lan et al. 2020: factorised embeddings (E = 64), one set of layer parameters, tanh GELU, n-gram masking up to 3,
         SOP, no dropout (as ALBERT v2). AdamW instead of LAMB, with the BERT's settings, so that the two differ in the
         model and its objectives only; LAMB is for batches of thousands.
Figure:  docs/results/books.md.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, SentenceOrder
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                vocab_size=8192, embedding_width=64, hidden_width=128, layers=4, heads=2, ffn_width=512, max_length=128,
                activation="gelu_new", share="all", dropout=0.0, attention_dropout=0.0,
            ),
            objectives=(MaskedLM(unit="word", max_ngram=3), SentenceOrder()),
            examples=PairSpec(length=128, pairs="sop"),
        ),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=200),
        train=TrainConfig(steps=1_600, batch_size=64, eval_every=200, save_every=200, eval_batches=None),
    )
