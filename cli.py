# SPDX-License-Identifier: Apache-2.0
"""Run the command line from a checkout: ``python cli.py chat``."""

from rwkv_cpu.cli import main

if __name__ == "__main__":
    main()
