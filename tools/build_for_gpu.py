"""Builds the libraries for the GPU that is here, into the checkout; with those that are there already it is done.

Nothing is installed and nothing fetched. ``setup.py`` is run among links to all of the checkout but pyproject.toml: the
form of the licence in it needs setuptools 77, and a machine with a GPU has what came with its torch. They stand in
build/for_gpu, so that a build that was cut off goes on. Exit status 0 if the libraries run on the GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "for_gpu"
LIBRARIES = tuple(ROOT / "lbgap" / f"{name}.abi3.so" for name in ("_cpu", "_cuda"))


def check() -> None:
    """Run an op of the libraries on the GPU; raises where they cannot."""
    import torch

    from lbgap import _extension, ops

    numbers = torch.ones(3, device="cuda")
    _extension.resolve_backend("native", numbers.device)
    ops.box_project(numbers, numbers, 1.0, 0.0, torch.empty_like(numbers))
    torch.cuda.synchronize()


def run_here() -> bool:
    """Whether the libraries run on the GPU; tried in a process of its own, which a bad library may end."""
    there = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{there}" if there else str(ROOT)}
    return subprocess.run([sys.executable, __file__, "--check"], env=environment).returncode == 0


def why_not_taken(as_is: bool) -> str | None:
    """Say what is wrong with the libraries in the checkout, None if nothing is.

    Args:
        as_is: Take them also where a source is newer, as it is after a fresh clone.
    """
    for library in LIBRARIES:
        if not library.exists():
            return f"there is no {library.name}"
    sources = [ROOT / "setup.py", ROOT / "tools" / "nvcc.py", *(ROOT / "csrc").rglob("*.*")]
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    if not as_is and newest.stat().st_mtime > min(library.stat().st_mtime for library in LIBRARIES):
        return f"{newest.relative_to(ROOT)} is newer than the libraries"
    return None if run_here() else "the libraries do not run on this GPU"


def link(folder: Path) -> None:
    """Make a folder look like the checkout, but without pyproject.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in ROOT.iterdir():
        if path.name not in ("pyproject.toml", "build") and not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(path)


def build(capability: tuple[int, int]) -> None:
    """Build all libraries for GPUs of a compute capability, or for those of TORCH_CUDA_ARCH_LIST.

    Raises:
        subprocess.CalledProcessError: They do not compile; the compiler has said why.
    """
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or "{}.{}".format(*capability)
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": wanted, "LBGAP_BUILD": "1", "FORCE_CUDA": "1"}
    link(FOLDER)
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=FOLDER, env=environment, check=True)


def main() -> str | None:
    """Build what is missing; returns what is wrong, if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--as-is", action="store_true", help="take libraries that run, also where a source is newer")
    parser.add_argument("--check", action="store_true", help="only run an op of the libraries on the GPU")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    if options.check:
        return check()
    reason = why_not_taken(options.as_is)
    if reason is None:
        print("lbgap: the libraries are there and run on this GPU")
        return None
    print(f"lbgap: {reason}: building", flush=True)
    build(torch.cuda.get_device_capability())
    return None if run_here() else "what was built does not run on this GPU"


if __name__ == "__main__":
    sys.exit(main())
