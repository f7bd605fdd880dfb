# SPDX-License-Identifier: GPL-3.0-or-later
"""ONNX operators in torch: the layers of vision networks, as `torch_operators` makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_budget import Run, Sized, bytes_of, row
from .torch_operators import Attributes, Operator, Unsupported, axes_of

Edges = Callable[[Sequence[int], Sequence[int]], tuple[list[int], list[int]]]
"""A picture's sides and a window's in; what is added before and after each side out."""


def _edges(a: Attributes, strides: Sequence[int], dilations: Sequence[int]) -> Edges:
    pads = a.take("pads", ())
    mode = a.only("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")

    def edges(sides: Sequence[int], window: Sequence[int]) -> tuple[list[int], list[int]]:
        n = len(window)
        before, after = [0] * n, [0] * n
        if mode == "NOTSET" and pads:
            before, after = list(pads[:n]), list(pads[n:])
        elif mode.startswith("SAME"):
            for i, side in enumerate(sides):
                step, spread = strides[i] if strides else 1, dilations[i] if dilations else 1
                reach = (window[i] - 1) * spread + 1
                total = max((math.ceil(side / step) - 1) * step + reach - side, 0)
                before[i] = (total + (mode == "SAME_LOWER")) // 2
                after[i] = total - before[i]
        return before, after

    return edges


def _pad(x: Tensor, window: Sequence[int], edges: Edges, value: float) -> tuple[Tensor, list[int]]:
    """The padded picture, and what torch has yet to pad out."""
    before, after = edges(x.shape[2:], window)
    # torch pads both sides alike, and for pooling by half a window at most
    if before == after and all(2 * p <= side for p, side in zip(before, window, strict=True)):
        return x, before
    ends = [p for pair in zip(before[::-1], after[::-1], strict=True) for p in pair]
    return F.pad(x, ends, value=value), [0] * len(window)


def _areas(
    x: Tensor, window: Sequence[int], edges: Edges, strides: Sequence[int]
) -> tuple[int, int]:
    """Elements of one channel of a picture: when padded, and at most those of the result."""
    padded = [sum(side) for side in zip(x.shape[2:], *edges(x.shape[2:], window), strict=True)]
    steps = strides or [1] * len(padded)
    return math.prod(padded), math.prod(
        side // step + 1 for side, step in zip(padded, steps, strict=True)
    )


def _conv(a: Attributes) -> Run:
    strides, dilations = list(a.take("strides", ())), list(a.take("dilations", ()))
    edges, groups = _edges(a, strides, dilations), a.take("group", 1)
    a.ignore("kernel_shape")  # the weight has it

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ones = [1] * (weight.ndim - 2)
        x, padding = _pad(x, weight.shape[2:], edges, 0.0)
        # What conv2d calls. Only here can one say, for this call alone, that TensorFloat-32 is not
        # precise enough: the public switches belong to the whole process.
        return torch._convolution(
            *(x, weight, bias, strides or ones, padding, dilations or ones),
            *(False, [0] * len(ones), groups),  # not transposed
            *(False, True),  # no benchmark, deterministic
            *(torch.backends.cudnn.enabled, False),  # no TensorFloat-32
        )

    def size(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
        padded, result = _areas(x, weight.shape[2:], edges, strides)
        rows = weight.shape[0]
        if x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            rows += weight[0].numel()  # then torch copies every window out
        return bytes_of([x.shape[0], x.shape[1] * padded + rows * result], x)

    return Sized(run, size)


@dataclass(frozen=True)
class _Pooling:
    window: list[int]
    strides: list[int]
    dilations: list[int]
    edges: Edges

    @classmethod
    def of(cls, a: Attributes) -> _Pooling:
        window, strides = list(a.take("kernel_shape", ())), list(a.take("strides", (1, 1)))
        dilations = list(a.take("dilations", (1, 1)))
        if len(window) != 2:
            raise Unsupported(f"a window of {len(window)} dimensions")
        a.only("ceil_mode", 0)
        return cls(window, strides, dilations, _edges(a, strides, dilations))

    def size(self, x: Tensor) -> int:
        padded, result = _areas(x, self.window, self.edges, self.strides)
        return bytes_of([*x.shape[:2], padded + 3 * result], x)  # torch notes places, in 8 bytes


def _max_pool(a: Attributes) -> Run:
    pool = _Pooling.of(a)
    a.only("storage_order", 0)

    def run(x: Tensor) -> Tensor:
        x, padding = _pad(x, pool.window, pool.edges, -math.inf)
        return F.max_pool2d(x, pool.window, pool.strides, padding, pool.dilations)

    return Sized(run, pool.size)


def _average_pool(a: Attributes) -> Run:
    pool = _Pooling.of(a)
    window, strides = pool.window, pool.strides
    count_padding = bool(a.only("count_include_pad", 0, 1))
    if pool.dilations != [1, 1]:
        raise Unsupported("attribute dilations")

    def run(x: Tensor) -> Tensor:
        padded, padding = _pad(x, window, pool.edges, 0.0)
        if padded is not x and not count_padding:
            # the mean over what is inside, as the padding does not count
            inside, _ = _pad(torch.ones_like(x[:1, :1]), window, pool.edges, 0.0)
            return F.avg_pool2d(padded, window, strides) / F.avg_pool2d(inside, window, strides)
        return F.avg_pool2d(padded, window, strides, padding, False, count_padding)

    return Sized(run, pool.size)


def _resize(a: Attributes) -> Run:
    # What every YOLO export asks for. The other modes differ between programs by half a pixel.
    for name, default, wanted in (
        ("mode", "nearest", "nearest"),
        ("coordinate_transformation_mode", "half_pixel", "asymmetric"),
        ("nearest_mode", "round_prefer_floor", "floor"),
    ):
        if (value := a.take(name, default)) != wanted:
            raise Unsupported(f"attribute {name} = {value!r}")
    a.only("antialias", 0)
    a.only("keep_aspect_ratio_policy", "stretch")
    a.ignore("cubic_coeff_a", "exclude_outside", "extrapolation_value")  # of other modes

    def factors(x: Tensor, scales: Tensor | None, sizes: Tensor | None) -> list[int]:
        found = [] if scales is None else row(scales)
        if sizes is not None and sizes.numel():
            found = [new / old for new, old in zip(row(sizes), x.shape, strict=True)]
        if len(found) != 4 or found[:2] != [1, 1] or any(f < 1 or f % 1 for f in found):
            raise Unsupported(f"scales {found[:4]}: only whole enlargements of height and width")
        return [int(f) for f in found]

    def run(
        x: Tensor,
        region: Tensor | None = None,
        scales: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        larger = [float(f) for f in factors(x, scales, sizes)[2:]]
        return F.interpolate(x, scale_factor=larger, mode="nearest")

    def size(
        x: Tensor,
        region: Tensor | None = None,
        scales: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> int:
        return bytes_of([x.numel(), *factors(x, scales, sizes)], x)

    return Sized(run, size)


def _gemm(a: Attributes) -> Run:
    alpha, beta = a.take("alpha", 1.0), a.take("beta", 1.0)
    turn_x, turn_weight = a.take("transA", 0), a.take("transB", 0)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x, weight = x.t() if turn_x else x, weight.t() if turn_weight else weight
        if bias is None:
            return alpha * (x @ weight)
        return torch.addmm(bias, x, weight, alpha=alpha, beta=beta)

    def size(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
        return 2 * bytes_of([x.shape[bool(turn_x)], weight.shape[not turn_weight]], x)

    return Sized(run, size)


def _softmax(a: Attributes) -> Run:
    if a.opset >= 13:
        axis = a.take("axis", -1)
        return lambda x: x.softmax(dim=axis)
    first = a.take("axis", 1)  # it and all that follow count as one
    return lambda x: x.flatten(first).softmax(dim=-1).reshape(x.shape)


def _batch_norm(a: Attributes) -> Run:
    epsilon = a.take("epsilon", 1e-5)
    a.only("training_mode", 0)
    a.ignore("momentum")
    return lambda x, scale, bias, mean, variance: F.batch_norm(
        x, mean, variance, scale, bias, eps=epsilon
    )


def _layer_norm(a: Attributes) -> Run:
    axis, epsilon = a.take("axis", -1), a.take("epsilon", 1e-5)
    a.only("stash_type", 1)
    return lambda x, scale, bias=None: F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _gelu(a: Attributes) -> Run:
    kind = a.only("approximate", "none", "tanh")
    return lambda x: F.gelu(x, approximate=kind)


def _leaky_relu(a: Attributes) -> Run:
    slope = a.take("alpha", 0.01)
    return lambda x: F.leaky_relu(x, slope)


def _hard_sigmoid(a: Attributes) -> Run:
    alpha, beta = a.take("alpha", 0.2), a.take("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0, 1)


def _mean(a: Attributes) -> Run:
    chosen, keep = axes_of(a), bool(a.only("keepdims", 1, 0))
    nothing_is_none = bool(a.only("noop_with_empty_axes", 0, 1))

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = chosen(axes)
        if not over and nothing_is_none:
            return x
        return x.mean(dim=over or tuple(range(x.ndim)), keepdim=keep)

    return run


def _global_mean(_: Attributes) -> Run:
    return lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


LAYERS: Mapping[str, Operator] = {
    "AveragePool": Operator(_average_pool),
    "BatchNormalization": Operator(_batch_norm),
    "Conv": Operator(_conv),
    "Gelu": Operator(_gelu),
    "Gemm": Operator(_gemm),
    "GlobalAveragePool": Operator(_global_mean),
    "HardSigmoid": Operator(_hard_sigmoid),
    "LayerNormalization": Operator(_layer_norm),
    "LeakyRelu": Operator(_leaky_relu),
    "MaxPool": Operator(_max_pool),
    "ReduceMean": Operator(_mean, host=frozenset({1})),
    "Resize": Operator(_resize, host=frozenset({1, 2, 3})),
    "Softmax": Operator(_softmax),
}
