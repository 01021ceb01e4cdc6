# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu info``: what a model file is, or what this machine can do."""

from __future__ import annotations

import json
from typing import Any

import click

from rwkv_cpu.cli._options import json_option


@click.command()
@click.argument("file", required=False)
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--verify", is_flag=True, help="Read a whole .rwkv file and compare its checksums.")
@json_option
def command(file: str | None, tensors: bool, verify: bool, as_json: bool) -> None:
    """Describe FILE (a .rwkv file, a checkpoint of any format, or "demo"), or without FILE this machine.

    Reads no weights, except with --verify.
    """
    if file is None:
        if tensors or verify:
            raise click.UsageError("--tensors and --verify need a FILE", click.get_current_context())
        from rwkv_cpu.describe import describe_machine

        found = describe_machine()
        click.echo(json.dumps(found) if as_json else _machine_text(found))
        return
    from rwkv_cpu.describe import describe_file, verify_file
    from rwkv_cpu.loading import path_of
    from rwkv_cpu.terminal.progress import run_with_progress

    path = str(path_of(file))
    found = describe_file(path, tensors=tensors)
    if verify:
        found["verified_tensors"] = run_with_progress("Verifying", lambda progress, _: verify_file(path, progress))
    click.echo(json.dumps(found) if as_json else _file_text(found))


def _machine_text(found: dict[str, Any]) -> str:
    from rwkv_cpu.memory import human_bytes

    available = found["memory_available_bytes"]
    rows = [
        ("rwkv-cpu", f"{found['version']} (engine {found['engine_version']}), Python {found['python']}"),
        ("CPU", found["cpu"]),
        ("features", " ".join(found["cpu_features"]) or "unknown"),
        ("uses", f"{found['isa']}: {found['isa_reason']}" if found["isa"] else found["isa_reason"]),
        *(
            ("" if i else "could use", f"{isa['name']:12} {'yes' if isa['usable'] else 'no '}  {isa['needs']}".rstrip())
            for i, isa in enumerate(found["isas"])
        ),
        ("threads", f"{found['threads']} of {found['logical_cpus']} logical CPUs"),
        ("memory", f"{human_bytes(available)} available" if available is not None else "unknown"),
        ("model", found["bundled_model"]),
        ("your models", found["models_directory"]),
        ("cache", found["cache_directory"]),
    ]
    return _aligned(rows)


def _file_text(found: dict[str, Any]) -> str:
    from rwkv_cpu.memory import human_bytes

    ranks = ", ".join(f"{name} {rank}" for name, rank in found["ranks"].items())
    heads = f"{found['n_head']} of {found['head_size']}" + (f"; ranks {ranks}" if ranks else "")
    files = f" in {found['files']} files" if found.get("files", 1) > 1 else ""
    rows = [
        ("file", found["path"]),
        ("kind", found.get("container", "a .rwkv file")),
        ("size", human_bytes(found["size_bytes"]) + files),
        ("architecture", f"{found['architecture']}, {found['parameters'] / 1e6:.1f} M weights"),
        ("layers", f"{found['n_layer']}, width {found['n_embd']}, channel mix {found['n_ffn']}"),
        *([("heads", heads)] if found["n_head"] else []),
        ("vocabulary", f"{found['n_vocab']} tokens"),
        ("formats", ", ".join(f"{count} tensors {name}" for name, count in found["formats"].items())),
    ]
    if found["kind"] == "rwkv":
        rows += [
            ("bits/weight", f"{found['bits_per_weight']:.2f} (matrices)"),
            ("per token", f"{human_bytes(found['weight_bytes_per_token'])} of weights are read"),
            ("state", f"{human_bytes(found['state_bytes'])} for each conversation, however long"),
            ("tokenizer", found["tokenizer"]),
            *((key.removeprefix("rwkv_cpu."), _printable(value)) for key, value in _origin(found["metadata"])),
        ]
    else:
        rows.append(("tokenizer", "none inside" if found["tokenizer"] == "none" else found["tokenizer"]))
    if "verified_tensors" in found:
        rows.append(("verified", f"all {found['verified_tensors']} tensors are as they were written"))
    return _aligned(rows) + "".join("\n" + _tensor_line(tensor) for tensor in found.get("tensors", ()))


def _origin(metadata: dict[str, str]) -> list[tuple[str, str]]:
    wanted = ("rwkv_cpu.source", "rwkv_cpu.source_sha256", "rwkv_cpu.version", "rwkv_cpu.options")
    return [(key, metadata[key]) for key in wanted if key in metadata]


def _tensor_line(tensor: dict[str, Any]) -> str:
    shape = tensor.get("shape") or [tensor["rows"], tensor["cols"]]
    size = f"{tensor['size_bytes']:,}" if tensor["size_bytes"] is not None else "-"
    return f"{size:>12}  {tensor['format']:5}  {shape!s:16}  {_printable(tensor['name'])}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)
