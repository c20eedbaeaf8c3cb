"""How much memory of the host is left."""

from __future__ import annotations

from pathlib import Path

GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_host_bytes() -> int | None:
    """Bytes that this process may still take: the least of what the machine, its control groups and its limit leave.

    Returns:
        That; None where the system says nothing of it.
    """
    known = [found for found in (_machine(), _groups(), _limit()) if found is not None]
    return max(0, min(known)) if known else None


def _machine() -> int | None:
    """What the kernel estimates that can be taken without swapping."""
    return _field(Path("/proc/meminfo"), "MemAvailable:")


def _groups() -> int | None:
    """What the control groups of this process leave, version 2; pages of files that can be dropped count as free."""
    try:
        own = next(line for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    folder = GROUPS / own.removeprefix("0::").lstrip("/")
    left = []
    for place in (folder, *folder.parents):
        if not place.is_relative_to(GROUPS):
            break
        try:
            most, used = int((place / "memory.max").read_text()), int((place / "memory.current").read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        left.append(most - used + (_field(place / "memory.stat", "inactive_file", 1) or 0))
    return min(left, default=None)


def _limit() -> int | None:
    """What the limit of the address space leaves."""
    try:
        import resource
    except ImportError:  # no Unix
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _field(Path("/proc/self/status"), "VmSize:")
    return None if limit == resource.RLIM_INFINITY or used is None else limit - used


def _field(path: Path, name: str, unit: int = 1024) -> int | None:
    """The number behind a name in a file of the kernel, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith(name)), None)
    return None if found is None else int(found[1]) * unit
