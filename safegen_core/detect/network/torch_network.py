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
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ...errors import DetectorError
from ...header import printable
from .onnx_file import OnnxFile
from .torch_budget import MOST_BYTES, Budget, TooLarge
from .torch_operators import Unsupported
from .torch_plan import Kind, Slot, Step, plan, with_drops

MOST_SHAPES = 16  # input shapes whose shape arithmetic is kept


class TorchNetwork:
    """The first output of an ONNX graph as a function of its one input. May be shared by threads.

    Args:
        model: the file.
        device: where to run.

    Raises:
        DetectorError: `detector_model_unsupported`, naming the operator or attribute that is not
            known here or asks for too much memory; as `OnnxFile.load` for damaged weights.
    """

    def __init__(self, model: OnnxFile, device: torch.device) -> None:
        device = torch.empty(0, device=device).device  # "cuda" would change with the host's choice
        self.device = device
        self._input, self._output = model.inputs[0].name, model.outputs[0].name
        self._shapes: OrderedDict[tuple[int, ...], dict[Slot, Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        try:
            steps = plan(model)
            with _undisturbed(device):
                self._fixed = _fixed_values(model, steps, device)
        except TooLarge as error:
            raise DetectorError(
                "detector_model_unsupported",
                f"{printable(model.path)} asks for more memory than a detector has use for, in "
                f"{printable(error)}. Get the file again, from its source.",
            ) from None
        except Unsupported as error:
            raise DetectorError(
                "detector_model_unsupported",
                f"{printable(model.path)} needs {printable(error)}, which SafeGen does not run in "
                "torch; onnxruntime can: pip install onnxruntime",
            ) from None
        running = [step for step in steps if step.kind > Kind.FIXED]
        self._first = with_drops(running, self._output)
        self._later = with_drops([s for s in running if s.kind is Kind.DATA], self._output)
        self._wanted = {slot for step in self._later for slot in step.inputs}

    def run(self, x: Tensor) -> Tensor:
        """Run once.

        Args:
            x: float32, of the input's shape, on any device.

        Returns:
            The first output, on the CPU.

        Raises:
            Exception: whatever torch raises; `network/__init__.py` puts it into words.
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
        budgets = {
            Kind.DATA: Budget(MOST_BYTES * math.prod(values[self._input, False].shape[:1])),
            Kind.SHAPE: Budget(MOST_BYTES // MOST_SHAPES),  # all that are remembered share one
        }
        for step in self._first:
            _do_within(budgets[step.kind], step, values)
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


def _do_within(budget: Budget, step: Step, values: dict[Slot, Tensor]) -> None:
    """Do a step whose sizes nobody has seen yet."""
    try:
        budget.expect(step.run, _given(step, values))
        _do(step, values)
        on_cpu = step.kind is not Kind.DATA
        for slot in ((name, on_cpu) for name in step.outputs):
            if slot in values:
                budget.take(slot, values[slot])
    except TooLarge as error:
        raise TooLarge(f"operator {step.op}: {error}") from None
    for slot in step.drop:
        budget.give_back(slot)


def _given(step: Step, values: Mapping[Slot, Tensor]) -> list[Tensor | None]:
    return [None if slot is None else values[slot] for slot in step.inputs]


def _do(step: Step, values: dict[Slot, Tensor]) -> None:
    found = step.run(*_given(step, values))
    on_cpu = step.kind is not Kind.DATA
    if not isinstance(found, tuple):
        found = (found,)
    for name, value in zip(step.outputs, found, strict=True):
        values[name, on_cpu] = value
    for slot in step.drop:
        del values[slot]


def _fixed_values(
    model: OnnxFile, steps: Sequence[Step], device: torch.device
) -> dict[Slot, Tensor]:
    """Weights, and what follows from them alone, where the other steps look for them."""
    names = {slot[0] for step in steps for slot in step.inputs if slot}
    values: dict[Slot, Tensor] = {
        (name, True): model.load(weight) for name, weight in model.weights.items() if name in names
    }
    # Weights may be cast, turned and cut here; that makes a few times what the file holds.
    budget = Budget(MOST_BYTES + 4 * model.path.stat().st_size)
    for step in steps:
        if step.kind is Kind.FIXED:
            _do_within(budget, step, values)
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
