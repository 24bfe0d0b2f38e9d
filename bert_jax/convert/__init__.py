"""Weights and configurations from and to other libraries: one table per family, read in both directions."""
