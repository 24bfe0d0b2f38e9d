"""BART-base: an encoder of six layers that reads spoilt text, a decoder of six that writes the original.

Command: bert-jax pretrain --config configs/pretrain/bart_base.py --data DIR --workdir runs/bart_base
Recipe:  Lewis et al. 2020. Sizes are those of bart_base in fairseq (models/bart/model.py): 6 + 6 layers, width 768, 12 heads,
         feed-forward 3,072, 1,024 positions, erf GELU, layer norm of the embeddings, no segments; 50,265 pieces are those of
         the released models (transformers' BartConfig). Noise and optimisation are the command that an author gives for the
         original run, that of the large model (fairseq issue 1899): 30% of the words in spans, Poisson 3.5 (the paper
         says 3), a tenth of the masks random, all sentences permuted, 512 tokens, 500,000 updates, warm-up 10,000, peak 4e-4,
         decay 0.01, clipping at 0.1, dropout and attention dropout 0.1; 256 GPUs x 4 x 3,200 tokens are 6,144 rows of 512
         an update (the paper rounds to 8,000, from memory). Betas 0.9 / 0.999 and eps 1e-8 are fairseq's defaults, blocks
         within documents ("complete_doc") too. What the base model was trained with was not published.
         Differences: fairseq's decay falls on biases and layer norms too; its insertions, when there are any, have at least
         one random piece; the paper trains the last tenth without dropout (from memory): set it to 0 in a run that
         starts from this one.
Chips:   with eight, 8 rows each at a time (accumulate=96): their logits are 0.8 GB, and as much their gradient.
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): accuracy of the decoder 0.713, SST-2 64.4.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import Denoising
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                vocab_size=50_265, layers=6, max_length=1024, position_offset=2, segments=0, norm_eps=1e-5, with_heads=(),
                compute_dtype="bfloat16", vocab_multiple=1024,
            ),
            objectives=(Denoising(span_mean=3.5, random=0.1, decoder_layers=6),),
            examples=PairSpec(length=512, pairs="none", short_fraction=0.0),
        ),
        optimizer=AdamW(learning_rate=4e-4, warmup_steps=10_000, eps=1e-8, clip_norm=0.1, bias_correction=True),
        train=TrainConfig(
            steps=500_000, batch_size=6_144, accumulate=96, eval_batch_size=64, eval_every=5_000, save_every=5_000,
            log_every=100,
        ),
    )
