# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the compiled engine, the limited-API tag, where quantize/ belongs."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from build_zig import BuildExt, build_folder, wheel_tag

setup(
    # quantize/ stands at the top of the repository and installs as rwkv_cpu.quantize, never as `quantize`.
    packages=[
        *find_packages(include=["rwkv_cpu", "rwkv_cpu.*"]),
        "rwkv_cpu.quantize",
        *(f"rwkv_cpu.quantize.{name}" for name in find_packages("quantize")),
    ],
    package_dir={"rwkv_cpu": "rwkv_cpu", "rwkv_cpu.quantize": "quantize"},
    cffi_modules=["src/build_engine.py:ffi"],
    cmdclass={"build_ext": BuildExt},
    # cffi makes the file abi3 by itself; the wheel's tag must say so too.
    options={"bdist_wheel": {"py_limited_api": "cp310", **wheel_tag()}, "build": build_folder()},
)
