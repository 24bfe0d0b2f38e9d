"""What PyTorch and transformers compute from the real weights: the peer of benchmarks/checkpoints.py, which asks both."""

import json
from collections.abc import Callable
from pathlib import Path

import checkpoints_data as data
import numpy as np
import torch
import transformers

from bert_jax.errors import BertJaxError

Report = Callable[[float], object]  # takes the share that is done


@torch.inference_mode()
def embed(folder: Path, texts: list[str], progress: Report, batch_size: int = 64) -> np.ndarray:
    """Embeddings [texts, D] of a sentence-transformers folder with mean pooling, cut at its maximum length."""
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    if [name for name, value in pooling.items() if value is True] != ["pooling_mode_mean_tokens"]:
        raise BertJaxError(f"{folder}: pools in another way than by the mean, which is all that this script does")
    length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    vectors = []
    for i in range(0, len(texts), batch_size):
        batch = tokenizer(texts[i : i + batch_size], padding=True, truncation=True, max_length=length, return_tensors="pt")
        mask = batch["attention_mask"][..., None].float()
        hidden = model(**batch).last_hidden_state
        vectors.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        progress(len(vectors) * batch_size / len(texts))
    return np.concatenate(vectors)


@torch.inference_mode()
def masked_logits(folder: Path, reactions: data.MaskedReactions, progress: Report, batch_size: int = 32) -> np.ndarray:
    """Logits [M, V] at the masked places of rxnfp's BertForPreTraining, row by row."""
    model = transformers.BertForPreTraining.from_pretrained(folder).eval()
    logits = []
    for i in range(0, len(reactions.labels), batch_size):
        input_ids, attention_mask, labels = (torch.from_numpy(a[i : i + batch_size]).long() for a in reactions)
        found = model(input_ids=input_ids, attention_mask=attention_mask).prediction_logits
        logits.append(found[labels >= 0].numpy())
        progress(len(logits) * batch_size / len(reactions.labels))
    return np.concatenate(logits)


@torch.inference_mode()
def attention(folder: Path, ids: list[int]) -> np.ndarray:
    """The attention [L, L] that rxnmapper reads, of one reaction."""
    model = transformers.AlbertModel.from_pretrained(folder, attn_implementation="eager").eval()
    layers = model(torch.tensor([ids]), output_attentions=True).attentions
    return layers[data.MAPPER_LAYER][0, data.MAPPER_HEAD].numpy()
