"""The system calls of an untrusted program: a seccomp filter, assembled here.

An allow list. What is not on it fails with EPERM, so that a program sees PermissionError; calls that C libraries try
first and can do without, and calls newer than this table, fail with ENOSYS. Gone with that: exec, fork, sockets,
signals to others, ptrace, mounts and namespaces, keys, BPF, io_uring, and changes of mode, owner and times of files
(which Landlock does not govern). What remains can be reached with plain threads, files and memory.

Some calls pass with certain arguments only:

    clone        exactly what starting a thread takes
    fcntl ioctl  a few requests; none that sends signals (F_SETOWN, FIOASYNC) or types into a terminal
    prlimit64    on the caller itself
    socketpair   connected stream pairs of AF_UNIX, which asyncio wakes its loop with
    sendto       with no address; with recvfrom, without urgent data
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from reward.sandbox.records import SandboxError

_ALLOWED = """
    read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
    preadv2:327:286 pwritev2:328:287 lseek:8:62 close:3:57 close_range:436:436 dup:32:23 dup2:33:- dup3:292:24
    pipe:22:- pipe2:293:59 flock:73:32 sendfile:40:71 copy_file_range:326:285 fsync:74:82 fdatasync:75:83
    ftruncate:77:46 truncate:76:45 open:2:- openat:257:56 creat:85:- access:21:- faccessat:269:48 faccessat2:439:439
    stat:4:- lstat:6:- fstat:5:80 newfstatat:262:79 statx:332:291 statfs:137:43 fstatfs:138:44 readlink:89:-
    readlinkat:267:78 getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83:- mkdirat:258:34 rmdir:84:-
    unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 umask:95:166 poll:7:- ppoll:271:73
    select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:-
    epoll_pwait:281:22 mmap:9:222 munmap:11:215 mremap:25:216 mprotect:10:226 brk:12:214 madvise:28:233
    membarrier:324:283 nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113 clock_getres:229:114
    gettimeofday:96:169 time:201:- times:100:153 getrusage:98:165 setitimer:38:103 getitimer:36:102 alarm:37:-
    pause:34:- sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
    sched_get_priority_max:146:125 sched_get_priority_min:147:126 getpriority:140:141 getcpu:309:168 getpid:39:172
    getppid:110:173 gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148
    getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156 uname:63:160 sysinfo:99:179
    getrandom:318:278 getrlimit:97:163 futex:202:98 set_robust_list:273:99 rseq:334:293 set_tid_address:218:96
    exit:60:93 exit_group:231:94 restart_syscall:219:128 rt_sigaction:13:134 rt_sigprocmask:14:135
    rt_sigreturn:15:139 rt_sigsuspend:130:133 rt_sigtimedwait:128:137 rt_sigpending:127:136 sigaltstack:131:132
    wait4:61:260 waitid:247:95
"""
_CONDITIONAL = """
    prlimit64:302:261 clone:56:220 fcntl:72:25 ioctl:16:29 socketpair:53:199 sendto:44:206 recvfrom:45:207
    clone3:435:435 openat2:437:437
"""
"""Call, its number on x86_64, its number on aarch64 (`-`: does not exist there)."""
_MACHINES = {"x86_64": (1, 0xC000003E), "aarch64": (2, 0xC00000B7)}
"""Column of the table, and the kernel's word for the architecture."""
_NEWEST = 450
"""Calls with a higher number did not exist when the list was made."""

_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_EPERM, _ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""


@dataclass(frozen=True, slots=True)
class _OneOf:
    """The low half of an argument is one of these."""

    argument: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _NoBits:
    """No bit of the mask is set in the low half of an argument."""

    argument: int
    mask: int


@dataclass(frozen=True, slots=True)
class _Null:
    """A pointer is null."""

    argument: int


_Test = _OneOf | _NoBits | _Null

