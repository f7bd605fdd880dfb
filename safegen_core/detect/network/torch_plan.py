# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do for an ONNX graph in torch, and in which order: settled when a network is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial

import torch.nn.functional as F

from ...header import printable
from .onnx_file import Node, OnnxFile, StoredTensor, Unread
from .torch_budget import Run
from .torch_layers import LAYERS
from .torch_operators import OPERATORS, OPSETS, Attributes, Operator, Unsupported

TABLE: Mapping[str, Operator] = {**OPERATORS, **LAYERS}


class Kind(IntEnum):
    """What a value depends on; an operation's result has the highest kind of its inputs."""

    FIXED = 0
    SHAPE = 1
    DATA = 2


Slot = tuple[str, bool]
"""A value's name, and whether the copy on the CPU is meant instead of that on the device."""


@dataclass(frozen=True)
class Step:
    """One operation. `drop` are values that nobody needs after it."""

    op: str
    run: Run
    inputs: tuple[Slot | None, ...]
    outputs: tuple[str, ...]
    kind: Kind
    drop: tuple[Slot, ...] = ()


def plan(model: OnnxFile) -> list[Step]:
    """The steps behind a graph's first output, in order.

    Raises:
        Unsupported: naming what stands in the way.
        DetectorError: as `OnnxFile.load`.
    """
    _check_form(model)
    return _fused(list(_steps(model, _needed(model))), model.outputs[0].name)


def with_drops(steps: Sequence[Step], output: str) -> list[Step]:
    """Let every step forget the data that no later one reads."""
    data = {(name, False) for step in steps if step.kind is Kind.DATA for name in step.outputs}
    read = {(output, False)}
    result = []
    for step in reversed(steps):
        here = {slot for slot in step.inputs if slot in data}
        unread = {(name, False) for name in step.outputs} & data  # outputs that nobody reads at all
        result.append(replace(step, drop=tuple((here | unread) - read)))
        read |= here
    return result[::-1]


def _check_form(model: OnnxFile) -> None:
    opset = model.opsets.get("", 0)
    if opset not in OPSETS:
        raise Unsupported(f"opset {opset} (of {OPSETS[0]} to {OPSETS[-1]})")
    if len(model.inputs) != 1:
        raise Unsupported(f"{len(model.inputs)} inputs")


def _needed(model: OnnxFile) -> list[Node]:
    """The nodes behind the first output, in order."""
    wanted, nodes = {model.outputs[0].name}, []
    for node in reversed(model.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            nodes.append(node)
    return nodes[::-1]


def _steps(model: OnnxFile, nodes: Iterable[Node]) -> Iterable[Step]:
    kinds = {name: Kind.FIXED for name in model.weights}
    kinds[model.inputs[0].name] = Kind.DATA
    for node in nodes:
        where = f"operator {node.op}" + (f" ({node.name})" if node.name else "")
        known = TABLE.get(node.op)
        if known is None or node.domain:
            raise Unsupported(f"{node.domain} {where}".strip())
        outputs = node.outputs if known.many else node.outputs[:1]
        if any(node.outputs[len(outputs) :]):
            raise Unsupported(f"{where} with {len(node.outputs)} outputs")
        for name in filter(None, node.inputs):
            if name not in kinds:
                raise Unsupported(f"{where} with input {name} from nowhere")
        steering = [name for place, name in enumerate(node.inputs) if name and place in known.host]
        if any(kinds[name] is Kind.DATA for name in steering):
            raise Unsupported(f"{where} steered by what the picture shows")
        kind = max((kinds[name] for name in node.inputs if name), default=Kind.FIXED)
        if node.op == "Shape":
            kind = min(kind, Kind.SHAPE)
        on_cpu = kind is not Kind.DATA
        slots = tuple(
            (name, kinds[name] < Kind.DATA and (on_cpu or place in known.host)) if name else None
            for place, name in enumerate(node.inputs)
        )
        yield Step(node.op, _function(model, node, known, where), slots, outputs, kind)
        for name in outputs:
            if name in kinds:
                raise Unsupported(f"{where} with output {name} that already exists")
            kinds[name] = kind
    if kinds.get(model.outputs[0].name) is not Kind.DATA:
        raise Unsupported("an output that does not depend on the picture")


def _function(model: OnnxFile, node: Node, known: Operator, where: str) -> Run:
    values = {}
    for name, value in node.attributes.items():
        if isinstance(value, Unread):
            raise Unsupported(f"{where} with attribute {name} of a kind not read here")
        values[name] = model.load(value) if isinstance(value, StoredTensor) else value
    attributes = Attributes(values, model.opsets[""], len(node.outputs))
    try:
        run = known.make(attributes)
        attributes.finish()
    except Unsupported as error:
        raise Unsupported(f"{where} with {printable(error)}") from None
    return run


def _fused(steps: Sequence[Step], output: str) -> list[Step]:
    """Make one operation of `x * Sigmoid(x)`, in place where `x` is a convolution's own result."""
    uses = Counter(slot for step in steps for slot in step.inputs)
    uses[output, False] += 1
    maker = {
        (name, False): step for step in steps for name in step.outputs if step.kind is Kind.DATA
    }
    gone: set[Slot] = set()
    fused = []
    for step in steps:
        for x, gate in _factors(step):
            sigmoid, before = maker.get(gate), maker.get(x)
            if sigmoid and sigmoid.op == "Sigmoid" and sigmoid.inputs == (x,) and uses[gate] == 1:
                alone = before is not None and before.op == "Conv" and uses[x] == 2
                step = replace(step, op="SiLU", run=partial(F.silu, inplace=alone), inputs=(x,))
                gone.add(gate)
                break
        fused.append(step)
    return [step for step in fused if (step.outputs[0], False) not in gone]


def _factors(step: Step) -> list[tuple[Slot, Slot]]:
    """Both ways to read a product."""
    if step.op != "Mul" or len(step.inputs) != 2:
        return []
    left, right = step.inputs
    return [(left, right), (right, left)] if left and right else []
