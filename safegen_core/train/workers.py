# SPDX-License-Identifier: GPL-3.0-or-later
"""Several processes, one run: each takes a share of every step's pairs, gradients are summed.

`accelerate launch` (or torchrun) starts the processes and tells them apart. Pair number i is the
same pair with the same noise wherever it lands (`draws`), so the number of processes changes
nothing but the rounding of sums. Only the first process writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Workers:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Workers:
        """Meet the processes that a launcher started; alone if none did.

        Args:
            device: where this process computes.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        # The first may look at pictures, or test the patch, for long while the others wait.
        state = PartialState(cpu=device.type != "cuda", timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, pairs: range) -> range:
        """This process's part of a step's pairs; sizes differ by at most one."""
        ends = [pairs.start + len(pairs) * k // self.count for k in range(self.count + 1)]
        return range(ends[self.rank], ends[self.rank + 1])

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace every tensor by its sum over the processes, in one message."""
        tensors = list(tensors)
        if self.count == 1 or not tensors:
            return
        whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(whole)
        at = 0
        for tensor in tensors:
            tensor.copy_(whole[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def agree(self, value: bool, device: torch.device) -> bool:
        """Whether `value` holds in any process."""
        if self.count == 1:
            return value
        flag = torch.tensor(float(value), device=device)
        dist.all_reduce(flag)
        return bool(flag > 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            on = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
            dist.barrier(device_ids=on)
