"""Which pieces of text share a row."""

import numpy as np


def best_fit(sizes: np.ndarray, length: int, most: int) -> np.ndarray:
    """Which row each of the R examples goes to, int64 [R]: rows of ``length`` tokens and at most ``most`` examples.

    Best fit decreasing: at most 11/9 of the fewest rows and four (Johnson et al. 1974), where ``most`` binds nowhere.

    Args:
      sizes: int64 [R], tokens of each example, from 1 to ``length``.
    """
    rows_with: list[list[int]] = [[] for _ in range(length + 1)]  # open rows by the room that is left
    rooms = 0  # bit r: there is an open row with room r
    held: list[int] = []
    row_of = np.empty(len(sizes), np.int64)
    for example in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[example])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = rows_with[room].pop()
            if not rows_with[room]:
                rooms ^= 1 << room
        else:
            row, room = len(held), length
            held.append(0)
        row_of[example] = row
        held[row] += 1
        if held[row] < most:
            rows_with[room - size].append(row)
            rooms |= 1 << room - size
    return row_of
