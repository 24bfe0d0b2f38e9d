"""The model card of a fine-tuned model: README.md with the front matter that the Hugging Face hub reads."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_jax.reporting.table import Scores, markdown
from bert_jax.tasks import AnyFinetuning, Choice, Classification, MaskedWords, QuestionAnswering, Regression, Tagging
from bert_jax.tasks.datasets import Named

# The hub's name of each kind, and the class of transformers that loads it.
KINDS: dict[type, tuple[str, str]] = {
    Classification: ("text-classification", "AutoModelForSequenceClassification"),
    Regression: ("text-classification", "AutoModelForSequenceClassification"),
    QuestionAnswering: ("question-answering", "AutoModelForQuestionAnswering"),
    Tagging: ("token-classification", "AutoModelForTokenClassification"),
    Choice: ("multiple-choice", "AutoModelForMultipleChoice"),
    MaskedWords: ("fill-mask", "AutoModelForMaskedLM"),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def kind_of(task: AnyFinetuning) -> tuple[str, str]:
    """The row of ``KINDS``."""
    return KINDS[next(kind for kind in type(task).__mro__ if kind in KINDS)]


def dataset_of(source: Any) -> str:
    """What data is called where others read it: a published name, or that of the file alone."""
    return f"{source.name}, {source.split}" if isinstance(source, Named) else Path(source.path).name


def card(
    task: AnyFinetuning, scores: Scores, seed: int, *, name: str, base: str, transformers: bool, chosen: bool, best: str | None,
    counts: Mapping[str, int], texts: int, recipe: Sequence[str], command: str, versions: Mapping[str, str],
) -> str:
    """The card of the model of ``seed``.

    Args:
      name: of the model. base: the checkpoint that it was fine-tuned from; one of the hub goes into the front matter.
      transformers: whether the directory beside it is for transformers; else it is in bert_jax's own form.
      chosen: whether ``seed`` was chosen by its held-out scores. best: ``train.best``, by which parameters were chosen.
      counts: of ``training`` and ``held-out`` examples. texts: that the first of these has. recipe: what was set, a line each.
    """
    hub_kind, loader = kind_of(task)
    metrics = [{"type": row.name, "value": row.seeds[seed], "name": f"{row.name} (held out, seed {seed})"}
               for row in scores.rows if row.name != "loss" and row.best is not None]
    dataset = dataset_of(task.heldout)
    front: dict[str, Any] = {
        "library_name": "transformers" if transformers else "bert_jax",
        "pipeline_tag": hub_kind,
        "tags": ["bert_jax", "fine-tuned"],
    }
    if not Path(base).exists() and _HUB_ID.fullmatch(base):
        front["base_model"] = base
    front["model-index"] = [{"name": name, "results": [{
        "task": {"type": hub_kind}, "dataset": {"name": dataset, "type": re.sub(r"\W+", "_", dataset).strip("_").lower()},
        "metrics": metrics,
    }]}]
    limits = [
        f"It was trained on {counts['training']:,} examples of {dataset_of(task.data)} and measured on "
        f"{counts['held-out']:,} of {dataset}: of other texts, domains and languages nothing is known.",
        f"Texts of more than {max(task.lengths):,} tokens {_LONG.get(hub_kind, 'were cut')}{_unlike(task, transformers)}.",
        "Neither its fairness nor its robustness was examined. The checkpoint that it comes from has biases, which it keeps.",
    ]
    if task.encoder.labels and hub_kind != "fill-mask":
        labels = task.encoder.labels
        limits.insert(1, f"Whatever it is given, it answers with: {', '.join(labels)}." if len(labels) > 1
                      else f"It gives one value, {labels[0]}, also for texts that have none.")
    if isinstance(task, QuestionAnswering) and task.null_threshold is not None:
        limits.insert(1, "It also learnt to say that a context has no answer. The code above always gives one; `bert-jax "
                         f"predict` {'' if transformers else 'with its work directory '}says where there is none.")
    if chosen:
        limits.insert(0, f"**Of {len(scores.seeds)} seeds the best by the held-out examples was taken: on new data expect less "
                         "than its scores, about the mean.**")
    if best:
        limits.insert(0, f"**Its parameters are those of the evaluation with the best {best} on the held-out examples: on new "
                         "data expect less than these scores.**")
    use = _use(task, texts, transformers)
    spread = "" if len(scores.seeds) > 1 else " One seed says nothing of how much another would differ."
    return "\n".join([
        "---", *_yaml(front), "---", "", f"# {name}", "",
        f"{Path(base).name} fine-tuned with bert_jax for {hub_kind.replace('-', ' ')}.", "",
        "```python", use, "```", "", "## Scores on held-out examples", "",
        f"The model here is that of seed {seed}; deviation is the standard deviation over seeds (n - 1).{spread}", "",
        markdown(scores), "## Limits", "", *(f"- {limit}" for limit in limits), "", "## Training", "",
        *(f"- {line}" for line in recipe), f"- command: `{command}`",
        f"- {', '.join(f'{package} {version}' for package, version in versions.items())}", "",
        "The language, the licence and the intended use are not recorded here: add what you know.", "",
    ])


_PIPELINE = """from transformers import pipeline

