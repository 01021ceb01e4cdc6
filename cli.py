# SPDX-License-Identifier: Apache-2.0
"""Run the command line from a checkout: ``python cli.py chat``."""

from pathlib import Path

import rwkv_cpu

# In a checkout rwkv_cpu.quantize lies beside the package; an installation, editable or not, has it inside.
rwkv_cpu.__path__.append(str(Path(__file__).resolve().parent))

from rwkv_cpu.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
