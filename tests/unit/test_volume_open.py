"""Opening and closing a volume, through the whole stack on a LUN in memory."""

import trio.testing

from tests.support.volumes import creation, volume_lab
from vmfs.files.attributes import ROOT_ADDRESS


async def test_open_create_write_read_close_reopen(autojump_clock: trio.testing.MockClock) -> None:
    async with volume_lab() as lab:
        async with lab.host("a") as a:
            assert not a.read_only
            _, file = await a.namespace.create(ROOT_ADDRESS, b"f", creation())
            await file.write(0, b"hello")
            assert await file.read(0, 100) == b"hello"
            await file.write(5, b"x" * 5_000_000)
            await file.release()
        async with lab.host("b") as b:
            found = await b.namespace.lookup(ROOT_ADDRESS, b"f")
            assert found.size == 5_000_005
            file = await b.namespace.open(found.address, writing=False)
            assert await file.read(0, 10_000_000) == b"hello" + b"x" * 5_000_000
            await file.release()
