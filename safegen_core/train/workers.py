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

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Workers:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number on this machine, which is its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Workers:
        """Meet the processes that a launcher started; alone if none did."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes, state.local_process_index)

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
            dist.barrier()
