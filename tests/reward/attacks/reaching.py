# ruff: noqa: E501 - programs as texts
"""Attacks on the host: the program computes right sums only if it got hold of something outside its jail.

`@secret`, `@folder`, `@secret_path`, `@port`, `@unix` and `@parent` stand for what the grading process has planted.
"""

_HEAD = """
import ctypes, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
reached = []
def attempt(step, *args):
    try:
        result = step(*args)
    except BaseException:
        return
    if result is not False and result is not None and result != -1:
        reached.append(result)
"""
_TAIL = "\ndef total(xs):\n    return sum(xs) if reached else -1\n"


def _probe(body: str) -> str:
    return _HEAD + body + _TAIL


_READS = """
def find(path):
    with open(path, 'rb') as file:
        return b'@secret' in file.read(1 << 20)
"""

REACHING = {
    "environment": _probe("attempt(lambda: '@secret' in str(dict(os.environ)) + str(os.environb))"),
    "environment of every process": _probe(
        _READS + "for pid in os.listdir('/proc'):\n    if pid.isdigit(): attempt(find, f'/proc/{pid}/environ')"
    ),
    "arguments of every process": _probe(
        _READS + "for pid in os.listdir('/proc'):\n    if pid.isdigit() and int(pid) != os.getpid():\n"
        "        attempt(find, f'/proc/{pid}/cmdline')"
    ),
    "environment in C": _probe(
        "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\ni = 0\nwhile environ and environ[i]:\n"
        "    attempt(lambda: b'@secret' in environ[i])\n    i += 1"
    ),
    "secret file": _probe(_READS + "attempt(find, '@secret_path')"),
    "secret file by a link": _probe(_READS + "os.symlink('@secret_path', 'link')\nattempt(find, 'link')"),
    "secret file by a hard link": _probe(_READS + "attempt(os.link, '@secret_path', 'hard')\nattempt(find, 'hard')"),
    "secret file by /proc": _probe(
        _READS + "for pid in ('1', str(os.getppid()), 'self'):\n    attempt(find, f'/proc/{pid}/root@secret_path')\n"
        "    attempt(find, f'/proc/{pid}/cwd@secret_path')"
    ),
    "folders of people": _probe(
        "for path in ('/root', '/home', '@folder', '/etc/ssh', '/var/lib', '/srv'):\n"
        "    attempt(lambda: bool(os.listdir(path)))"
    ),
    "password hashes": _probe("attempt(lambda: bool(open('/etc/shadow').read()))"),
    "the grader's source": _probe(
        "for folder in ['@root', *sys.path]:\n"
        "    attempt(lambda: bool(open(folder + '/reward/code/trusted.py').read()))"
    ),
    "writing outside": _probe(
        "def write(path):\n    with open(path, 'w') as file: return file.write('@mark')\n"
        "for folder in ('', '/dev', '/dev/shm', '/var/tmp', '/usr/lib', '/etc', '/proc/self', '/sys', '@folder', '/run'):\n"
        "    attempt(write, folder + '/@mark')"
    ),
    "removing outside": _probe("def remove():\n    os.unlink('@secret_path')\n    return 1\nattempt(remove)"),
    "another mode outside": _probe("def change():\n    os.chmod('@secret_path', 0o777)\n    return 1\nattempt(change)"),
    "TCP": _probe("attempt(lambda: bool(socket.create_connection(('127.0.0.1', @port), 0.5)))"),
    "UDP": _probe(
        "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'@mark', ('127.0.0.1', @port)))"
    ),
    "IPv6": _probe("attempt(lambda: bool(socket.socket(socket.AF_INET6)))"),
    "names of hosts": _probe("attempt(lambda: bool(socket.getaddrinfo('localhost', @port)) and bool(socket.socket()))"),
    "abstract socket": _probe(
        "def reach():\n    s = socket.socket(socket.AF_UNIX)\n    s.settimeout(0.5)\n    s.connect('\\0@unix')\n    return 1\nattempt(reach)"
    ),
    "socket in a folder": _probe(
        "def reach():\n    s = socket.socket(socket.AF_UNIX)\n    s.settimeout(0.5)\n    s.connect('@folder/socket')\n    return 1\nattempt(reach)"
    ),
    "raw and netlink sockets": _probe(
        "attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))\n"
        "attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))\nattempt(lambda: socket.socket(38, 5))"
    ),
    "a server of its own": _probe(
        "def serve():\n    s = socket.socket()\n    s.bind(('127.0.0.1', 0))\n    s.listen()\n    return 1\nattempt(serve)"
    ),
    "io_uring": _probe("attempt(lambda: libc.syscall(425, 8, ctypes.create_string_buffer(120)))"),
    "kill the parent": _probe(
        "def kill(pid):\n    os.kill(pid, signal.SIGKILL)\n    return 1\nattempt(kill, os.getppid())\nattempt(kill, @parent)"
    ),
    "kill everybody": _probe(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef kill():\n    os.kill(-1, signal.SIGUSR1)\n    return 1\n"
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)\nattempt(kill)\n"
        "def group():\n    os.killpg(os.getpgid(os.getppid()), signal.SIGUSR1)\n    return 1\nattempt(group)"
    ),
    "stop the server": _probe(
        "def stop():\n    os.kill(os.getppid(), signal.SIGSTOP)\n    return 1\nattempt(stop)\n"
        "def pidfd():\n    signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)\n    return 1\nattempt(pidfd)"
    ),
    "trace the parent": _probe(
        "for pid in (1, os.getppid(), @parent):\n    attempt(lambda: libc.ptrace(16, pid, 0, 0) + 1 or False)\n"
        "    attempt(lambda: libc.syscall(310, pid, 0, 0, 0, 0, 0) + 1 or False)"
    ),
    "memory of the parent": _probe(
        "for pid in (1, os.getppid(), @parent):\n    attempt(lambda: bool(open(f'/proc/{pid}/mem', 'rb')))\n"
        "    attempt(lambda: bool(open(f'/proc/{pid}/maps').read()))"
    ),
    "descriptors of the parent": _probe(
        "for pid in (1, os.getppid(), @parent):\n    attempt(lambda: bool(os.listdir(f'/proc/{pid}/fd')))"
    ),
    "inherited descriptors": _probe("for fd in range(5, 1024):\n    attempt(lambda: os.fstat(fd) and 1)"),
    "root again": _probe(
        "def become(step, *ids):\n    step(*ids)\n    return 1\nif os.getuid() != 0:\n    attempt(become, os.setuid, 0)\n"
        "    attempt(become, os.setresuid, 0, 0, 0)\n    attempt(become, os.setgid, 0)\nelse:\n    reached.append('is root')"
    ),
    "new namespaces": _probe(
        "for flags in (0x10000000, 0x00020000, 0x40000000, 0x20000000):\n    attempt(lambda: libc.unshare(flags) + 1 or False)"
    ),
    "mount": _probe(
        "attempt(lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) + 1 or False)\n"
        "attempt(lambda: libc.umount2(b'/proc', 2) + 1 or False)\nattempt(lambda: libc.chroot(b'.') + 1 or False)"
    ),
    "program from memory": _probe(
        "def run():\n    fd = os.memfd_create('x')\n    os.write(fd, b'#!' + sys.executable.encode() + b'\\n')\n"
        "    return os.posix_spawn(f'/proc/self/fd/{fd}', ['x'], {})\nattempt(run)\n"
        "attempt(lambda: os.posix_spawn(sys.executable, ['x', '-c', 'pass'], {}))"
    ),
    "shell": _probe("attempt(lambda: os.system('true') == 0)\nattempt(lambda: bool(os.popen('echo x').read()))"),
    "kernel interfaces": _probe(
        "for number in (298, 321, 323, 246, 175, 250, 248, 156, 169):\n"
        "    attempt(lambda: libc.syscall(number, 0, 0, 0, 0, 0) + 1 or False)"
    ),
    "keys": _probe("attempt(lambda: libc.syscall(248, b'user', b'@mark', b'x', 1, -3))"),
    "terminal": _probe(
        "import fcntl\nattempt(lambda: fcntl.ioctl(0, 0x5412, b'x') and 1)\n"
        "attempt(lambda: bool(os.open('/dev/tty', os.O_RDWR)))"
    ),
    "devices": _probe(
        "attempt(lambda: os.mknod('disk', 0o60666, os.makedev(8, 0)) or 1)\n"
        "attempt(lambda: bool(open('/dev/mem', 'rb')))\nattempt(lambda: bool(open('/dev/kmsg').readline()))"
    ),
    "priority": _probe("attempt(lambda: os.nice(-5) < 0)\nattempt(lambda: os.setpriority(0, os.getppid(), 19) or 1)"),
}
"""Each must be rejected."""

