# SPDX-License-Identifier: Apache-2.0
"""What the library exports and what its header promises."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.library.conftest import LIB, ROOT

HEADER = (ROOT / "src" / "rwkv_cpu.h").read_text("utf-8")
SYMBOLS = (ROOT / "cmake" / "symbols.txt").read_text("ascii").split()
ABI = re.search(r"^#define RWKVC_ABI_VERSION (\d+)$", HEADER, re.MULTILINE)[1]


def output(*command) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_the_library_exports_what_the_list_has_and_nothing_else(library):
    exported = [line.split() for line in output("nm", "-D", "--defined-only", library).splitlines()]
    functions = sorted(name.split("@")[0] for *_, kind, name in exported if kind != "A")
    assert functions == SYMBOLS, "cmake/symbols.txt has what is exported: a name that goes or changes breaks programs"
    assert {name.partition("@@")[2] for *_, kind, name in exported if kind != "A"} == {f"RWKV_CPU_{ABI}"}


def test_the_list_is_the_headers_functions():
    declared = re.findall(r"^[a-z][\w \*]*?\b(rwkvc_\w+)\(", HEADER, re.MULTILINE)
    assert sorted(declared) == SYMBOLS


def test_soname_and_version_script_carry_the_abi_version(library):
    assert re.search(rf"SONAME.*\[librwkv_cpu\.so\.{ABI}\]", output("readelf", "-d", library))
    assert f"RWKV_CPU_{ABI} {{" in (ROOT / "cmake" / "rwkv_cpu.map").read_text("ascii")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("standard", ["c99", "c11", "c++11", "c++20"])
def test_the_header_compiles_alone_in_every_language(compiler, standard, tmp_path):
    language = "c++" if "+" in standard else "c"
    source = tmp_path / "user.c"
    source.write_text("#include <rwkv_cpu.h>\nint main(void) { return rwkvc_abi_version() != RWKVC_ABI_VERSION; }\n")
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-std={standard}", "-x", language, f"-I{ROOT / 'src'}"]
    output(compiler, *flags, "-fsyntax-only", source)


def test_no_entry_point_is_for_tests_only():
    assert not [name for name in SYMBOLS if re.search("test|debug|mock", name)]


def test_the_pkg_config_file_is_enough_to_compile_link_and_run(library, tmp_path):
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config")
    install = ["make", "install", f"PREFIX={tmp_path / 'usr'}"]
    subprocess.run(install, check=True, capture_output=True, cwd=ROOT)
    found = {"PKG_CONFIG_PATH": str(tmp_path / "usr" / "lib" / "pkgconfig"), "PATH": "/usr/bin:/bin"}
    asked = ["pkg-config", "--cflags", "--libs", "rwkv_cpu"]
    flags = subprocess.run(asked, check=True, capture_output=True, text=True, env=found).stdout.split()
    program = tmp_path / "program"
    subprocess.run(["cc", ROOT / "examples" / "next_token.c", *flags, "-o", program], check=True)
    path = {"LD_LIBRARY_PATH": str(tmp_path / "usr" / "lib")}
    run = subprocess.run([program, "/nowhere", "1"], env=path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "No such file" in run.stderr
    static = ["cc", ROOT / "examples" / "next_token.c", f"-I{ROOT / 'src'}", LIB / "librwkv_cpu.a"]
    subprocess.run([*static, "-pthread", "-lm", "-o", program], check=True)
    run = subprocess.run([program, ROOT / "rwkv_cpu/data/demo.rwkv", "510"], capture_output=True, text=True, check=True)
    assert run.stdout.strip().isdecimal()


USER = """
cmake_minimum_required(VERSION 3.16)
project(user LANGUAGES C)
find_package(rwkv_cpu REQUIRED)
add_executable(shared main.c)
target_link_libraries(shared PRIVATE rwkv_cpu::rwkv_cpu)
add_executable(static main.c)
target_link_libraries(static PRIVATE rwkv_cpu::rwkv_cpu_static)
"""


@pytest.mark.slow
def test_cmake_builds_installs_and_finds_both_libraries(tmp_path, demo_path):
    build, prefix, user = tmp_path / "build", tmp_path / "usr", tmp_path / "user"
    output("cmake", "-S", ROOT, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib")
    output("cmake", "--build", build, "--parallel", "2")
    output("cmake", "--install", build)
    names = {path.name for path in (prefix / "lib").iterdir()}
    assert {"librwkv_cpu.a", "librwkv_cpu.so", f"librwkv_cpu.so.{ABI}", "pkgconfig", "cmake"} <= names
    exported = output("nm", "-D", "--defined-only", prefix / "lib" / "librwkv_cpu.so").split()
    assert sorted(name.split("@")[0] for name in exported if name.startswith("rwkvc_")) == SYMBOLS
    user.mkdir()
    (user / "CMakeLists.txt").write_text(USER)
    shutil.copy(ROOT / "examples" / "next_token.c", user / "main.c")
    output("cmake", "-S", user, "-B", user / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    output("cmake", "--build", user / "build")
    answers = {output(user / "build" / kind, demo_path, "510") for kind in ("shared", "static")}
    assert len(answers) == 1
    assert answers.pop().strip().isdecimal()
