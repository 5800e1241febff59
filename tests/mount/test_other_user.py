"""Hosts, lockd and users that are not root: mounted by fusermount3, fenced by their own user."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounts import Process, force_unmount, run, watchdog

pytestmark = [pytest.mark.slow, pytest.mark.mount]

UID: Final = 65534
FUSE_DEVICE: Final = os.makedev(10, 229)


@pytest.fixture
def fuse_for_all(tmp_path: Path) -> Iterator[None]:
    """/dev/fuse as Debian's udev makes it, open to everybody; in the namespace of the tests."""
    node = tmp_path / "fuse"
    os.mknod(node, 0o020666, FUSE_DEVICE)
    node.chmod(0o666)
    run("mount", "--bind", node, "/dev/fuse")
    yield
    run("umount", "/dev/fuse")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of that user's; pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="vmfs-"))
    os.chown(path, UID, UID)
    monkeypatch.setenv("VMFS_RUNTIME_DIR", str(path / "run"))
    yield path
    shutil.rmtree(path)


def program(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "tests.support.other_user", str(UID), *words]


def sh(command: str) -> str:
    return run("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "sh", "-c", command)


def test_user_makes_mounts_and_recovers_a_datastore_of_his_own(
    fuse_for_all: None, home: Path
) -> None:
    lun, socket = home / "lun", home / "sock"
    tops = {name: home / name for name in ("a", "b", "c")}
    run(*program("vmfs", "mkfs", lun, "--size", "1G", "--label", "own", "--files", "400"))
    words: list[str | Path] = ["--lun", f"own={lun}", "--socket", socket, "--state", home / "state"]
    sh(f"mkdir {tops['a']} {tops['b']} {tops['c']}")
    started: dict[str, Process] = {}

    def mount(name: str) -> None:
        words = ["vmfs", "mount", lun, tops[name], "--lockd", socket, "--host", name]
        started[name] = Process(program(*words, "-o", "profile=test"))
        started[name].wait_for("vmfs: ready:")

    def end() -> None:
        for top in tops.values():
            force_unmount(top)
        for process in started.values():
            process.kill()

    with watchdog(end):
        try:
            lockd = started["lockd"] = Process(program("lockd", *words), address_space=64 << 30)
            lockd.wait_for("ready")
            mount("a")
            mount("b")

            assert sh(f"echo from a > {tops['a']}/f; cat {tops['b']}/f") == "from a\n"
            started["a"].kill()
            assert sh(f"echo from b > {tops['b']}/f; cat {tops['b']}/f") == "from b\n"
            with pytest.raises(PermissionError):
                list(tops["b"].iterdir())  # not even root, without allow_other
            mount("c")  # not before the journals of the dead are replayed
            left = subprocess.run(
                program("vmfs", "umount", tops["a"]), capture_output=True, text=True, check=False
            )
            for name in ("b", "c"):
                run(*program("vmfs", "umount", tops[name]))
                started[name].wait()
        finally:
            end()

    assert left.returncode == 1
    assert "has been replayed by another host already" in left.stderr
    run(*program("vmfs", "check", lun))
