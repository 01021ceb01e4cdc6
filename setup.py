# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the compiled engine, the limited-API tag, where quantize/ belongs."""

from setuptools import find_packages, setup

setup(
    # quantize/ stands at the top of the repository and installs as rwkv_cpu.quantize, never as `quantize`.
    packages=[
        *find_packages(include=["rwkv_cpu", "rwkv_cpu.*"]),
        "rwkv_cpu.quantize",
        *(f"rwkv_cpu.quantize.{name}" for name in find_packages("quantize")),
    ],
    package_dir={"rwkv_cpu": "rwkv_cpu", "rwkv_cpu.quantize": "quantize"},
    cffi_modules=["src/build_engine.py:ffi"],
    # cffi makes the file abi3 by itself; the wheel's tag must say so too.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
