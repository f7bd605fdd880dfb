# SPDX-License-Identifier: GPL-3.0-or-later
"""An ONNX graph run in torch: no package but the host's own, and on the host's accelerator.

Everything a network needs is checked when it is opened. Each value then belongs to one of three
kinds: fixed (weights, and what follows from them: computed once), shape (what follows from the
input's shape: computed on the CPU, once a shape) and data. So a run is the data operations alone,
and never waits for an accelerator in between.

Computation is float32. In convolutions TensorFloat-32 is off whatever the host has set; a host that
allows it for matrix products gets it there. The number of CPU threads is torch's, which belongs to
the host.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DetectorError
from ...header import printable
from .onnx_file import Node, OnnxFile, StoredTensor, Unread
from .torch_layers import LAYERS
from .torch_operators import OPERATORS, OPSETS, Attributes, Operator, Run, Unsupported

TABLE: Mapping[str, Operator] = {**OPERATORS, **LAYERS}

MOST_SHAPES = 16  # input shapes whose shape arithmetic is kept


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


class TorchNetwork:
    """The first output of an ONNX graph as a function of its one input. May be shared by threads.

    Args:
        model: the file.
        device: where to run.

    Raises:
        DetectorError: `detector_model_unsupported`, naming the operator or attribute that is not
            known here; as `OnnxFile.load` for damaged weights.
    """

    def __init__(self, model: OnnxFile, device: torch.device) -> None:
        device = torch.empty(0, device=device).device  # "cuda" would change with the host's choice
        self.device = device
        self._input, self._output = model.inputs[0].name, model.outputs[0].name
        self._shapes: OrderedDict[tuple[int, ...], dict[Slot, Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        try:
            _check_form(model)
            steps = _fused(list(_steps(model, _needed(model))), self._output)
            with _undisturbed(device):
                self._fixed = _fixed_values(model, steps, device)
        except Unsupported as error:
            raise DetectorError(
                "detector_model_unsupported",
                f"{printable(model.path)} needs {printable(error)}, which SafeGen does not run in "
                "torch; onnxruntime can: pip install onnxruntime",
            ) from None
        running = [step for step in steps if step.kind > Kind.FIXED]
        self._first = _with_drops(running, self._output)
        self._later = _with_drops([s for s in running if s.kind is Kind.DATA], self._output)
        self._wanted = {slot for step in self._later for slot in step.inputs}

    def run(self, x: Tensor) -> Tensor:
        """Run once.

        Args:
            x: float32, of the input's shape, on any device.

        Returns:
            The first output, on the CPU.

        Raises:
            Exception: whatever torch raises; `network.py` says it in the project's words.
        """
        shape = tuple(x.shape)
        with self._lock:
            known = self._shapes.get(shape)
            if known is not None:
                self._shapes.move_to_end(shape)
        with _undisturbed(self.device):
            values = {**self._fixed, **(known or {})}
            values[self._input, False] = x.to(self.device)
            if known is None:
                self._remember(shape, self._run_first(values))
            else:
                for step in self._later:
                    _do(step, values)
            answer = values[self._output, False].cpu()
        return answer.clone()  # outside inference mode: a tensor like any other

    def _run_first(self, values: dict[Slot, Tensor]) -> dict[Slot, Tensor]:
        """Run for an input shape not met before; gives the values that follow from the shape."""
        found: dict[Slot, Tensor] = {}
        for step in self._first:
            _do(step, values)
            if step.kind is Kind.SHAPE:
                for name in step.outputs:
                    if (name, True) in self._wanted:
                        found[name, True] = values[name, True]
                    if (name, False) in self._wanted:
                        found[name, False] = values[name, False] = values[name, True].to(
                            self.device
                        )
        return found

    def _remember(self, shape: tuple[int, ...], values: dict[Slot, Tensor]) -> None:
        with self._lock:
            self._shapes[shape] = values
            while len(self._shapes) > MOST_SHAPES:
                self._shapes.popitem(last=False)


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Inference mode, without the autocast a host may be sampling under."""
    autocast = torch.amp.autocast_mode.is_autocast_available(device.type)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, enabled=False) if autocast else contextlib.nullcontext(),
    ):
        yield


def _do(step: Step, values: dict[Slot, Tensor]) -> None:
    found = step.run(*[None if slot is None else values[slot] for slot in step.inputs])
    on_cpu = step.kind is not Kind.DATA
    if not isinstance(found, tuple):
        found = (found,)
    for name, value in zip(step.outputs, found, strict=True):
        values[name, on_cpu] = value
    for slot in step.drop:
        del values[slot]


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


def _fixed_values(
    model: OnnxFile, steps: Sequence[Step], device: torch.device
) -> dict[Slot, Tensor]:
    """Weights, and what follows from them alone, where the other steps look for them."""
    names = {slot[0] for step in steps for slot in step.inputs if slot}
    values: dict[Slot, Tensor] = {
        (name, True): model.load(weight) for name, weight in model.weights.items() if name in names
    }
    for step in steps:
        if step.kind is Kind.FIXED:
            _do(step, values)
    if device.type == "cpu":  # oneDNN is a tenth faster on this order of the same numbers
        for weight in (step.inputs[1] for step in steps if step.op == "Conv"):
            at = (weight[0], True) if weight else None
            if at in values and values[at].ndim == 4:
                values[at] = values[at].to(memory_format=torch.channels_last)
    wanted = {slot for step in steps if step.kind > Kind.FIXED for slot in step.inputs if slot}
    return {
        (name, on_cpu): values[name, True].to("cpu" if on_cpu else device)
        for name, on_cpu in wanted
        if (name, True) in values
    }


def _with_drops(steps: Sequence[Step], output: str) -> list[Step]:
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