answer = pipeline("{kind}", model="FOLDER")
print(answer({asked}))"""
_LOADED = """from transformers import AutoTokenizer, {loader}

tokenizer, model = AutoTokenizer.from_pretrained("FOLDER"), {loader}.from_pretrained("FOLDER")
"""
_SPAN = """context = "a context in which the answer is"
encoded = tokenizer("a question", context, return_tensors="pt")
found, inside = model(**encoded), [k for k, text in enumerate(encoded.sequence_ids()) if text == 1]
first, last = max(
    ((a, b) for a in inside for b in inside if a <= b < a + {longest}),
    key=lambda ends: found.start_logits[0, ends[0]] + found.end_logits[0, ends[1]],
)
print(context[encoded.token_to_chars(first).start : encoded.token_to_chars(last).end])"""
_CHOICE = """encoded = tokenizer(["a first text"] * 2, ["a choice", "another"], return_tensors="pt", padding=True)
print(model(**{name: rows[None] for name, rows in encoded.items()}).logits.softmax(-1))"""
_OURS = """import bert_jax

print(list(bert_jax.predict("FOLDER", [{asked}])))"""
_OUR_WORDS = """import bert_jax
from bert_jax.fill_mask import fill_mask

model = bert_jax.load("FOLDER")
mask = model.tokenizer.piece(model.tokenizer.mask_id)
print(fill_mask(model.params, model.config, model.tokenizer, f"a text with {mask}"))"""


def _use(task: AnyFinetuning, texts: int, transformers: bool) -> str:
    """Code that asks the model of ``FOLDER``, and prints what it says. Version 5 of transformers has no pipeline of answers,
    and none ever of choices. Arguments: see :func:`card`."""
    kind, loader = kind_of(task)
    if not transformers:
        asked = {"question-answering": '("a question", "a context in which the answer is")',
                 "multiple-choice": '("a first text", "a choice", "another")'}
        pair = '("a text", "another")' if texts > 1 and kind == "text-classification" else '"a text"'
        return _OUR_WORDS if kind == "fill-mask" else _OURS.format(asked=asked.get(kind, pair))
    if kind == "question-answering":
        return _LOADED.format(loader=loader) + _SPAN.format(longest=task.answer_tokens)
    if kind == "multiple-choice":
        return _LOADED.format(loader=loader) + _CHOICE
    asked = '{"text": "a text", "text_pair": "another"}' if texts > 1 and kind == "text-classification" else '"a text"'
    return _PIPELINE.format(kind=kind, asked='f"a text with {answer.tokenizer.mask_token}"' if kind == "fill-mask" else asked)


_LONG = {"question-answering": "were read in windows", "token-classification": "were read in parts"}


def _unlike(task: AnyFinetuning, transformers: bool) -> str:
    """That the code of the card treats long texts otherwise."""
    if not transformers:
        return ""
    kind = kind_of(task)[0]
    if kind == "text-classification" and task.truncate != "start":
        left = "their ends" if task.truncate == "end" else "both ends of them"
        return f", and {left} kept, as `bert-jax predict` does; the pipeline above would keep their beginnings"
    return {
        "question-answering": ", as `bert-jax predict` does; the code above takes what fits into one row",
        "token-classification": ", as `bert-jax predict` does; the pipeline above leaves out what is beyond the maximum length "
                                "unless it is given a `stride`",
        "text-classification": f"; the pipeline above needs `truncation=True, max_length={max(task.lengths)}` for that",
    }.get(kind, "")


def _yaml(value: Any, indent: int = 0) -> list[str]:
    """Lines of YAML; strings are quoted as in JSON, which YAML reads."""
    blanks = " " * indent
    lines = []
    for key, field in value.items():
        if isinstance(field, dict):
            lines += [f"{blanks}{key}:", *_yaml(field, indent + 2)]
        elif isinstance(field, list) and field and isinstance(field[0], dict):
            lines.append(f"{blanks}{key}:")
            for one in field:
                first, *rest = _yaml(one, indent + 2)
                lines += [f"{blanks}- {first.lstrip()}", *rest]
        else:
            lines.append(f"{blanks}{key}: {json.dumps(field, ensure_ascii=False)}")
    return lines
