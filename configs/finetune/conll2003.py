"""BERT-base, cased, on CoNLL-2003, English: names of people, places, organisations and others in news.

Command: bert-jax finetune --config configs/finetune/conll2003.py --workdir runs/conll2003 --set task.init=DIR_OF_BERT (after
         tfds build conll2003 --file_format=array_record; or with the files of the shared task:
         --set 'task.data={"kind": "Columns", "path": "eng.train", "words": 0, "tags": 3, "separator": "blank"}', the same
         of task.heldout with eng.testa)
Recipe:  huggingface/transformers, examples/pytorch/token-classification/README.md, its command for run_ner_no_trainer.py:
         bert-base-cased, batch 32, learning rate 2e-5, 3 epochs, 128 tokens; no warm-up and no decay there; clip 1.0 is ours.
         PyTorch's AdamW has eps 1e-8 and corrects the bias. 14,041 sentences (Tjong Kim Sang and De Meulder 2003, table 1,
         from memory: 14,987, of which 946 stand between documents) make 1,316 steps.
Chips:   one chip or GPU.
Figure:  Devlin et al. 2019, table 7 (from memory), have F1 96.4 on dev and 92.4 on test for BERT-base, with as much of the
         document around a sentence as there is room for, which this has not. Not measured here.
"""

from bert_jax.models.config import preset
from bert_jax.tasks.base import finetuned_encoder
from bert_jax.tasks.datasets import DATASETS, Named
from bert_jax.tasks.tagging import Tagging
from bert_jax.training.experiment import Experiment, TrainConfig
from bert_jax.training.optimizer import AdamW


def get_config() -> Experiment:
    encoder = preset("bert-base-cased", compute_dtype="bfloat16")
    return Experiment(
        task=Tagging(
            encoder=finetuned_encoder(encoder, DATASETS["conll2003"].labels, ("tagger",)), init="bert-base-cased",
            data=Named("conll2003"), heldout=Named("conll2003", "dev"),
        ),
        optimizer=AdamW(learning_rate=2e-5, warmup_steps=0, weight_decay=0.0, eps=1e-8, bias_correction=True),
        train=TrainConfig(
            steps=1_316, batch_size=32, eval_every=439, save_every=439, log_every=50, eval_batches=None, eval_batch_size=64,
        ),
    )
