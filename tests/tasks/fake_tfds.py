"""Records of every published data set as tensorflow-datasets gives them, few and small, in place of what it has on disk."""

from types import SimpleNamespace

import numpy as np
import pytest

from bert_jax.tasks import datasets
from bert_jax.tasks.datasets import DATASETS, find

WORDS = "the a cat dog bird sat ran sang on in under mat road tree".split()


class Source(list):
    """What ``open_tfds`` gives: records, and what is known of them."""

    def __init__(self, records, dataset, folder):
        super().__init__(records)
        self.dataset_info = SimpleNamespace(
            features={dataset.label: SimpleNamespace(names=dataset.labels or None)}, data_dir=str(folder)
        )


def use(monkeypatch: pytest.MonkeyPatch, folder, count: int = 16) -> list[str]:
    """From here on :class:`Named` reads ``count`` records of each data set, always the same; which were asked for."""
    asked = []

    def opened(spec: str):
        asked.append(spec)
        name = spec.partition(":")[0]
        return Source(records(name, count), find(with_part(name))[0], folder), 0

    monkeypatch.setattr(datasets, "open_tfds", opened)
    return asked


def with_part(name: str) -> str:
    """The name in ``DATASETS`` of a builder of TFDS."""
    return f"{name}/de" if name in DATASETS and DATASETS[name].parts else name


def records(name: str, count: int) -> list[dict]:
    dataset, _ = find(with_part(name))
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        words = [str(word) for word in rng.choice(WORDS, 5)]
        text = " ".join(words).encode()
        match dataset.kind:
            case "QuestionAnswering":
                none = name == "squad/v2.0" and number % 4 == 0
                made.append({
                    "id": str(number).encode(), "context": text, "question": b"the cat", "is_impossible": none,
                    "answers": {"text": [] if none else [words[1].encode()],
                                "answer_start": [] if none else [len(words[0]) + 1]},
                })
            case "Tagging":
                tags = [k % len(dataset.labels) for k in range(number, number + 5)]
                if "I-PER" in dataset.labels:  # I- only behind its own
                    tags = [dataset.labels.index(tag) for tag in ("O", "B-PER", "I-PER", "O", "B-LOC")]
                made.append({dataset.texts[0]: [word.encode() for word in words], dataset.label: tags})
            case "Choice":
                options = [[word.encode() for word in words[:4]]] * 2
                made.append({"article": text, "questions": [b"the cat?", b"on _ ."], "options": options,
                             "answers": [b"A", b"D"]})
            case _:
                texts = dict.fromkeys(dataset.texts, {"de": text, "fr": b"the dog"} if name == "xnli" else text)
                made.append(texts | {dataset.label: number % len(dataset.labels) if dataset.labels else number / 4})
    return made
