"""What ``pretrain`` and ``finetune`` take on the command line to be one of several processes."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the options to a verb."""
    sub.add_argument("--distributed", action="store_true",
                     help="this is one of several processes, as Cloud TPU, GKE, SLURM or Open MPI describe them; start all")
    sub.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, where nothing describes the processes")
    sub.add_argument("--processes", type=int, metavar="N", help="how many, with --coordinator")
    sub.add_argument("--process", type=int, metavar="I", help="which one this is, from 0, with --coordinator")


@contextmanager
def joined(arguments: argparse.Namespace) -> Iterator[Any]:
    """The :class:`bert_jax.parallel.cluster.Cluster` that the options describe, for the length of a ``with`` block."""
    from bert_jax.parallel.cluster import alone, connect

    place = (arguments.coordinator, arguments.processes, arguments.process)
    distributed = arguments.distributed or place != (None, None, None)
    with connect(*place) if distributed else alone() as cluster:
        yield cluster
