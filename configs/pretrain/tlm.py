"""XLM with translations (12 layers, width 1024): masked language modelling on text of each language and on translated pairs.

Command: bert-jax prepare --parallel en=en.txt de=de.txt ... --tokenizer TOKENIZER --out DIR
         bert-jax pretrain --config configs/pretrain/tlm.py --data DIR --workdir runs/tlm
Recipe:  facebookresearch/XLM README, "Pretrain a language model (with MLM and TLM)", for the 15 languages of XNLI: width 1024,
         12 layers, 8 heads, dropout 0.1, gelu, streams of 256 tokens, 32 rows on each GPU (how many, it does not say; 8
         here), Adam 1e-4, betas 0.9 / 0.98, no decay; text and translations in turns (--mlm_steps). train.py and optim.py: 15%
         predicted, 80/10/10, clipping at 5, warm-up 4,000, eps 1e-8. XLM's rate then falls with the inverse square root of the
         step and training ends when the perplexity no longer improves; ours falls on a line and ends after 500,000 updates.
         Its output layer has no transform before the vocabulary; here it has BERT's, as exports need (without: --set
         task.encoder.mlm_transform=false). The released model has 95,000 pieces. The segment table is XLM's table of
         languages, of 15 rows: with more languages --set task.encoder.segments=N. Without --lg_sampling_factor, as there,
         train.py draws languages evenly (shuf_order in utils.py): language_exponent 0. Its pairs all have English on one side;
         here all pairs of languages come.
         The text of the first turn is that of the parallel store. With more text in single languages, pre-train on that first
         and set task.init, as the README advises.
Chips:   8 chips or GPUs, or more.
Figure:  not measured at this size. In small (2 layers, D 128, relative positions, four languages, 1,000 updates of 32 x 64;
         docs/results/languages_cpu.md): held-out accuracy on pairs 22.0 ± 2.9, of MLM on text alone 12.2 ± 0.3; on single
         texts 21.7 and 20.7.
"""

from bert_jax.data.streams import Streams
from bert_jax.data.translations import Translations
from bert_jax.models.config import preset
from bert_jax.objectives import MaskedLM
from bert_jax.objectives.pretraining import Pretraining, Turn
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    return Experiment(
        task=Pretraining(
            encoder=preset(
                "bert-base", vocab_size=95_000, embedding_width=1024, hidden_width=1024, heads=8, ffn_width=4096, segments=15,
                with_heads=("mlm",), compute_dtype="bfloat16", vocab_multiple=1024,
            ),
            objectives=(MaskedLM(),),
            examples=Streams(length=256, unit="token", language_segments=True, language_exponent=0.0),
            turns=(Turn("tlm", (MaskedLM(),), Translations(length=256)),),
        ),
        optimizer=AdamW(
            learning_rate=1e-4, warmup_steps=4_000, beta2=0.98, eps=1e-8, weight_decay=0.0, clip_norm=5.0, bias_correction=True,
        ),
        train=TrainConfig(steps=500_000, batch_size=256, eval_every=5_000, save_every=5_000, log_every=100),
    )
