"""Unprivileged users for jails started by root."""

from __future__ import annotations

import os
import pwd
import random
from pathlib import Path

from reward.sandbox.records import Unavailable

_FIRST, _LAST = 52_000, 59_999
"""Above what systems hand out to people and services, below what they hand out on the fly."""


def slot_uid() -> int | None:
    """A user id that no account and no process has, for one slot; None to stay who we are.

    Only root can become another user, and only if its user namespace has more than one. Two slots with one user could
    signal each other and would count as one against the limit of processes.
    """
    if os.geteuid() != 0:
        return None
    choices = list(_mapped())
    if not choices:
        return None
    taken = _uids_in_use()
    random.shuffle(choices)
    for uid in choices:
        if uid not in taken and not _has_account(uid):
            return uid
    raise Unavailable(
        f"every user id from {_FIRST} to {_LAST} has an account or a process", "start as an ordinary user instead"
    )


def _mapped() -> range:
    """The ids of the range that this user namespace has."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        inside, _, count = map(int, line.split())
        if inside <= _FIRST < inside + count:
            return range(_FIRST, min(_LAST + 1, inside + count))
    return range(0)


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _uids_in_use() -> set[int]:
    """Real users of the running processes. The owner of a folder in /proc would not do: jails hide theirs."""
    taken = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = status.read_text().split()
        except OSError:
            continue
        taken.add(int(fields[fields.index("Uid:") + 1]))
    return taken
