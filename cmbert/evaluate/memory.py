"""How much memory a piece of work takes at its peak, beyond what stood before it."""

import ctypes
import re
import resource
from pathlib import Path
from types import TracebackType

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # written to CLEAR: the peak resident size starts anew (Linux, proc(5))


class PeakMemory:
    """Context manager; afterwards `bytes` is the peak within it, less what was held at its start.

    On CUDA by torch's allocator, on the CPU by the process's resident size, which Linux alone tells.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # freed blocks that the C library holds would be filled unseen
            CLEAR.write_text(RESET_PEAK, encoding="ascii")
            self.before = resident_bytes("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        else:
            self.bytes = resident_bytes("VmHWM") - self.before


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has held: torch's on the GPU, the process's resident size on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():
        return resident_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS; Linux, which says kB, has the file


def resident_bytes(field: str) -> int:
    """Return a field of /proc/self/status: VmRSS (resident now), VmHWM (at its peak) or RssAnon (no mapped files)."""
    found = re.search(rf"{field}:\s*(\d+) kB", STATUS.read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024
