"""XLNet-base: permutation language modelling with relative positions, 512 tokens.

Command: bert-jax pretrain --config configs/pretrain/xlnet_base.py --data DIR --workdir runs/xlnet_base
         DIR: prepared with a cased SentencePiece of 32,000 pieces, which bert-jax tokenizer --kind sentencepiece --cased
         --vocab-size 32000 learns, or with a folder that has XLNet's tokenizer.json.
         The same objective on BERT's encoder (two streams, absolute positions, as MPNet begins):
         --set task.encoder.positions=absolute --set task.encoder.mlm_transform=true
Recipe:  zihangdai/xlnet. Size: its README, XLNet-Base has 12 layers, width 768, 12 heads; feed-forward layers four times as
         wide, as in its XLNet-Large (1024, 4096). Objective: --mask_alpha=6 --mask_beta=1 --num_predict=85, targets in
         spans (data_utils.py, _sample_mask), 512 tokens, two segments of which half do not follow each other, without a loss
         for that. Activation: gelu in modeling.py, the tanh form. Optimiser: that of XLNet-Large, since nothing is said of
         Base: Yang et al. 2019, 500,000 updates of 8,192, Adam with linear decay (section 3.1), peak 4e-4, warm-up 40,000,
         decay 0.01, eps 1e-6, dropout 0.1 (appendix; both in others' excerpts of the paper). train.py of the code has
         other defaults (clip 1.0, taken here), and the README's command 2,048 rows an update.
         Left out: segment memory (reuse_len 256, mem_len 384), orders of 256 tokens (perm_size), rows read backwards (bi_data),
         dropout of the waves of distances, inside feed-forward layers and of the final states. [CLS] begins a row and has the
         segment of A, there it ends it and has a segment of its own.
Chips:   a slice of 64 or more; train.accumulate for fewer. Not planned here.
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, no dropout, 2,000 updates of 32 x 64;
         benchmarks/results/objectives_cpu.json): accuracy of the permuted pieces 0.162, SST-2 67.5.
"""

from bert_jax.data.pairs import PairSpec
from bert_jax.models.config import EncoderConfig
from bert_jax.objectives import PermutationLM
from bert_jax.objectives.pretraining import Pretraining
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=EncoderConfig(
                vocab_size=32000, positions="relative", mlm_transform=False, activation="gelu_new", with_heads=("mlm",),
                compute_dtype="bfloat16", vocab_multiple=1024,
            ),
            objectives=(PermutationLM(targets="spans"),),
            examples=PairSpec(length=512, pairs="nsp", short_fraction=0.0),
        ),
        optimizer=AdamW(learning_rate=4e-4, warmup_steps=40_000),
        train=TrainConfig(
            steps=500_000, batch_size=8192, eval_batch_size=1024, eval_every=10_000, save_every=10_000, log_every=100
        ),
    )
