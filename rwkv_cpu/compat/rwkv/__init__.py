# SPDX-License-Identifier: Apache-2.0
"""BlinkDL's ``rwkv`` package on this engine: without torch, all versions in one process, no environment variables.

from rwkv_cpu.compat.rwkv.model import RWKV                       # instead of rwkv.model
from rwkv_cpu.compat.rwkv.utils import PIPELINE, PIPELINE_ARGS    # instead of rwkv.utils
"""
