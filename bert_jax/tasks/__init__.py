"""What a pre-trained encoder is fine-tuned for, one file for each kind of task; ``TASKS`` is the list to extend."""

from bert_jax.tasks.base import Finetuning, FinetuningTask
from bert_jax.tasks.classification import Classification, ClassificationTask
from bert_jax.tasks.regression import Regression, RegressionTask

TASKS: dict[type[Finetuning], type[FinetuningTask]] = {Classification: ClassificationTask, Regression: RegressionTask}
AnyFinetuning = Classification | Regression
