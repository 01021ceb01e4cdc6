# SPDX-License-Identifier: Apache-2.0
"""The interfaces of other packages: what was written for them runs here with its import changed.

compat.rwkv: BlinkDL's ``rwkv``. compat.llama_cpp: llama-cpp-python's ``Llama``. compat.llm_plugin: a plugin of ``llm``.
"""
