"""Scripts that measure; `python benchmarks/NAME.py --help` explains each."""
