# SPDX-License-Identifier: Apache-2.0
"""The one place that holds the version; pyproject.toml and the compiled engine take it from here."""

__version__ = "0.1.0"
