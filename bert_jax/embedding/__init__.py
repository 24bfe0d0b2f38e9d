"""Sentence embeddings: what a sentence encoder is beside its weights (settings), and computing with it (sentence)."""
