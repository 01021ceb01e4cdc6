# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu serve --stdio``: models for programs of any language, by JSON-RPC 2.0 over standard input and output."""
