"""`vmfs` or `lockd` as another user, who perhaps may not even read the interpreter.

    python -m tests.support.other_user UID PROGRAM ARGUMENT...

Everything is imported first; then root is given up for good, and the program begins.
"""

import ctypes
import importlib
import os
import pkgutil
import signal
import sys
from types import ModuleType
from typing import Final

import lockd
import vmfs

PROGRAMS: Final = {"vmfs": "vmfs.cli.main", "lockd": "lockd.cli.lockd"}

LATER: Final = ("difflib", "encodings.ascii", "encodings.latin_1")
"""Modules of the interpreter that are else imported where they are first used."""

_PR_SET_PDEATHSIG: Final = 1


def import_all(package: ModuleType) -> None:
    """Import a package with all that is in it."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def become(uid: int) -> None:
    """Give root up. Who changes its user no longer dies with its parent unless it says so again."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """See the module."""
    uid, program = int(sys.argv[1]), sys.argv[2]
    import_all(vmfs)
    import_all(lockd)
    for name in LATER:
        importlib.import_module(name)
    become(uid)
    sys.argv[:] = [program, *sys.argv[3:]]
    importlib.import_module(PROGRAMS[program]).main()


if __name__ == "__main__":
    main()