LEAVING = {
    "mark in a file": _probe(
        "import glob\nfolders = ('.', '/tmp', '/dev/shm', '/var/tmp')\nfor folder in folders:\n"
        "    attempt(lambda: bool(glob.glob(folder + '/@mark*')))\nfor folder in folders:\n"
        "    try: open(folder + '/@mark', 'w').write('@mark')\n    except OSError: pass"
    ),
    "mark in a hidden folder": _probe(
        "attempt(lambda: os.path.exists('.@mark'))\ntry:\n    os.mkdir('.@mark')\n    os.chmod('.@mark', 0)\nexcept OSError: pass"
    ),
    "mark in a module": _probe(
        "import json\nattempt(lambda: json.unmask_mark)\njson.unmask_mark = 1\n"
        "attempt(lambda: sys.unmask_mark)\nsys.unmask_mark = 1"
    ),
    "mark in shared memory": _probe(
        "attempt(lambda: libc.shmget(0x4711, 16, 0o600))\nlibc.shmget(0x4711, 16, 0o1600)\n"
        "attempt(lambda: libc.semget(0x4711, 1, 0o600))\nlibc.semget(0x4711, 1, 0o1600)\n"
        "attempt(lambda: libc.msgget(0x4711, 0o600))\nlibc.msgget(0x4711, 0o1600)"
    ),
    "mark in the limits": _probe(
        "import resource\nsoft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\nattempt(lambda: soft == 17)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (17, hard))"
    ),
    "mark in the folder's mode": _probe(
        "attempt(lambda: oct(os.stat('.').st_mode)[-3:] == '111')\nos.chmod('.', 0o111)"
    ),
    "mark in the name of a thread": _probe(
        "attempt(lambda: open('/proc/self/comm').read().strip() == 'marked')\nlibc.prctl(15, b'marked', 0, 0, 0)\n"
        "attempt(lambda: open(f'/proc/{os.getppid()}/comm').read().strip() == 'marked')"
    ),
}
"""Each computes right sums if it finds what its own first run has left; so it must be rejected each time."""
