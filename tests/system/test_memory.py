"""How much memory is left, by the files of the kernel and the limit of the process."""

import subprocess
import sys

import pytest

from lbgap.system import memory

MIB = 2**20


def test_no_more_than_the_machine_has():
    with open("/proc/meminfo") as lines:
        total = int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) * 1024
    assert 0 < memory.free_host_bytes() <= total


def test_control_groups_leave_what_the_narrowest_has(tmp_path, monkeypatch):
    group = tmp_path / "outer" / "inner"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    (group.parent / "memory.max").write_text(f"{100 * MIB}\n")
    (group.parent / "memory.current").write_text(f"{70 * MIB}\n")
    (group.parent / "memory.stat").write_text(f"anon 1\ninactive_file {10 * MIB}\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("12:cpu:/x\n0::/outer/inner\n")
    assert memory._groups() == 40 * MIB
    assert memory.free_host_bytes() <= 40 * MIB
    (tmp_path / "cgroup").write_text("12:cpu:/x\n")
    assert memory._groups() is None


def test_a_limit_of_the_address_space_counts():
    pytest.importorskip("resource")
    code = (
        "import resource; from lbgap.system import memory\n"
        "used = int(next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)\n"
        "print(memory.free_host_bytes())"
    )
    free = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 32 * MIB < free <= 64 * MIB


def test_a_system_that_says_nothing(monkeypatch):
    for name in ("_machine", "_groups", "_limit"):
        monkeypatch.setattr(memory, name, lambda: None)
    assert memory.free_host_bytes() is None
