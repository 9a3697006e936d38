"""Where a run computes: its device, and the processes that share one run (`torchrun`, `accelerate launch`).

Every process walks through the same stages with the same model; the first one alone writes, and tells the others what
it decided. A process that fails ends the run in all of them.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from secateur.errors import FailedElsewhere, RunInterrupted, SecateurError

Value = TypeVar("Value")

# A dead process is noticed by its closed connection, at once; waiting is for slow evaluations of the others.
_PATIENCE = timedelta(days=7)
_MEETING = timedelta(minutes=10)  # for all processes of a launch to come


@dataclass(frozen=True)
class Processes:
    """One process and how many there are.

    Args:
        rank: this process, 0 for the first.
        size: how many share the run.

    >>> Processes().share([1]), Processes().gather("a"), Processes().any(False), list(Processes().own([5, 6]))
    ([1], ['a'], False, [5, 6])
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on only when all processes have come here."""
        if self.size > 1:
            self.gather(None)

    def share(self, value: Value) -> Value:
        """Give every process the first one's value, which must be picklable."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.is_first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """Give every process the values of all, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Tell every process whether one of them says yes."""
        if self.size == 1:
            return flag
        box = torch.tensor([int(flag)])  # asked after every step: a tensor, for objects take a millisecond
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return bool(box.item())

    def average_(self, tensor: Tensor) -> None:
        """Replace a tensor, on any device, by its mean over all processes; in each of them the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor.div_(self.size)

    def own(self, items: Sequence[Value]) -> Sequence[Value]:
        """Choose this process's share of items that all processes hold: every `size`-th."""
        return items[self.rank :: self.size]

    def first(self, function: Callable[[], Value]) -> Value:
        """Call a function in the first process alone, and give its value, which must be picklable, to all.

        Args:
            function: writes, or decides by what is on disk.

        Returns:
            What it returned.

        Raises:
            FailedElsewhere: in the other processes, when the function raised in the first.
        """
        if self.size == 1:
            return function()
        if not self.is_first:
            value, error = self.share((None, None))
            if error is not None:
                raise error
            return value  # type: ignore[return-value]  # the first process's value
        try:
            value = function()
        except BaseException as error:
            stopped = isinstance(error, RunInterrupted | KeyboardInterrupt)
            with suppress(RuntimeError):  # the others may be what was lost; the first error is the one to tell
                self.share((None, RunInterrupted(str(error)) if stopped else FailedElsewhere(str(error))))
            raise
        self.share((value, None))
        return value


def pick_device(device: str) -> str:
    """Choose a device: the named one, or for "auto" the best there is.

    Args:
        device: auto, cpu, cuda or mps.

    Returns:
        cpu, cuda or mps.

    Raises:
        SecateurError: the named device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(device, False):
        names = ", ".join(name for name in there if there[name])
        raise SecateurError(f"device {device!r} is not there. Devices of this machine: {names}.")
    return device


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Meet the other processes of a launch; without a launcher there is one process, and nothing is set up.

    Args:
        device: cpu, cuda or mps; see `pick_device`.

    Yields:
        This process among them.

    Raises:
        SecateurError: the processes cannot meet, or one of them ended while the others were at work.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 and "LOCAL_RANK" not in os.environ:  # a launcher's only process meets itself: accelerate would anyhow
        yield Processes()
        return
    ours = not dist.is_initialized()
    if ours:
        # What is gathered are Python objects, on the CPU; gradients go over nccl where there are GPUs.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        try:
            if device == "cuda":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            store, rank, size = next(rendezvous("env://", timeout=_MEETING))
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        except (dist.DistError, RuntimeError, ValueError) as error:
            raise SecateurError(f"the {size} processes cannot meet: {_first_line(error)}") from error
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise _lost(error) from error
    finally:
        if ours and dist.is_initialized():
            _leave()


def _leave() -> None:
    """End the connections to the other processes, and the threads that serve them.

    They end with the last that refers to the group of processes: the wrapper of a model in training does, in cycles,
    and what an error in flight remembers of its calls. Threads that live until the interpreter ends may keep it from
    ending: one that still holds a tensor of Python's then waits for a lock that nobody is given any more.
    """
    error = sys.exception()
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    dist.destroy_process_group()


def is_lost_process(error: BaseException) -> bool:
    """Tell whether an error says that another process of the run is gone; gloo has no class of its own for it."""
    told = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in told)


def _lost(error: BaseException) -> SecateurError:
    return SecateurError(
        f"another process of this run ended, so this one cannot go on ({_first_line(error)}). What is saved is whole: "
        "start the same command again with --resume."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
