"""Multilingual BERT (12 layers, width 768), cased: BERT on many languages, the large ones sampled less than they would be.

Command: bert-jax tokenizer en=en.txt de=de.txt ... --vocab-size 119547 --cased --out TOKENIZER
         bert-jax prepare en=en.txt de=de.txt ... --tokenizer TOKENIZER --out DIR
         bert-jax pretrain --config configs/pretrain/multilingual.py --data DIR --workdir runs/multilingual
Recipe:  google-research/bert multilingual.md: shares of languages raised to the power 0.7 and normalised again, so that 1000
         times as much English as Icelandic becomes about 100 times as much; nothing marks the language. The released cased
         vocabulary has 119,547 pieces, for which tokens were counted with the same shares (our tokenizers count the text as
         it is). The page does not say how it was optimised: this is BERT-base's first phase,
         configs/pretrain/bert_base_128.py. A random next sentence is from the same language here.
Chips:   16 to 64 chips or GPUs.
Figure:  not measured at this size. In small (MLM alone, 2 layers, D 128, relative positions, four languages with 72% to
         1.3% of the text; docs/results/languages_cpu.md): held-out accuracy in the rarest 15.4 ± 1.1, without the power
         12.8 ± 0.7; in the commonest 24.9 ± 1.5 and 27.0 ± 0.4.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM, NextSentence
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base-multilingual-cased", activation="gelu_new", compute_dtype="bfloat16", vocab_multiple=1024,
            ),
            objectives=(MaskedLM(), NextSentence()),
            examples=PairSpec(length=128, pairs="nsp", language_exponent=0.7),
        ),
        optimizer=AdamW(learning_rate=1e-4, warmup_steps=10_000),
        train=TrainConfig(steps=900_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
