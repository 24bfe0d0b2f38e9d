"""A BERT of four layers and width 128 on public-domain books, for two cores: the committed real run.

Commands (benchmarks/books.py runs them all, and the ALBERT beside it, and writes docs/results/books.md):
  bert-jax tokenizer books.txt.gz --documents formfeed --vocab-size 8192 --out runs/books/tokenizer
  bert-jax prepare books.txt.gz --documents formfeed --heldout 0.03 --tokenizer runs/books/tokenizer --out runs/books/store
  bert-jax pretrain --config configs/pretrain/bert_books.py --data runs/books/store --workdir runs/books/bert
Recipe:  Devlin et al. 2019, appendix A.2: 15% masking 80/10/10, NSP, AdamW without bias correction, decay 0.01, clip 1.0.
         Learning rate 1e-3 and batch 64 instead of 1e-4 and 256: a model this small on a budget this small wants larger steps.
Figure:  docs/results/books.md.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                vocab_size=8192, embedding_width=128, hidden_width=128, layers=4, heads=2, ffn_width=512, max_length=128
            ),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=128, pairs="nsp"),
        ),
        optimizer=AdamW(learning_rate=1e-3, warmup_steps=200),
        train=TrainConfig(steps=1_600, batch_size=64, eval_every=200, save_every=200, eval_batches=None),
    )