_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
"""What glibc and musl start threads with."""
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, record locks of both kinds, F_DUPFD_CLOEXEC, F_GETPIPE_SZ."""
_IOCTL = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONBIO, FIONREAD, FIONCLEX, FIOCLEX."""
_SEND_FLAGS = 0x4040
"""MSG_DONTWAIT and MSG_NOSIGNAL."""
_NO_OTHER_FLAGS = _NoBits(3, 0xFFFFFFFF ^ _SEND_FLAGS)
_TESTS: dict[str, tuple[_Test, ...]] = {
    "clone": (_OneOf(0, _THREAD_FLAGS),),
    "fcntl": (_OneOf(1, _FCNTL),),
    "ioctl": (_OneOf(1, _IOCTL),),
    "prlimit64": (_OneOf(0, (0,)),),
    "socketpair": (_OneOf(0, (1,)), _NoBits(1, 0xE), _OneOf(2, (0,))),
    "sendto": (_NO_OTHER_FLAGS, _Null(4)),
    "recvfrom": (_NO_OTHER_FLAGS, _Null(4)),
}
_MISSING = ("clone3", "openat2")
"""Calls that fail with ENOSYS, so that the older call is used, whose arguments a filter can see."""


def assemble(machine: str | None = None) -> bytes:
    """The filter for a machine (`x86_64`, `aarch64`; the one this runs on if not given).

    A binary search over the call numbers: the kernel walks few instructions for any call.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        known = ", ".join(_MACHINES)
        raise SandboxError(f"no table of system calls for machine {machine!r}; there is one for {known}")
    column, architecture = _MACHINES[machine]
    blocks = {number: [_give(_ALLOW)] for _, number in _numbers(_ALLOWED, column)}
    for name, number in _numbers(_CONDITIONAL, column):
        blocks[number] = [_give(_ENOSYS)] if name in _MISSING else _check(_TESTS[name])
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        _give(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_search(_intervals(blocks)),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _numbers(table: str, column: int) -> list[tuple[str, int]]:
    rows = [entry.split(":") for entry in table.split()]
    return [(row[0], int(row[column])) for row in rows if row[column] != "-"]


def _intervals(blocks: dict[int, list[_Instruction]]) -> list[tuple[int, list[_Instruction]]]:
    """First number of each run of calls with the same answer, in order, and that answer."""
    runs: list[tuple[int, list[_Instruction]]] = []
    for number in range(_NEWEST + 1):
        block = blocks.get(number, [_give(_EPERM)])
        if not runs or runs[-1][1] != block:
            runs.append((number, block))
    return [*runs, (_NEWEST + 1, [_give(_ENOSYS)])]


def _search(runs: Sequence[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """Find the run that the loaded number lies in."""
    if len(runs) == 1:
        return runs[0][1]
    middle = len(runs) // 2
    below, above = _search(runs[:middle]), _search(runs[middle:])
    assert len(below) < 256, "a jump is one byte"
    return [(_AT_LEAST, len(below), 0, runs[middle][0]), *below, *above]


def _check(tests: Sequence[_Test]) -> list[_Instruction]:
    """Allow if all tests hold. A value that fails a test jumps to the refusal, which stands last."""
    body: list[_Instruction] = []
    for test in reversed(tests):
        body = [*_one_check(test, to_refusal=len(body) + 1), *body]
    return [*body, _give(_ALLOW), _give(_EPERM)]


def _one_check(test: _Test, *, to_refusal: int) -> list[_Instruction]:
    """Instructions of one test; `to_refusal`: how many stand between its last one and the refusal."""
    low = _ARGUMENTS + 8 * test.argument
    if isinstance(test, _NoBits):
        return [(_LOAD, 0, 0, low), (_ANY_BIT, to_refusal, 0, test.mask)]
    if isinstance(test, _Null):
        halves = [(_LOAD, 0, 0, low), (_EQUAL, 0, to_refusal + 2, 0)]
        return [*halves, (_LOAD, 0, 0, low + 4), (_EQUAL, 0, to_refusal, 0)]
    jumps: list[_Instruction] = []
    for left, value in zip(reversed(range(len(test.values))), test.values, strict=True):
        jumps.append((_EQUAL, left, 0 if left else to_refusal, value))
    return [(_LOAD, 0, 0, low), *jumps]


def _give(answer: int) -> _Instruction:
    return _RETURN, 0, 0, answer
