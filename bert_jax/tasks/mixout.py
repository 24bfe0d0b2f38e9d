"""Mixout: in each update some weights are what they were before fine-tuning (Lee et al. 2020)."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jaxtyping import Array, Key

from bert_jax.errors import BertJaxError
from bert_jax.task import Params

DRAW = 3  # what the step's key is folded with; the key itself is for dropout


@dataclasses.dataclass(frozen=True)
class Mixout:
    """In training a map reads (w0 + M * (w - w0) / (1 - p)), where M is 0 with probability ``p``: the weights w with which
    training began, w0, take the place of trained ones, and the mean stays w (Lee et al. 2020; equally ((1 - M) * w0 + M * w
    - p * w0) / (1 - p), as bloodwass/mixout has it).

    A draw is for one input of a map and all outputs together, as in their code: all weights that leave a neuron.
    Every layer, and every micro-batch, has its own. All maps of the encoder and its heads are mixed, as in their example for
    transformers; their experiments leave the first map of the feed-forward block out, since BERT has no dropout before it (no
    significant difference, says their pull request 13). Tables, biases, layer norms and LoRA's factors are not mixed, there
    neither. A head that the checkpoint lacks has w0 = 0, which makes this dropout of its inputs; layers that
    ``task.reinitialise`` begins anew, and the pooler with them, have what they begin with, as in
    asappresearch/revisit-bert-finetuning (run_glue.py). Where the encoder is not trained (LoRA, ``optimizer.freeze_encoder``)
    it is refused.

    The gradient is that of the formula, M / (1 - p) times that of the map. Theirs lacks the factor 1 / (1 - p), which Adam
    mostly cancels and ``optimizer.clip_norm`` does not. They replace dropout by it: that is ``task.encoder.dropout`` of 0.

    Attributes:
      p: their examples have 0.9; 0.7 and 0.8 are usual too.
    """

    p: float = 0.9

    def __post_init__(self):
        if not 0 <= self.p < 1:
            raise BertJaxError(f"Mixout.p is {self.p}: from 0 to below 1")

    def anchor(self, params: Params, new: Collection[str]) -> Params:
        """w0 for ``params``, with which training begins; ``new``: heads that the checkpoint lacks."""
        return {part: jax.tree.map(lambda w: w * 0 if part in new else w.copy(), tree)  # noqa: B023 (used at once)
                for part, tree in mixed_part(params).items()}

    def mixed(self, params: Params, anchor: Params, axes: Any, key: Key[Array, ""]) -> Params:
        """``params`` as they enter the model in training.

        Args:
          anchor: w0, as :meth:`anchor` made it. axes: logical axes of ``params``, which say what are inputs and layers.
        """
        if not self.p:
            return params
        anchors, structure = jax.tree.flatten(anchor)
        ours, names = (structure.flatten_up_to(mixed_part(tree)) for tree in (params, axes))
        keys = jax.random.split(jax.random.fold_in(key, DRAW), len(anchors))
        mixed = [w0 + kept(k, w.shape, name, 1 - self.p) * (w - w0) / (1 - self.p)
                 for w, w0, name, k in zip(ours, anchors, names, keys, strict=True)]
        return _merged(params, jax.tree.unflatten(structure, mixed))


def mixed_part(tree: Params) -> Params:
    """The maps in a tree of parameters, or of anything with their names: all that is mixed."""
    found = {name: part if name == "kernel" else mixed_part(part)
             for name, part in tree.items() if name == "kernel" or isinstance(part, Mapping)}
    return {name: part for name, part in found.items() if name == "kernel" or part}


def kept(key: Key[Array, ""], shape: tuple[int, ...], axes: tuple[str | None, ...], probability: float) -> Array:
    """M for a map [layers, inputs, outputs], layers only where they are stacked: bool, its axes of outputs 1 long."""
    first = 1 if axes[0] == "layers" else 0
    inputs = 2 if axes[first] == "heads" else 1  # the map after attention reads heads and their widths
    drawn = first + inputs
    return jax.random.bernoulli(key, probability, (*shape[:drawn], *(1,) * (len(shape) - drawn)))


def _merged(tree: Params, replaced: Params) -> Params:
    """``tree`` with the leaves that ``replaced`` has in the place of its own."""
    return tree | {name: _merged(tree[name], part) if isinstance(part, Mapping) else part for name, part in replaced.items()}
