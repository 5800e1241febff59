"""fio writes and verifies through the mount: random, buffered, direct, mapped, appended."""

from collections.abc import Iterator

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
def test_fio_verifies_what_it_wrote_and_the_other_host_reads_the_same(ds, job):
    path, other = ds.a.path / "fio", ds.b.path / "fio"
    common = [f"--name={job}", "--verify=crc32c", "--verify_fatal=1", "--randseed=7"]
    common += ["--fallocate=none", "--verify_state_save=0", *JOBS[job]]
    try:
        run("fio", f"--filename={path}", "--output-format=terse", *common, "--do_verify=1")
        assert run("sha256sum", path).split()[0] == run("sha256sum", other).split()[0]
    finally:
        path.unlink(missing_ok=True)
