"""Encoders and their heads. The rest of the package uses :mod:`bert_jax.models.api` and :class:`EncoderConfig`."""
