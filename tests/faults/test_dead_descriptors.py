"""lockd starts although somebody has a file open on a mount that died, or that waits for lockd."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockd.server.processes import find_openers
from tests.support.loop import loop_device, needs_loop
from tests.support.mounts import Datastore, datastore

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("private_mounts")]


@contextmanager
def process_with(path: Path) -> Iterator[int]:
    """Another process that has a file open for writing."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd]) as process:
        os.close(fd)
        yield process.pid
        process.kill()


def openers(ds: Datastore) -> str:
    strangers, _ = find_openers(ds.lun, frozenset())
    return "; ".join(strangers)


def test_descriptor_on_a_dead_mount_is_passed_over(tmp_path):
    with datastore(tmp_path, hosts=("a",)) as ds, process_with(ds.a.path / "disk") as pid:
        assert f"pid {ds.a.pid} " in openers(ds)

        ds.a.process.kill()

        assert f"pid {ds.lockd.pid} " in openers(ds)
        assert f"pid {pid} " not in openers(ds)


def test_descriptor_on_a_mount_that_does_not_answer_is_not_asked(tmp_path):
    with datastore(tmp_path, hosts=("a",)) as ds, process_with(ds.a.path / "disk") as pid:
        os.kill(ds.a.pid, signal.SIGSTOP)  # a question to it would wait for ever
        try:
            found = openers(ds)
        finally:
            os.kill(ds.a.pid, signal.SIGCONT)

        assert f"pid {ds.a.pid} " in found
        assert f"pid {pid} " not in found


@needs_loop
def test_nor_is_it_asked_who_has_a_block_device_open(tmp_path):
    image = tmp_path / "device.img"
    image.write_bytes(bytes(1 << 20))
    with (
        loop_device(image) as node,
        datastore(tmp_path, hosts=("a",)) as ds,
        process_with(ds.a.path / "disk") as pid,
        process_with(node) as opener,
    ):
        with (ds.a.path / "disk").open("r+b") as file:
            file.write(bytes(512))  # what the kernel has cached of the file is then out of date
        os.kill(ds.a.pid, signal.SIGSTOP)
        end = threading.Timer(5, os.kill, (ds.a.pid, signal.SIGCONT))
        end.start()
        try:
            begun = time.monotonic()
            strangers, _ = find_openers(node, frozenset())
            took = time.monotonic() - begun
        finally:
            end.cancel()
            os.kill(ds.a.pid, signal.SIGCONT)

        found = "; ".join(strangers)
        assert f"pid {opener} " in found
        assert f"pid {pid} " not in found
        assert took < 4
