"""The machine: torch's build, the device and the dtype it is fast with, memory, threads."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from anchortune.setup.finding import Finding

GIB = 2**30
#: Files that are open at once in a run of many shards.
_OPEN_FILES = 1024
_CGROUP = Path("/sys/fs/cgroup")
_NVIDIA = Path("/proc/driver/nvidia/version")


def torch_build() -> list[Finding]:
    """What torch was built for, against what the machine has."""
    import torch

    built = torch.version.cuda or torch.version.hip
    kind = "CUDA" if torch.version.cuda else "ROCm"
    told = f"{torch.__version__}, built for {f'{kind} {built}' if built else 'the CPU'}"
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return [Finding("torch", "ok", told)]
    if _NVIDIA.is_file() and not torch.version.cuda:
        mend = "install the build for your driver, as https://pytorch.org/get-started says"
        return [Finding("torch", "warn", f"{told}, and there is an NVIDIA driver here", mend)]
    if _NVIDIA.is_file():
        mend = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; the driver may be too old for it"
        return [Finding("torch", "warn", f"{told}, but it sees no GPU", mend)]
    if built:
        told += "; there is no GPU here, and the build for the CPU is smaller"
    return [Finding("torch", "ok", told)]


def compute() -> list[Finding]:
    """The device and dtype that ``auto`` takes here, and why; then every GPU."""
    import torch

    from anchortune.hardware import bf16_speedup, pick_device, pick_dtype

    device = pick_device()
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    if device.type == "cpu":
        times = bf16_speedup()
        why = f"bfloat16 was just measured at {times:.2g} times the speed of float32"
        return [
            Finding("compute", "ok", f"cpu in {dtype}: {why}"),
            Finding("bitsandbytes", "ok", "not looked for: lora.qlora is for CUDA alone"),
        ]
    if device.type != "cuda":
        return [Finding("compute", "ok", f"{device.type} in {dtype}")]
    has = "has" if dtype == "bfloat16" else "has no"
    found = [Finding("compute", "ok", f"cuda in {dtype}: the GPU {has} bfloat16")]
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        told = (
            f"{facts.name}, compute capability {facts.major}.{facts.minor}, "
            f"{free / GIB:.1f} of {total / GIB:.1f} GiB free{_driver()}"
        )
        name = f"gpu {number}"
        if free > total / 2:
            found.append(Finding(name, "ok", told))
        else:
            found.append(Finding(name, "warn", told, "end what else computes on it"))
    return [*found, _four_bits()]


def _driver() -> str:
    try:
        words = _NVIDIA.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    versions = [word for word in words if word.count(".") in (1, 2) and word[0].isdigit()]
    return f", driver {versions[0]}" if versions else ""


def _four_bits() -> Finding:
    from anchortune.setup.packages import installed

    here = installed("bitsandbytes")
    if here is None or importlib.util.find_spec("bitsandbytes") is None:
        told = "not installed; for lora.qlora: pip install 'anchortune[qlora]'"
        return Finding("bitsandbytes", "ok", told)
    return Finding("bitsandbytes", "ok", f"{here}: lora.qlora can be used")


def _number(place: Path) -> int | None:
    """The number in a file of the kernel's; None where there is none, or no limit."""
    try:
        return int(place.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def memory_bytes() -> tuple[int, int | None]:
    """(memory that is available, what a container may have in all or None), in bytes."""
    import torch

    from anchortune.hardware import free_bytes

    free = free_bytes(torch.device("cpu"))
    limit = _number(_CGROUP / "memory.max")
    used = _number(_CGROUP / "memory.current")
    if limit is None:  # the older layout, which calls no limit a number beyond all memory
        limit = _number(_CGROUP / "memory/memory.limit_in_bytes")
        used = _number(_CGROUP / "memory/memory.usage_in_bytes")
    if limit is None or limit > 1 << 60:
        return free, None
    return min(free, max(0, limit - (used or 0))), limit


def memory() -> list[Finding]:
    """The memory that is available."""
    free, limit = memory_bytes()
    told = f"{free / GIB:.1f} GiB available"
    if limit is not None:
        told += f", {limit / GIB:.1f} GiB allowed to this container in all"
    if free < 2 * GIB:
        return [Finding("memory", "warn", told, "end what else runs; a small model takes about 2")]
    return [Finding("memory", "ok", told)]


def cores() -> float:
    """Cores that this process may use: those it is bound to, and a container's share of them."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        count = float(os.cpu_count() or 1)
    try:
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        share = int(quota) / int(period)
    except (OSError, ValueError):
        micro = _number(_CGROUP / "cpu/cpu.cfs_quota_us")
        share = micro / 100_000 if micro and micro > 0 else count
    return min(count, share)


def threads() -> list[Finding]:
    """Threads of a computation against the cores that may be used."""
    import torch

    may, takes = cores(), torch.get_num_threads()
    told = f"{takes} for {may:g} cores"
    if takes > max(1.0, may) * 1.01:
        mend = f"export OMP_NUM_THREADS={max(1, int(may))}, or they wait for each other"
        return [Finding("threads", "warn", told, mend)]
    if takes == 1 and may >= 2 and not torch.cuda.is_available():
        named = "OMP_NUM_THREADS is set; " if "OMP_NUM_THREADS" in os.environ else ""
        mend = f"export OMP_NUM_THREADS={int(may)} to use all"
        return [Finding("threads", "warn", f"{named}{told}", mend)]
    return [Finding("threads", "ok", told)]


def open_files() -> list[Finding]:
    """How many files a process may hold open."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _OPEN_FILES:
        mend = f"ulimit -n {_OPEN_FILES}, for models of many shards"
        return [Finding("open files", "warn", f"{soft} at once", mend)]
    return []
