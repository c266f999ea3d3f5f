"""What a program in a jail cannot do, tried through raw system calls where Python would be too polite.

The canary programs are tried in `test_selection.py`; these go further.
"""

import platform

import pytest

from reward.sandbox.records import JobEnd

PRELUDE = """
import ctypes, os, resource, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
done = []
def attempt(name, step):
    try:
        if step() is not False:
            done.append(name)
    except BaseException:
        pass
def call(*arguments):
    ctypes.set_errno(0)
    return libc.syscall(*arguments) >= 0 or ctypes.get_errno() not in (1, 38)
parent = os.getppid()
"""
REPORT = "\nprint('; '.join(done) or 'held')\n"

X86_64_CALLS = {
    **{"shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319, "memfd_secret": 447},
    **{"keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323},
    **{"io_uring_setup": 425, "io_setup": 206, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311},
    **{"kcmp": 312, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "process_madvise": 440},
    **{"unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "fsopen": 430},
    **{"open_tree": 428, "move_mount": 429, "open_by_handle_at": 304, "name_to_handle_at": 303, "mknod": 133},
    **{"setuid": 105, "setgid": 106, "setgroups": 116, "setresuid": 117, "capset": 126, "personality": 135},
    **{"execve": 59, "execveat": 322, "fork": 57, "vfork": 58, "kill": 62, "tkill": 200, "tgkill": 234},
    **{"rt_sigqueueinfo": 129, "socket": 41, "connect": 42, "bind": 49, "sendmsg": 46, "recvmsg": 47},
    **{
        "sched_setaffinity": 203,
        "setpriority": 141,
        "ioprio_set": 251,
        "prctl": 157,
        "arch_prctl": 158,
        "seccomp": 317,
    },
    **{
        "chmod": 90,
        "fchmod": 91,
        "chown": 92,
        "lchown": 94,
        "utimensat": 280,
        "setxattr": 188,
        "link": 86,
        "symlink": 88,
    },
    **{"swapon": 167, "reboot": 169, "sethostname": 170, "init_module": 175, "kexec_load": 246, "syslog": 103},
    **{"settimeofday": 164, "quotactl": 179, "acct": 163, "fanotify_init": 300, "inotify_init1": 294, "splice": 275},
    **{"vmsplice": 278, "tee": 276, "modify_ldt": 154, "iopl": 172, "ioperm": 173, "migrate_pages": 256, "mlock": 149},
    **{"timer_create": 222, "signalfd4": 289, "timerfd_create": 283, "eventfd2": 290, "setsid": 112, "setrlimit": 160},
    **{"remap_file_pages": 216, "clone3": 435, "landlock_create_ruleset": 444, "a call of a later kernel": 600},
    "a call of the x32 interface": 0x40000000 | 39,
}
"""Each with null arguments: one that is let through succeeds or complains of its arguments."""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
def test_dangerous_system_calls_are_refused(run):
    calls = f"for name, number in {X86_64_CALLS!r}.items(): attempt(name, lambda: call(number, 0, 0, 0, 0, 0, 0))"
    assert run(PRELUDE + calls + REPORT)[:2] == (JobEnd.FINISHED, "held\n")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86_64")
def test_calls_through_the_interface_of_another_architecture_kill_the_program(run):
    # mov eax, 20 (getpid of i386); int 0x80; ret
    text = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))(), flush=True)
"""
    end, stdout, words = run(text)
    assert (end, stdout) == (JobEnd.CRASHED, "")
    assert "SIGSYS" in words


ATTEMPTS = {
    "signals by way of a descriptor": """
read, write = os.pipe()
import fcntl
attempt('F_SETOWN', lambda: fcntl.fcntl(read, fcntl.F_SETOWN, parent))
attempt('F_SETSIG', lambda: fcntl.fcntl(read, fcntl.F_SETSIG, 9))
attempt('FIOASYNC', lambda: fcntl.ioctl(read, 0x5452, b'\\1\\0\\0\\0'))
attempt('TIOCSTI', lambda: fcntl.ioctl(0, 0x5412, b'a'))
""",
    "sockets by way of a pair": """
