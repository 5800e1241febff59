"""Looks at tasks of this machine, and what they say about a listing that was sent to one."""

import os
import platform
import subprocess
import sys
import threading

import pytest

from vmfs.fuse.readers import TAKEN_NS, Run, has_taken, look_at_call, look_at_run

IN_PIPE = """
import os, sys
sys.stdout.write("waits\\n"); sys.stdout.flush()
os.read(0, 1)
"""


def run(ns: int = 0, times: int = 0) -> Run:
    return Run(ns=ns, times=times)


@pytest.mark.parametrize(
    ("before", "now", "call", "taken"),
    [
        (None, run(), "217", True),
        (run(), None, "217", True),
        (run(), run(), None, True),
        (run(), run(), "217", False),
        (run(), run(TAKEN_NS), "217", False),
        (run(), run(times=1), "217", True),
        (run(), run(), "0", True),
        (run(), run(), "-1", True),
        (run(5), run(TAKEN_NS + 4, times=9), "running", False),
        (run(5), run(TAKEN_NS + 5), "running", True),
    ],
)
def test_listing_is_taken_by_who_is_out_of_the_call(before, now, call, taken):
    assert has_taken(before, now, call, machine="x86_64") is taken


def test_nothing_can_be_said_of_a_machine_whose_calls_are_not_known():
    assert has_taken(run(), run(), "217", machine="vax")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls")
def test_looks_tell_who_waits_and_how_much_it_was_run():
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
    assert (last.ns, last.times) > (first.ns, first.times)
    assert last.times > first.times, "it has waited for the child"
