"""A matrix of scores, for patterns that are worked out by hand."""

import torch


def bits(*rows: str) -> list[list[bool]]:
    return [[letter == "1" for letter in row] for row in rows]


SCORES = torch.tensor(
    [
        [8, 1, 7, 2, 6, 3, 5, 4],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [3, 3, 3, 3, 0, 0, 9, 9],
        [2, 9, 4, 1, 8, 8, 1, 1],
    ]
)
