"""Which pieces of text share a row."""

import numpy as np

ROWS = (64, 80, 96, 112, 128, 160, 192)  # tokens of rows that texts share; one of these for many texts
FEW, ROWS_OF_FEW = 1000, (64, 128)  # of fewer texts: each call would choose another one, and compile it
MOST = 16  # texts in such a row, at most
SAVED = 0.03  # of the cost: what another choice must save


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


def cheapest_row(
    sizes: np.ndarray, alone: np.ndarray, rows: int, rows_alone: int, width: int, before: int | None = None
) -> int | None:
    """Tokens of the rows in which texts that need no gradient cost least, up to ``MOST`` of them in one; None where a row for
    each costs less. What was chosen ``before`` stays unless something else saves ``SAVED``.

    Args:
      sizes, alone: int64 [n], tokens of each text, at least 1, and positions of a row that it has to itself, padded. Texts that
        are longer than a shared row have one to themselves.
      rows, rows_alone: of a batch of rows that texts share, and of one in which they do not; every batch has all of them.
      width: D. With F = 4 D a layer multiplies 12 D^2 numbers a position, attention 2 L D more, and its softmax takes as long.
    """
    def cost(length: np.ndarray | int) -> np.ndarray | float:
        return length * (1 + length / (3 * width))

    def cost_alone(which: np.ndarray) -> float:  # of a batch that of its longest
        return rows_alone * float(cost(np.sort(alone[which])[::-1][::rows_alone]).sum())

    costs = {None: cost_alone(np.ones(len(sizes), bool))}
    for length in ROWS if len(sizes) >= FEW else ROWS_OF_FEW:
        short = sizes <= length
        if short.any():
            batches = -(-(int(best_fit(sizes[short], length, MOST).max()) + 1) // rows)
            costs[length] = cost_alone(~short) + batches * rows * cost(length)
    return min(costs, key=lambda length: costs[length] * (1 - SAVED if length == before else 1))
