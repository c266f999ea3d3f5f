"""The folder that a program may write to: how much is in it, and how it is emptied."""

from __future__ import annotations

import os
import stat

MAX_FILES, MAX_FOLDERS = 1024, 64
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def folder_exceeds(folder: str, num_bytes: int) -> bool:
    """Whether more bytes, names or folders lie below a folder than may.

    Folders are reached by descriptors, never by long paths; the program may go on changing them meanwhile.
    """
    pending, names, folders, used = [os.open(folder, _FOLDER_FLAGS)], 0, 0, 0
    try:
        while pending:
            here = pending.pop()
            try:
                for name in os.listdir(here):
                    names += 1
                    kind = os.stat(name, dir_fd=here, follow_symlinks=False)
                    used += kind.st_blocks * 512
                    if stat.S_ISDIR(kind.st_mode):
                        folders += 1
                        pending.append(_open_folder(name, here))
                    if names > MAX_FILES or folders > MAX_FOLDERS or used > num_bytes:
                        return True
            except FileNotFoundError:
                continue
            except OSError:
                return True
            finally:
                os.close(here)
    finally:
        for descriptor in pending:
            os.close(descriptor)
    return False


def _open_folder(name: str, parent: int) -> int:
    """Descriptor of a folder, after giving its owner every right in it again."""
    os.chmod(name, 0o700, dir_fd=parent)
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent)


def empty_folder(folder: str) -> None:
    """Remove everything below a folder. No process uses it any more.

    Folders found inside are moved up before they are removed, so that a path never gets longer than two names and
    nothing recurses, however deep a program has nested them.
    """
    top = os.open(folder, _FOLDER_FLAGS)
    try:
        moved = 0
        while names := os.listdir(top):
            for name in names:
                if _unlinked(name, top):
                    continue
                inner = _open_folder(name, top)
                for child in os.listdir(inner):
                    if not _unlinked(child, inner):
                        os.chmod(child, 0o700, dir_fd=inner)
                        os.rename(child, f".{moved}", src_dir_fd=inner, dst_dir_fd=top)
                        moved += 1
                os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _unlinked(name: str, folder_fd: int) -> bool:
    """Remove a name that is no folder; False if it is one."""
    try:
        os.unlink(name, dir_fd=folder_fd)
    except IsADirectoryError:
        return False
    return True
