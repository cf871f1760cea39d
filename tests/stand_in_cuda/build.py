"""Compile the stand-in for CUDA, and say how a program gets it."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent


def build(folder: Path) -> dict[str, str]:
    """Compile CUDA's runtime and driver into `folder`; return the environment of a program that uses them."""
    if sys.platform != "linux":
        pytest.skip("the stand-in for CUDA needs Linux")
    compiler = shutil.which("cc")
    spec = find_spec("nvidia")
    folders = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    headers = [found.parent for folder in folders for found in folder.glob("cu1*/include/driver_types.h")]
    if compiler is None or not headers:
        pytest.skip("needs a C compiler (cc) and driver_types.h of nvidia-cuda-runtime")
    command = [compiler, "-shared", "-fPIC", "-w", f"-I{SOURCE}", f"-I{headers[0]}"]
    for name, library in (("runtime", "libstandin.so"), ("driver", "libcuda.so.1")):
        subprocess.run([*command, "-o", folder / library, SOURCE / f"{name}.c"], check=True)
    return {"LD_PRELOAD": str(folder / "libstandin.so"), "LD_LIBRARY_PATH": str(folder)}
