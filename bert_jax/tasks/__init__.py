"""What a pre-trained encoder is fine-tuned for, one file for each kind of task; ``TASKS`` is the list to extend."""

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
