# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the source; and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = {"rwkv_cpu": CHECKOUT / "rwkv_cpu", "rwkv_cpu.quantize": CHECKOUT / "quantize"}

# A unit may import units of lower layers, and its own. cli → chat → generation → model → engine.
LAYERS = [
    {"errors", "_version", "places"},
    {"config", "memory", "softmax", "textfile"},
    {"engine", "checkpoint"},
    {"cancel", "modelfile", "reader"},
    {"tokenizer", "state", "preload", "scheduler", "computing", "asynchronous"},
    {"model", "prefix_cache"},
    {"generation", "quantize"},
    {"loading", "chat"},
    {"describe", "benchmark", "desktop", "evaluation", "export", "compat"},
    {"batch", "report", "server"},
    {"terminal", "cli"},
    {"__main__", "__pyinstaller"},
]
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}

# Conveniences on Model that import upward, inside the method that needs them.
LAZY_UPWARD = {("model", "loading"), ("model", "generation"), ("model", "chat"), ("model", "compat")}

# Third-party packages and the units that may import them.
OWNERS = {
    "rich": {"terminal"},
    "prompt_toolkit": {"terminal"},
    "markdown_it": {"terminal"},
    "click": {"terminal", "cli", "__main__"},
    "sentencepiece": {"tokenizer"},
    "tokenizers": {"tokenizer"},
    "_cffi_backend": {"engine"},
    "cffi": set(),
    "gguf": {"checkpoint"},
    "jinja2": {"chat", "report"},
    "llm": {"compat"},
    "matplotlib": {"evaluation"},
    "platformdirs": {"places"},
    "pydantic": {"compat"},
    "torch": set(),
    "PyInstaller": {"__pyinstaller"},
}


class Import(NamedTuple):
    where: str
    unit: str
    target: str  # dotted
    at_top: bool


def source_files() -> list[tuple[str, str, Path]]:
    """(unit, dotted module, path) of every module of the package."""
    found = []
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [*package.split("."), *path.relative_to(folder).with_suffix("").parts]
            unit = parts[1] if len(parts) > 1 else "__init__"
            found.append((unit, ".".join(parts), path))
    return found


def type_checking_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for inner in node.body:
                lines.update(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    return lines


def imports() -> list[Import]:
    found = []
    for unit, module, path in source_files():
        tree = ast.parse(path.read_text("utf-8"))
        typing_only = type_checking_lines(tree)
        top = {node.lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom) or node.lineno in typing_only:
                continue
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif node.level:
                package = module.split(".")[: -node.level]  # a package's own module ends in __init__
                base = ".".join([*package, *([node.module] if node.module else [])])
                targets = [base] if node.module else [f"{base}.{alias.name}" for alias in node.names]
            elif node.module == "rwkv_cpu":
                targets = [f"rwkv_cpu.{alias.name}" for alias in node.names]
            else:
                targets = [node.module or ""]
            found += [
                Import(f"{path.relative_to(CHECKOUT)}:{node.lineno}", unit, t, node.lineno in top) for t in targets
            ]
    return found


IMPORTS = imports()


def test_every_module_has_a_layer():
    assert {unit for unit, _, _ in source_files()} - {"__init__"} <= set(LAYER_OF)


def test_imports_point_down():
    wrong = []
    for found in IMPORTS:
        parts = found.target.split(".")
        if parts[0] != "rwkv_cpu" or len(parts) < 2 or parts[1] not in LAYER_OF or found.unit == "__init__":
            continue
        target = parts[1]
        lazy = (found.unit, target) in LAZY_UPWARD and not found.at_top
        if (
            target != found.unit
            and LAYER_OF[target] >= LAYER_OF.get(found.unit, 0)
            and not lazy
            and found.unit != "cli"
        ):
            wrong.append(f"{found.where}: {found.unit} imports {target}")
    assert not wrong


def test_nothing_but_the_command_line_imports_cli():
    assert {found.unit for found in IMPORTS if found.target.startswith("rwkv_cpu.cli")} <= {"cli", "__main__"}


def test_only_engine_imports_the_extension():
    users = {found.unit for found in IMPORTS if found.target.startswith("rwkv_cpu._engine")}
    assert users == {"engine"}


@pytest.mark.parametrize("unit", ["checkpoint", "quantize"])
def test_converting_never_imports_the_model(unit):
    assert not [found for found in IMPORTS if found.unit == unit and found.target.startswith("rwkv_cpu.model.")]
    assert not [found for found in IMPORTS if found.unit == unit and found.target == "rwkv_cpu.model"]


@pytest.mark.parametrize("package", OWNERS)
def test_third_party_package_is_imported_by_its_owner_only(package):
    users = {found.unit for found in IMPORTS if found.target.split(".")[0] == package}
    assert users <= OWNERS[package]


def test_the_library_never_prints():
    wrong = []
    for unit, _, path in source_files():
        if unit in ("cli", "terminal", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            stream = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name == "print" or stream in ("sys.stdout", "sys.stderr") or name in ("signal.signal", "os.chdir"):
                wrong.append(f"{path.relative_to(CHECKOUT)}:{node.lineno}")
    assert not wrong


def test_importing_the_package_loads_nothing_heavy():
    heavy = ["torch", "rich", "prompt_toolkit", "click", "sentencepiece", "tokenizers", "multiprocessing", "asyncio"]
    code = f"import sys, rwkv_cpu; print([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert run.stdout.strip() == "[]"


def test_loading_a_model_never_imports_torch(demo_path):
    code = (
        f"import sys\nfrom rwkv_cpu import Model\nModel.load({str(demo_path)!r}).close()\nprint('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert run.stdout.strip() == "False"
