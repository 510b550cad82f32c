"""How much memory there is, and how much a part of the work takes at its peak, beyond what stood before it."""

import ctypes
import os
import re
import resource
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cmbert.errors import ConfigError

if TYPE_CHECKING:
    import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMINFO, OWN_CGROUP, CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
RESET_PEAK = "5"  # written to CLEAR: the peak resident size starts anew (Linux, proc(5))


class PeakMemory:
    """Context manager; afterwards `bytes` is the peak within it, less what was held at its start.

    On CUDA by torch's allocator, on the CPU by the process's resident size, which Linux alone tells.
    """

    def __init__(self, device: "torch.device"):
        self.device = device
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        import torch  # here: a plan asks only what the host has free, and answers at once

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
        import torch

        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        else:
            self.bytes = resident_bytes("VmHWM") - self.before


def peak_memory_bytes(device: "torch.device") -> int:
    """Return the most memory this process has held: torch's on the GPU, the process's resident size on the CPU."""
    import torch

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


def free_memory_bytes(device: "torch.device") -> int:
    """Return the memory that new tensors can have: the GPU's, or what `free_host_bytes` says."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()


def no_room(what: str, needed: float, free: float, device: "torch.device", remedy: str) -> ConfigError:
    """Return the error of work that needs more memory than there is."""
    place = "GPU" if device.type == "cuda" else "CPU"
    figures = f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free on the {place}"
    return ConfigError(f"{what}: needs about {figures}; {remedy}")


def require_memory(what: str, needed: float, device: "torch.device", remedy: str) -> None:
    """Raise ConfigError when `needed` bytes are more than are free."""
    free = free_memory_bytes(device)
    if needed > free:
        raise no_room(what, needed, free, device, remedy)


def free_host_bytes() -> int:
    """Return the memory that a new process can have: Linux's MemAvailable, less if a control group allows less."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMINFO.is_file():
        found = re.search(r"^MemAvailable:\s*(\d+) kB", MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
        available = int(found[1]) * 1024 if found else available
    return min([available, *_cgroup_free_bytes()])


def _cgroup_free_bytes() -> list[int]:
    """Return what the control groups that this process is in, and those above them, still allow it (v2 and v1)."""
    found = []
    for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines() if OWN_CGROUP.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limit, usage = CGROUPS, "memory.max", "memory.current"
        if controllers:
            root, limit, usage = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root) and (folder / limit).is_file() and (folder / usage).is_file():
                allowed = (folder / limit).read_text(encoding="ascii").strip()
                used = int((folder / usage).read_text(encoding="ascii"))
                # Pages of files count as used, and go when memory is asked for.
                files = re.search(r"^inactive_file (\d+)", (folder / "memory.stat").read_text(encoding="ascii"), re.M)
                used -= int(files[1]) if files else 0
                found += [] if allowed == "max" else [int(allowed) - used]
    return found
