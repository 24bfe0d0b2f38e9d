"""What a pre-trained encoder is fine-tuned for, one file for each kind of task; ``TASKS`` is the list to extend."""

from bert_jax.tasks.classification import Classification
from bert_jax.tasks.regression import Regression

TASKS = (Classification, Regression)
AnyFinetuning = Classification | Regression
