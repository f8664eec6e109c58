"""Writes that a run does not wait for: one at a time, in one thread, from a copy of what is to be written.

A state as of the end of an epoch is copied (`frozen`) and serialised, written, synced and renamed while the next epoch
computes. The file is the same as without a thread, byte for byte. A write that fails raises its own error in the
thread that trains, when it next waits: before the next write, when the run is interrupted, at its end.
"""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Writer:
    """Context with one thread that writes; it is left when nothing is being written any more."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
            elif self._under_way is not None and (failed := self._under_way.exception()):
                # the error that ends the run is told by whoever catches it
                log.warning("the last write failed: %s", failed)
        finally:
            self._thread.shutdown()

    def submit(self, write: Callable[[], None]) -> None:
        """Starts a write once the one before is done; raises what that one raised."""
        self.wait()
        self._under_way = self._thread.submit(write)

    def wait(self) -> None:
        """Returns when nothing is being written; raises what the write raised, once."""
        if self._under_way is not None:
            try:
                self._under_way.result()
            finally:
                self._under_way = None


def frozen(value: Any, copies: dict[int, Any] | None = None) -> Any:
    """A copy on the CPU that later steps do not move: dicts, lists and tuples of tensors and of what never changes.

    Tensors that share memory share it in the copy, so that `torch.save` writes the same bytes for both.

    Args:
        value: the state; it must stay alive during the call.
        copies: what was copied before, by identity.
    """
    copies = {} if copies is None else copies
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        memory = copies.get(storage._cdata)
        if memory is None:
            memory = storage.clone() if storage.device.type == "cpu" else storage.cpu()  # type: ignore[no-untyped-call]
            copies[storage._cdata] = memory
        new: Any = torch.empty(0, dtype=value.dtype)
        new.set_(memory, value.storage_offset(), value.shape, value.stride())
    elif isinstance(value, dict):
        # keeps its class and its attributes: a state dict carries versions in one
        new = copy.copy(value)
        new.update((name, frozen(item, copies)) for name, item in value.items())
    elif isinstance(value, list | tuple):
        new = type(value)(frozen(item, copies) for item in value)
    else:
        return value
    copies[id(value)] = new
    return new
