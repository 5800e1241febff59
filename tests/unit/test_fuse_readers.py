"""Looks at tasks of this machine, and what they say about a listing that was sent to one."""

import os
import platform
import subprocess
import sys
import threading

import pytest

from vmfs.fuse.readers import TAKEN_NS, has_taken, look_at_call, look_at_run

IN_PIPE = """
import os, sys
sys.stdout.write("waits\\n"); sys.stdout.flush()
os.read(0, 1)
"""


@pytest.mark.parametrize(
    ("before", "now", "call", "taken"),
    [
        (None, 0, "217", True),
        (0, None, "217", True),
        (0, 0, None, True),
        (0, 0, "217", False),
        (0, TAKEN_NS, "217", False),
        (0, 0, "0", True),
        (0, 0, "-1", True),
        (5, TAKEN_NS + 4, "running", False),
        (5, TAKEN_NS + 5, "running", True),
    ],
)
def test_listing_is_taken_by_who_is_out_of_the_call(before, now, call, taken):
    assert has_taken(before, now, call, machine="x86_64") is taken


def test_nothing_can_be_said_of_a_machine_whose_calls_are_not_known():
    assert has_taken(0, 0, "217", machine="vax")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
def test_looks_tell_who_waits_and_how_long_it_was_run():
    thread = threading.get_native_id()
    assert look_at_call(thread) == "0", "who looks is in read(2)"
    first = look_at_run(thread)
    with subprocess.Popen(
        [sys.executable, "-c", IN_PIPE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"waits\n"
        while look_at_call(child.pid) == "running":
            os.sched_yield()  # it is on its way into the call
        assert look_at_call(child.pid) == "0"
        child.kill()
    assert look_at_call(child.pid) is None
    assert look_at_run(child.pid) is None
    last = look_at_run(thread)
    assert first is not None
    assert last is not None
    assert last > first
