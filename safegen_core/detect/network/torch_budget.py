# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory an ONNX graph may take in torch.

A file of 200 bytes can ask for a tensor of 4 GB: by expanding, enlarging or padding one, or by
doubling it thirty times. So every operation is counted before it runs, and its results after. This
is done once for the constants and once for each new shape of the input: sizes follow from nothing
else, so later runs of that shape take as much and are not counted again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Run = Callable[..., Any]
"""Tensors in, None for an input left out; one tensor out, or a tuple of them."""

MOST_BYTES = 1 << 29
"""Alive at once for each picture of a batch, weights aside. So counted, NudeNet's 320n takes 16 MiB
at 640 pixels; 640m, with three times the channels, some 60; attention of 16 heads over 1025 places,
as the largest taggers have it, 200."""

MOST_NUMBERS = 1 << 16
"""In a list of shapes, axes or parts; these become Python's own numbers."""


class TooLarge(ValueError):
    """The graph asks for more memory than a detector has use for."""


@dataclass(frozen=True)
class Sized:
    """A function that can make more than it is given, and tells beforehand how much.

    Attributes:
        size: the same inputs to bytes, those made on the way included.
    """

    run: Run
    size: Callable[..., int]

    def __call__(self, *inputs: Tensor | None) -> Any:
        """Run it."""
        return self.run(*inputs)


class Budget:
    """What may still be allocated.

    Args:
        most: bytes alive at once.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._taken: dict[Any, int] = {}

    def expect(self, run: Run, inputs: Iterable[Tensor | None]) -> None:
        """Refuse an operation whose results will not fit.

        Raises:
            TooLarge: before anything was allocated.
        """
        if isinstance(run, Sized):
            size = run.size(*inputs)
        else:  # what is not `Sized` gives no more elements than it takes
            size = max((bytes_of([x.numel()], x) for x in inputs if x is not None), default=0)
        self._check(size)

    def take(self, key: object, value: Tensor) -> None:
        """Count a result; `key` is for giving it back.

        Raises:
            TooLarge: it did not fit.
        """
        # A view keeps all of what it looks at alive; one that repeats counts as if it did not.
        size = max(value.nbytes, value.untyped_storage().nbytes())
        self._check(size)
        self._taken[key] = size
        self._left -= size

    def give_back(self, key: object) -> None:
        """A result is gone; nothing happens for one that was never counted."""
        self._left += self._taken.pop(key, 0)

    def _check(self, size: int) -> None:
        if size > self._left:
            left, most = self._left >> 20, self._most >> 20
            raise TooLarge(f"{size >> 20} MiB where {left} of {most} are left")


def row(numbers: Tensor) -> list[Any]:
    """A tensor of shapes, axes or parts as Python's own numbers.

    Raises:
        TooLarge: no such list is that long.
    """
    if numbers.numel() > MOST_NUMBERS:
        raise TooLarge(f"{numbers.numel()} numbers where a few belong")
    return numbers.tolist()


def bytes_of(sides: Iterable[int], *like: Tensor | None) -> int:
    """Bytes of a tensor of these sides, and of the widest of these types or of float32."""
    return math.prod(sides) * max(4, *(x.itemsize for x in like if x is not None))


def joint_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that these are broadcast to; torch itself refuses what does not fit together."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    # 0 wins over 1, as it does in torch
    return tuple(0 if 0 in sides else max(sides) for sides in zip(*padded, strict=True))


def broadcast(*inputs: Tensor | None) -> int:
    """Size of what is computed element by element."""
    given = [x for x in inputs if x is not None]
    return bytes_of(joint_shape(*(x.shape for x in given)), *given)


def product(x: Tensor, y: Tensor) -> int:
    """Size of a matrix product, with the copies torch makes where it repeats matrices."""
    n, k = (1, *x.shape)[-2:]
    m = y.shape[-1] if y.ndim > 1 else 1
    batch = math.prod(joint_shape(x.shape[:-2], y.shape[:-2]))
    copies = x.numel() + y.numel() if min(x.ndim, y.ndim) <= 2 else batch * k * (n + m)
    return bytes_of([batch * n * m + copies], x, y)
