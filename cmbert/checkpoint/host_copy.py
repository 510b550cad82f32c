"""The copy of a checkpoint in host memory: one block for the whole run, for a GPU pinned, filled as training goes on.

Weights and optimizer state change only in the optimizer's step. Up to then a stream of its own copies them beside the
forward and backward passes; `hold` lets the optimizer's stream, not the host, wait for what is not copied yet.
"""

from collections.abc import Iterator
from typing import Any

import torch

ALIGNMENT = 64  # bytes; more than any dtype needs


class HostCopy:
    """Host memory that is used again for every checkpoint: page-locked memory takes seconds to get."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.block = torch.empty(0, dtype=torch.uint8)
        self.done: Any = None

    def take(self, tables: list[Any]) -> list[Any]:
        """Return `tables` with copies of all tensors, one of each, in host memory: good until the next call.

        Of one value that is repeated, as in place of Muon's second moment, one is copied, and saved.
        On a GPU the copies are there after `wait`, and the originals must not change before `hold`.
        """
        found = {_key(tensor): tensor for tensor in _tensors(tables)}
        sizes = [-(-_kept(tensor).nbytes // ALIGNMENT) * ALIGNMENT for tensor in found.values()]
        if sum(sizes) > len(self.block):
            self.block = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self.stream is not None)
        copies, place = {}, 0
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):  # None: no stream
            for (key, tensor), size in zip(found.items(), sizes, strict=True):
                copies[key] = self._copy(_kept(tensor), place).expand(tensor.shape)
                place += size
            if self.stream is not None:
                self.done = self.stream.record_event()
        return _replace(tables, copies)

    def _copy(self, tensor: torch.Tensor, place: int) -> torch.Tensor:
        if not tensor.numel():
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        # A storage of its own: torch.save writes the whole storage that a tensor lies in.
        memory = self.block.numpy()[place : place + tensor.nbytes]
        copy = torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)
        copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if tensor.is_cuda:
            assert self.stream is not None
            tensor.record_stream(self.stream)  # DeepSpeed hands over temporary tensors, too
        return copy

    def hold(self) -> None:
        """Let what is launched from here on wait, on the device, until everything is copied."""
        if self.done is not None:
            torch.cuda.current_stream().wait_event(self.done)

    def wait(self) -> None:
        """Wait until everything is copied. Any thread may call this."""
        if self.done is not None:
            self.done.synchronize()


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """Return the one value that a tensor repeats, (1,), or else the tensor."""
    is_repeated = tensor.numel() > 1 and not any(tensor.stride())
    return tensor.as_strided((1,), (1,)) if is_repeated else tensor


def _key(tensor: torch.Tensor) -> tuple:
    place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return *place, tensor.shape, tensor.stride(), tensor.dtype


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif type(value) in (list, tuple):
        for entry in value:
            yield from _tensors(entry)


def _replace(value: Any, copies: dict[tuple, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return copies[_key(value)]
    if isinstance(value, dict):
        return type(value)((name, _replace(entry, copies)) for name, entry in value.items())
    if type(value) in (list, tuple):
        return type(value)(_replace(entry, copies) for entry in value)
    return value
