"""Fine-tuning over seeds and what it leaves: scores with their deviation, predictions, pictures, a page, a card, a model."""

from bert_jax.finetuning.fitting import check_assignments, fit
from bert_jax.finetuning.folders import RESULT, finished_seeds
from bert_jax.finetuning.report import CARD, PAGE
from bert_jax.finetuning.seeds import Export, Finetuned, finetune, primary_score
from bert_jax.model import EXPORTED

__all__ = ["CARD", "EXPORTED", "PAGE", "RESULT", "Export", "Finetuned", "check_assignments", "finetune", "finished_seeds",
           "fit", "primary_score"]
