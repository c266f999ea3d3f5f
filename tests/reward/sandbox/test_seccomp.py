"""The assembled filter, walked instruction by instruction: what it says to a call with given arguments."""

import re
import struct
from pathlib import Path

import pytest

from reward.sandbox.records import SandboxError
from reward.sandbox.seccomp import assemble

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


def verdict(number, *arguments, machine="x86_64", architecture=None):
    """The kernel's rules for a classic BPF program, for the few instructions that a filter has."""
    six = [argument & 0xFFFFFFFFFFFFFFFF for argument in arguments] + [0] * (6 - len(arguments))
    data = struct.pack("=IIQ6Q", number, ARCHITECTURE[machine] if architecture is None else architecture, 0, *six)
    code, position, loaded = assemble(machine), 0, 0
    while True:
        operation, jump_if, jump_else, constant = struct.unpack_from("=HBBI", code, 8 * position)
        position += 1
        if operation == 0x06:
            return constant
        if operation == 0x20:
            loaded = struct.unpack_from("=I", data, constant)[0]
        else:
            holds = {0x15: loaded == constant, 0x35: loaded >= constant, 0x45: bool(loaded & constant)}[operation]
            position += jump_if if holds else jump_else


@pytest.mark.parametrize(
    ("call", "x86_64", "aarch64", "expected"),
    [
        ("read", 0, 63, ALLOW),
        ("openat", 257, 56, ALLOW),
        ("futex", 202, 98, ALLOW),
        ("exit_group", 231, 94, ALLOW),
        ("faccessat2", 439, 439, ALLOW),
        ("execve", 59, 221, EPERM),
        ("socket", 41, 198, EPERM),
        ("ptrace", 101, 117, EPERM),
        ("kill", 62, 129, EPERM),
        ("unshare", 272, 97, EPERM),
        ("bpf", 321, 280, EPERM),
        ("io_uring_setup", 425, 425, EPERM),
        ("fchmodat", 268, 53, EPERM),
        ("clone3", 435, 435, ENOSYS),
        ("openat2", 437, 437, ENOSYS),
        ("the last call of the table", 450, 450, EPERM),
        ("the first call after it", 451, 451, ENOSYS),
        ("a call of x32", 0x40000000, 0x40000000, ENOSYS),
    ],
)
def test_call_gets_its_answer(call, x86_64, aarch64, expected):
    assert verdict(x86_64, machine="x86_64") == expected
    assert verdict(aarch64, machine="aarch64") == expected


THREAD = 0x3D0F00
AF_UNIX, AF_INET, STREAM, DGRAM, CLOEXEC, OOB = 1, 2, 1, 2, 0x80000, 1


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (56, (THREAD,), ALLOW),
        (56, (0x7D0F00,), ALLOW),
        (56, (THREAD | 0x10000000,), EPERM),
        (56, (17,), EPERM),
        (302, (0, 7, 0), ALLOW),
        (302, (1234, 7, 0), EPERM),
        (72, (3, 1), ALLOW),
        (72, (3, 1030), ALLOW),
        (72, (3, 8), EPERM),
        (16, (0, 0x5401), ALLOW),
        (16, (0, 0x5412), EPERM),
        (53, (AF_UNIX, STREAM | CLOEXEC, 0), ALLOW),
        (53, (AF_UNIX, DGRAM, 0), EPERM),
        (53, (AF_INET, STREAM, 0), EPERM),
        (53, (AF_UNIX, STREAM, 6), EPERM),
        (44, (3, 4096, 1, 0, 0, 0), ALLOW),
        (44, (3, 4096, 1, 0x4000, 0, 0), ALLOW),
        (44, (3, 4096, 1, OOB, 0, 0), EPERM),
        (44, (3, 4096, 1, 0, 4096, 16), EPERM),
        (44, (3, 4096, 1, 0, 1 << 32, 16), EPERM),
        (45, (3, 4096, 1, 0, 0, 0), ALLOW),
        (45, (3, 4096, 1, OOB, 0, 0), EPERM),
    ],
)
def test_call_passes_with_harmless_arguments_only(number, arguments, expected):
    assert verdict(number, *arguments) == expected


def test_request_number_is_compared_as_the_kernel_reads_it():
    """`fcntl` takes a 32-bit request: what stands above it changes nothing."""
    assert verdict(72, 3, (7 << 32) | 1) == ALLOW
    assert verdict(72, 3, (1 << 32) | 8) == EPERM


def test_calls_of_another_architecture_kill():
    assert verdict(0, architecture=0x40000003) == KILL
    assert verdict(0, architecture=0) == KILL


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_table_agrees_with_the_headers_of_the_system(machine):
    header = next((path for path in map(Path, HEADERS[machine]) if path.exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", header.read_text(), re.MULTILINE))
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat"))
    source = (Path(__file__).resolve().parents[3] / "reward" / "sandbox" / "seccomp.py").read_text()
    table = re.findall(r"\b([a-z_0-9]+):(\d+):(\d+|-)", source)
    column = {"x86_64": 1, "aarch64": 2}[machine]
    assert len(table) > 130
    wrong = [row for row in table if row[column] != "-" and known.get(row[0]) != row[column]]
    assert wrong == []


def test_machine_without_a_table_is_refused():
    with pytest.raises(SandboxError, match="no table of system calls for machine 'riscv64'; there is one for x86_64"):
        assemble("riscv64")
