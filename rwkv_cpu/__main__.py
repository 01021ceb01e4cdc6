# SPDX-License-Identifier: Apache-2.0
"""``python -m rwkv_cpu``: the same as the ``rwkv-cpu`` command."""

from rwkv_cpu.cli import main

if __name__ == "__main__":
    main(prog_name="python -m rwkv_cpu")
