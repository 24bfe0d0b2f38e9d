"""What a pre-trained encoder is fine-tuned for, one file for each kind of task; ``TASKS`` and ``AnyFinetuning`` are the lists
to extend, and the tables of :mod:`bert_jax.predicting` and :mod:`bert_jax.reporting` say how a kind is asked, and shown."""

from bert_jax.model import Model
from bert_jax.tasks.base import Finetuning, FinetuningTask
from bert_jax.tasks.choice import Choice, ChoiceTask
from bert_jax.tasks.classification import Classification, ClassificationTask
from bert_jax.tasks.masked_words import MaskedWords, MaskedWordsTask
from bert_jax.tasks.question_answering import QuestionAnswering, QuestionAnsweringTask
from bert_jax.tasks.regression import Regression, RegressionTask
from bert_jax.tasks.tagging import Tagging, TaggingTask

TASKS: dict[type[Finetuning], type[FinetuningTask]] = {
    Classification: ClassificationTask, Regression: RegressionTask, QuestionAnswering: QuestionAnsweringTask,
    Tagging: TaggingTask, Choice: ChoiceTask, MaskedWords: MaskedWordsTask,
}
AnyFinetuning = Classification | Regression | QuestionAnswering | Tagging | Choice | MaskedWords


def finetuning_task(config: AnyFinetuning, model: Model | None = None) -> FinetuningTask:
    """The task of a configuration; ``model``: what ``config.init`` names, where it is loaded already."""
    return TASKS[type(config)](config, model)
