"""SMART: answers that change little between close inputs, and from one update to the next (Jiang et al. 2020)."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from bert_jax.errors import BertJaxError
from bert_jax.task import Losses, Params, Ratio
from bert_jax.tasks.owners import Owners

DRAW = 4  # what the step's key is folded with; the key itself is for dropout
SMALLEST = 1e-30  # of a largest value that is divided by: gradients are as small as the noise

Logits = Callable[[Params, Float[Array, "B *rest L E"]], Float[Array, "... C"]]


@dataclasses.dataclass(frozen=True)
class Smart:
    """Two terms beside the loss of the task, both means over what the task's loss is a mean over (Jiang et al. 2020).

    ``smoothness_loss``: how far the model's answer moves when the word embeddings do, as badly as they can within a radius:
    they begin with normal noise, and gradient ascent follows. ``proximity_loss`` (Bregman proximal point): how far it is from
    the answer of a moving average of the parameters, without gradient. The distance of two distributions is the symmetrised
    divergence KL(p, q) + KL(q, p), that of two values (regression) their squared difference. Tagging and answer spans compare
    every labelled token, or both ends. All passes of an update have the same dropout: what is compared differs in embeddings,
    or in parameters, alone.

    ``ascent`` = ``projected`` is the paper's, as issues 214 and 224 of namisan/mt-dnn have it: the gradient of an example is
    divided by its largest value, and each coordinate of the perturbation then cut to the ``radius``. With a radius of 1e-5 the
    perturbation is far smaller than embeddings are, and so is the term. ``normalised`` is what the authors' code does instead
    (SmartPerturbation in mt_dnn/perturbation.py; they take it for equally good, issue 224): the gradient as it is, then the
    perturbation of each token scaled until its largest value is the ``radius``, there 1. Their code is further without the
    proximal term, perturbs the sum of all embeddings, climbs one of the two divergences, takes no gradient through the target
    of either, and draws other dropout for each pass.

    An update costs at most 2 + ``steps`` plain ones, and with ``proximity`` a forward pass more. The defaults are known as the
    paper's, whose text was not at hand; those of the ascent are also those of the class in their code, but for its radius.

    Attributes:
      smoothness, proximity: what the terms are multiplied by, the paper's lambda (1, 3 or 5) and mu; 0: without the term.
      radius: epsilon. noise: sigma, deviation of the noise. step_size: eta. steps: ascents.
      ascent: see above.
      average: the moving average keeps this share of itself in an update, the paper's beta. early_average: in the first
        ``early_updates``; None: a tenth of all updates of the run, as in the paper.
    """

    smoothness: float = 1.0
    proximity: float = 1.0
    radius: float = 1e-5
    noise: float = 1e-5
    step_size: float = 1e-3
    steps: int = 1
    ascent: Literal["projected", "normalised"] = "projected"
    average: float = 0.999
    early_average: float = 0.99
    early_updates: int | None = None

    def __post_init__(self):
        for field in ("smoothness", "proximity"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise BertJaxError(f"Smart.{field} is {getattr(self, field)}: it must be 0 or more")
        for field in ("radius", "noise", "step_size"):
            if not 0 < getattr(self, field) < float("inf"):
                raise BertJaxError(f"Smart.{field} is {getattr(self, field)}: it must be above 0")
        for field in ("average", "early_average"):
            if not 0 <= getattr(self, field) < 1:
                raise BertJaxError(f"Smart.{field} is {getattr(self, field)}: from 0 to below 1")
        if self.steps < 1 or (self.early_updates or 0) < 0:
            raise BertJaxError(f"Smart has {self.steps} steps, {self.early_updates} early_updates: at least 1, and 0")
        if not self.smoothness and not self.proximity:
            raise BertJaxError("Smart.smoothness and Smart.proximity are 0: leave it out of task.tricks, or set one above")

    def follow(self, average: Params, params: Params, step: Array, steps: int | None) -> Params:
        """The moving average after update ``step`` (from 0) of ``steps`` has led to ``params``.

        Raises:
          BertJaxError: ``early_updates`` is a tenth of ``steps``, which nobody says.
        """
        if self.early_updates is None and steps is None:
            raise BertJaxError("Smart.early_updates is a tenth of the run's updates, and this update is of no run: set it")
        early = steps // 10 if self.early_updates is None else self.early_updates
        share = jnp.where(step < early, self.early_average, self.average)
        return jax.tree.map(lambda old, new: share * old + (1 - share) * new, average, params)

    def add_to(
        self, losses: Losses, clean: Float[Array, "... C"], weights: Float[Array, "..."], logits: Logits, params: Params,
        average: Params | None, start: Float[Array, "B *rest L E"], whose: Owners, key: Key[Array, ""],
    ) -> Losses:
        """``losses`` with the terms; metrics of the same names are without their factors.

        Args:
          clean: logits behind ``losses``, with the weight of each distribution. logits: the same of the model with these
            parameters, word embeddings moved by this. average: the moving one, with ``proximity``. start: how far they are
            moved already. whose: the examples that they belong to.
        """
        total, added = weights.sum(), {}
        if self.smoothness:
            noise = self.found(logits, params, clean, weights, start, whose, key)
            added["smoothness_loss"] = self.smoothness, (distance(clean, logits(params, start + noise)) * weights).sum()
        if self.proximity:
            there = jax.lax.stop_gradient(logits(*jax.lax.stop_gradient((average, start))))
            added["proximity_loss"] = self.proximity, (distance(clean, there) * weights).sum()
        return losses._replace(
            terms=losses.terms | {name: Ratio(factor * sum, total) for name, (factor, sum) in added.items()},
            metrics=losses.metrics | {name: Ratio(sum, total) for name, (_, sum) in added.items()},
        )

    def found(
        self, logits: Logits, params: Params, clean: Float[Array, "... C"], weights: Float[Array, "..."],
        start: Float[Array, "B *rest L E"], whose: Owners, key: Key[Array, ""],
    ) -> Float[Array, "B *rest L E"]:
        """The perturbation that ascent finds; no gradient passes through it."""
        params, clean, start = jax.lax.stop_gradient((params, clean, start))

        def moved(noise: Array) -> Array:
            return (distance(clean, logits(params, start + noise)) * weights).sum()

        noise = self.begin(key, start.shape) * whose.mask[..., None]
        for _ in range(self.steps):
            noise = self.ascended(noise, jax.grad(moved)(noise) * whose.mask[..., None], whose)
        return jax.lax.stop_gradient(noise)

    def begin(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
        return self.noise * jax.random.normal(jax.random.fold_in(key, DRAW), shape, jnp.float32)

    def ascended(
        self, noise: Float[Array, "B *rest L E"], gradient: Float[Array, "B *rest L E"], whose: Owners
    ) -> Float[Array, "B *rest L E"]:
        """The next perturbation, by a gradient that is 0 where a token is not real."""
        if self.ascent == "normalised":
            noise += self.step_size * gradient
            return self.radius * noise / jnp.maximum(jnp.abs(noise).max(axis=-1, keepdims=True), SMALLEST)
        largest = whose.largest(jnp.abs(gradient).max(axis=-1))[..., None]
        return jnp.clip(noise + self.step_size * gradient / jnp.maximum(largest, SMALLEST), -self.radius, self.radius)


def distance(one: Float[Array, "... C"], other: Float[Array, "... C"]) -> Float[Array, "..."]:
    """KL(p, q) + KL(q, p) of two distributions in nats, from their logits; of single values (C = 1) the squared difference.

    As sum((p - q) * (log p - log q)), products of small numbers: the difference of p log p and p log q would be lost in
    rounding where p and q are as close as they are here."""
    if one.shape[-1] == 1:
        return jnp.square(one - other)[..., 0]
    one, other = jax.nn.log_softmax(one), jax.nn.log_softmax(other)
    return ((jnp.exp(one) - jnp.exp(other)) * (one - other)).sum(axis=-1)
