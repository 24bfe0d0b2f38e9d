"""The planner: the real training step, compiled ahead of time for chips that need not be there, and what follows from it."""