attempt('datagram pair', lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt('packet pair', lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
a, b = socket.socketpair()
attempt('address', lambda: a.sendto(b'x', '/dev/log'))
attempt('urgent data', lambda: a.send(b'x', socket.MSG_OOB))
attempt('descriptors', lambda: socket.send_fds(a, [b'x'], [0]))
attempt('connect', lambda: a.connect('\\0x'))
a.send(b'works')
attempt('the pair does not work', lambda: b.recv(10) != b'works')
""",
    "more than the limits": """
for name in ('RLIMIT_CPU', 'RLIMIT_AS', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE', 'RLIMIT_CORE'):
    which = getattr(resource, name)
    hard = resource.getrlimit(which)[1]
    attempt(name, lambda: resource.setrlimit(which, (hard + 1, hard + 1)))
    attempt(name + ' unlimited', lambda: resource.setrlimit(which, (-1, -1)))
    attempt(name + ' is not set', lambda: hard == resource.RLIM_INFINITY)
""",
    "limits of others": """
attempt('limit', lambda: resource.prlimit(parent, resource.RLIMIT_CPU))
attempt('affinity', lambda: os.sched_setaffinity(parent, {0}))
attempt('priority', lambda: os.setpriority(os.PRIO_PROCESS, parent, 19))
""",
    "files outside": """
os.mkdir('inside')
for target in ('/', '/etc', '/root', '/home', '/proc', '/sys', '/tmp/..', 'inside/../../..'):
    attempt('listed ' + target, lambda: os.listdir(target))
for target in ('/etc/shadow', '/etc/hostname', '/proc/self/maps', '/proc/1/cmdline', '/proc/kallsyms', '/dev/mem'):
    attempt('read ' + target, lambda: open(target, 'rb').read(1))
os.chdir('/')
attempt('read from /', lambda: open('etc/hostname', 'rb').read(1))
attempt('truncated', lambda: os.truncate(os.__file__, 0))
attempt('moved', lambda: os.rename(os.__file__, '/tmp/os.py'))
attempt('removed', lambda: os.unlink(os.__file__))
attempt('wrote code', lambda: open(os.path.dirname(os.__file__) + '/sitecustomize.py', 'w'))
""",
    "links": """
attempt('symbolic link', lambda: os.symlink('/etc/hostname', 'link'))
attempt('hard link', lambda: os.link(os.__file__, 'link'))
attempt('pipe file', lambda: os.mkfifo('pipe'))
attempt('device', lambda: os.mknod('device', 0o20666, os.makedev(1, 1)))
attempt('socket file', lambda: os.mknod('socket', 0o140666))
""",
    "descriptors of the server": """
for number in range(5, 2000):
    attempt(f'descriptor {number}', lambda: os.fstat(number))
""",
    "the hold itself": """
attempt('seccomp off', lambda: libc.prctl(22, 0, 0, 0, 0) == 0)
attempt('new privileges', lambda: libc.prctl(38, 0, 0, 0, 0) == 0)
attempt('outlives its parent', lambda: libc.prctl(1, 0, 0, 0, 0) == 0)
attempt('dumpable', lambda: libc.prctl(4, 1, 0, 0, 0) == 0)
attempt('is root', lambda: os.getuid() == 0 and os.path.exists('/root/.profile') and open('/root/.profile'))
""",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_program_cannot_get_at(run, name):
    assert run(PRELUDE + ATTEMPTS[name] + REPORT)[:2] == (JobEnd.FINISHED, "held\n")


BOMBS = {
    "fork": "import os\nwhile True: os.fork()",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "memory": "x = []\nwhile True: x.append(bytearray(10_000_000))",
    "memory by threads": """
import threading
def eat():
    x = []
    while True: x.append(bytearray(1_000_000))
threads = [threading.Thread(target=eat) for _ in range(8)]
for thread in threads: thread.start()
eat()
""",
    "disk": "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'wb').write(b'x' * 1_000_000)",
    "one large file": "f = open('f', 'wb')\nwhile True: f.write(b'x' * 1_000_000)",
    "empty files": "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'w').close()",
    "deep folders": "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
    "folders without rights": "import os\nn = 0\nwhile True:\n    n += 1\n    os.mkdir(f'd{n}', 0)",
    "descriptors": "import os\nx = []\nwhile True: x.append(os.dup(0))",
    "output": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "nesting": "eval('(' * 10_000 + ')' * 10_000)",
    "recursion": """
import sys
sys.setrecursionlimit(10**9)
class A:
    def __repr__(self): return repr(self)
repr(A())
""",
    "digits": "import sys\nsys.set_int_max_str_digits(0)\nstr(10 ** 10_000_000)",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_ends_and_the_next_program_finds_nothing(run, slot, name):
    replaced = slot.num_replaced
    end, stdout, _ = run(BOMBS[name], wall_s=0.5, memory_mb=256)
    assert end is not JobEnd.FINISHED
    assert stdout == ""
    text = "import os, threading\nprint(os.listdir('.'), threading.active_count())"
    assert run(text)[:2] == (JobEnd.FINISHED, "[] 1\n")
    assert slot.num_replaced == replaced
