# SPDX-License-Identifier: GPL-3.0-or-later
"""ONNX operators in torch: arithmetic and shapes (`torch_layers` has the layers), opset 11 to 22.

https://onnx.ai/onnx/operators/ says what each must do. A maker looks at a node's attributes once,
when a network is opened, and gives the function that runs. An attribute it did not ask for, or a
value it cannot honour, raises `Unsupported` there and then. Inputs listed in `host` steer the
operation (axes, shapes): they arrive on the CPU, so that no run waits for an accelerator. What can
make more elements than it is given is `Sized`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .onnx_tensor import DTYPES
from .torch_budget import Run, Sized, broadcast, bytes_of, joint_shape, product, row

OPSETS = range(11, 23)


class Unsupported(ValueError):
    """This node asks for something the table does not do."""


@dataclass
class Attributes:
    """The attributes of one node, ticked off as they are read."""

    values: Mapping[str, Any]
    opset: int
    outputs: int
    read: set[str] = field(default_factory=set)

    def take(self, name: str, default: Any) -> Any:
        """An attribute, of the default's type; a default of None admits any."""
        self.read.add(name)
        value = self.values.get(name, default)
        if default is not None and type(value) is not type(default):
            raise Unsupported(f"attribute {name} of another type than it should have")
        return value

    def only(self, name: str, *allowed: Any) -> Any:
        """An attribute of which some values are understood; the first is the default."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise Unsupported(f"attribute {name} = {value!r}")
        return value

    def ignore(self, *names: str) -> None:
        """Attributes that do not change the result."""
        self.read.update(names)

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        if unknown := sorted(set(self.values) - self.read):
            raise Unsupported(f"attribute {unknown[0]}")


@dataclass(frozen=True)
class Operator:
    """How to make the function of a node, and which of its inputs steer instead of being data."""

    make: Callable[[Attributes], Run]
    host: frozenset[int] = frozenset()
    many: bool = False  # whether it has several outputs


def axes_of(a: Attributes) -> Callable[[Tensor | None], list[int]]:
    """Axes from an input, as newer opsets have it, or from the attribute of older ones."""
    old = list(a.take("axes", ()))
    return lambda axes: old if axes is None else row(axes)


def _shape(a: Attributes) -> Run:
    start, end = a.take("start", 0), a.take("end", None)
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64, device="cpu")


def _reshape(a: Attributes) -> Run:
    zero_is_zero = a.only("allowzero", 0, 1)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sides = row(shape)
        if not zero_is_zero:
            sides = [x.shape[i] if side == 0 else side for i, side in enumerate(sides)]
        return x.reshape(sides)

    return run


def _flatten(a: Attributes) -> Run:
    axis = a.take("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(a: Attributes) -> Run:
    order = a.take("perm", None)
    return lambda x: x.permute(order or tuple(reversed(range(x.ndim))))


def _unsqueeze(a: Attributes) -> Run:
    chosen = axes_of(a)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        new = chosen(axes)
        for axis in sorted(axis % (x.ndim + len(new)) for axis in new):
            x = x.unsqueeze(axis)
        return x

    return run


def _squeeze(a: Attributes) -> Run:
    chosen = axes_of(a)
    return lambda x, axes=None: x.squeeze(tuple(chosen(axes))) if chosen(axes) else x.squeeze()


def _expand(_: Attributes) -> Run:
    return Sized(
        lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(row(shape)))),
        lambda x, shape: bytes_of(joint_shape(x.shape, row(shape)), x),
    )


def _concat(a: Attributes) -> Run:
    axis = a.take("axis", 0)
    return Sized(
        lambda *parts: torch.cat(parts, dim=axis),
        lambda *parts: bytes_of([sum(part.numel() for part in parts)], *parts),
    )


def _split(a: Attributes) -> Run:
    axis, old = a.take("axis", 0), list(a.take("split", ()))
    parts = a.only("num_outputs", a.outputs)

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        given = old if sizes is None else row(sizes)
        return x.split(given or math.ceil(x.shape[axis] / parts), dim=axis)

    return run


def _slice(_: Attributes) -> Run:
    def run(
        x: Tensor,
        starts: Tensor,
        ends: Tensor,
        axes: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        which = range(len(starts)) if axes is None else row(axes)
        stride = [1] * len(starts) if steps is None else row(steps)
        if min(stride, default=1) < 1:
            raise Unsupported("a backward slice")
        index = [slice(None)] * x.ndim
        for axis, *bounds in zip(which, row(starts), row(ends), stride, strict=True):
            index[axis] = slice(*bounds)
        return x[tuple(index)]

    return run


def _gather(a: Attributes) -> Run:
    axis = a.take("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        # Checked here on the CPU: on CUDA a place outside would break the whole process's device.
        side = x.shape[axis]
        if index.numel() and not -side <= int(index.min()) <= int(index.max()) < side:
            raise IndexError(f"a place outside 0..{side - 1}")
        if index.ndim == 0:
            return x.select(axis, int(index))
        found = x.index_select(axis, (index.flatten() % side).to(x.device))
        return found.unflatten(axis, index.shape)

    def size(x: Tensor, index: Tensor) -> int:
        return bytes_of([x.numel() // max(1, x.shape[axis]) * index.numel()], x)

    return Sized(run, size)


def _constant_of_shape(a: Attributes) -> Run:
    value = a.take("value", None)
    one = torch.zeros(1, dtype=torch.float32, device="cpu") if value is None else value
    return Sized(
        lambda shape: one.reshape(()).repeat(row(shape)),
        lambda shape: bytes_of(row(shape), one),
    )


def _range(_: Attributes) -> Run:
    def count(start: Tensor, limit: Tensor, delta: Tensor) -> int:
        return max(0, math.ceil((limit.item() - start.item()) / delta.item()))

    def run(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        steps = torch.arange(count(start, limit, delta), dtype=start.dtype, device="cpu")
        return start + delta * steps

    return Sized(run, lambda *ends: 3 * bytes_of([count(*ends)], *ends))  # each step of run


def _constant(a: Attributes) -> Run:
    value = a.take("value", None)
    for name, dtype in (
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
    ):
        if (number := a.take(name, None)) is not None:
            value = torch.tensor(number, dtype=dtype, device="cpu")
    if value is None:
        raise Unsupported("a constant that is neither a tensor nor a number")
    return lambda: value


def _cast(a: Attributes) -> Run:
    dtype = DTYPES.get(a.take("to", 0))
    if dtype is None:
        raise Unsupported(f"a cast to element type {a.take('to', 0)}")
    a.ignore("saturate", "round_mode")  # of 8-bit floats
    return Sized(lambda x: x.to(dtype), lambda x: x.numel() * dtype.itemsize)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


_PLAIN: Mapping[str, Run] = {  # operators without attributes
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Clip": _clip,
    "Div": _divide,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "Less": torch.lt,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Pow": lambda x, power: torch.pow(x, power).to(x.dtype),
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Where": torch.where,
}

OPERATORS: Mapping[str, Operator] = {
    **{name: Operator(lambda _, run=run: Sized(run, broadcast)) for name, run in _PLAIN.items()},
    "Cast": Operator(_cast),
    "Concat": Operator(_concat),
    "Constant": Operator(_constant),
    "ConstantOfShape": Operator(_constant_of_shape, host=frozenset({0})),
    "Expand": Operator(_expand, host=frozenset({1})),
    "Flatten": Operator(_flatten),
    "Gather": Operator(_gather, host=frozenset({1})),
    "MatMul": Operator(lambda _: Sized(torch.matmul, product)),
    "Range": Operator(_range, host=frozenset({0, 1, 2})),
    "Reshape": Operator(_reshape, host=frozenset({1})),
    "Shape": Operator(_shape),
    "Slice": Operator(_slice, host=frozenset({1, 2, 3, 4})),
    "Split": Operator(_split, host=frozenset({1}), many=True),
    "Squeeze": Operator(_squeeze, host=frozenset({1})),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_unsqueeze, host=frozenset({1})),
}
