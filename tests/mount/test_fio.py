"""fio writes and verifies through the mount: random, buffered, direct, mapped, appended."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Datastore, datastore, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ds(tmp_path_factory) -> Iterator[Datastore]:
    with datastore(tmp_path_factory.mktemp("fio"), size="4G", hosts=("a", "b")) as ds:
        yield ds


JOBS = {
    "random-buffered": ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--size=48M"],
    "random-direct": ["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--direct=1", "--size=48M"],
    "random-direct-aio": [
        "--rw=randwrite", "--bsrange=4k-256k", "--ioengine=libaio", "--iodepth=16", "--direct=1",
        "--size=96M",
    ],
    "random-mapped": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--size=32M"],
    "sequential": ["--rw=write", "--bs=1M", "--ioengine=psync", "--size=256M"],
    "unaligned": ["--rw=randwrite", "--bsrange=1k-70k", "--bs_unaligned=1", "--size=32M"],
    "mixed-with-fsync": [
        "--rw=randrw", "--bs=16k", "--ioengine=psync", "--fsync=16", "--size=32M",
    ],
    "sparse-with-truncate": [
        "--rw=randwrite", "--bs=64k", "--ioengine=psync", "--size=512M", "--io_size=32M",
    ],
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_fio_verifies_what_it_wrote_here_and_on_the_other_host(ds, job):
    path = ds.a.path / "fio"
    common = [f"--name={job}", "--verify=crc32c", "--verify_fatal=1", "--randseed=7"]
    common += ["--fallocate=none", "--allow_file_create=1", *JOBS[job]]
    try:
        _fio(path, *common, "--do_verify=1")
        if job != "mixed-with-fsync":  # it reads, too: nothing left to verify alone
            other = [word for word in common if not word.startswith(("--fsync", "--direct"))]
            _fio(ds.b.path / "fio", *other, "--verify_only=1", "--readonly")
    finally:
        path.unlink(missing_ok=True)


def _fio(path: Path, *words: str) -> None:
    run("fio", f"--filename={path}", "--output-format=terse", "--verify_state_save=0", *words)
