# SPDX-License-Identifier: Apache-2.0
"""The chat in the terminal. Only these modules use rich and prompt_toolkit."""
