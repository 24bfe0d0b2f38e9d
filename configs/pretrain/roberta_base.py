"""RoBERTa-base (12 layers, width 768): full sentences, fresh masks, no sentence task.

Command: bert-jax pretrain --config configs/pretrain/roberta_base.py --data DIR --workdir runs/roberta_base
Recipe:  facebookresearch/fairseq, examples/roberta/config/pretraining/base.yaml and README.pretraining.md: Adam 5e-4, betas
         0.9 / 0.98, eps 1e-6, decay 0.01, warm-up 10,000, 125,000 updates, 2,048 rows of 512 tokens, dropout 0.1, break mode
         "complete" (whole sentences, documents following each other), no clipping (here at a norm of 1,000). fairseq's decay
         falls on biases and layer norms too, ours does not. The paper (Liu et al. 2019, table 9, from memory) has batch 8,000,
         Adam 6e-4, warm-up 24,000 and 500,000 updates. Masks: 15%, 80/10/10, drawn anew every time. fairseq's layer norms have
         eps 1e-5 and its encoder no segments. The original's tokenizer is byte-level BPE with 50,265 pieces; here it is the
         data's, of at most 30,522, or --set task.encoder.vocab_size=N.
Chips:   32 to 64 chips or GPUs.
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): held-out MLM accuracy 0.277, SST-2 73.7.
"""

from bert_jax.data.streams import Streams
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base", segments=0, norm_eps=1e-5, with_heads=("mlm",), compute_dtype="bfloat16", vocab_multiple=1024,
            ),
            objectives=(MaskedLM(),),
            examples=Streams(length=512, unit="sentence"),
        ),
        optimizer=AdamW(learning_rate=5e-4, warmup_steps=10_000, beta2=0.98, clip_norm=1000.0, bias_correction=True),
        train=TrainConfig(steps=125_000, batch_size=2048, eval_every=2_500, save_every=2_500, log_every=100),
    )
