"""Random work of several hosts in the same directories: see `tests.support.swarm`."""

from contextlib import AsyncExitStack

import pytest
from trio.testing import MockClock

from tests.support.swarm import Swarm, shown_tree
from tests.support.volumes import volume_lab

pytestmark = pytest.mark.slow

SEEDS = 4
"""In the gate; `test_many_swarms` has more."""


async def swarm(seed: int, *, cancelling: bool) -> None:
    async with volume_lab() as lab:
        async with AsyncExitStack() as stack:
            hosts = [
                await stack.enter_async_context(lab.host(f"h{n}")) for n in range(2 + seed % 2)
            ]
            work = Swarm(hosts, seed, cancelling=cancelling)
            await work.prepare()
            await work.run(tasks=3, steps=20)
            trees = [await shown_tree(host) for host in hosts]
            assert all(tree == trees[0] for tree in trees)
        await lab.assert_clean()


async def killed_swarm(seed: int) -> None:
    """The last host is killed in the middle; a host that comes later sees what the others see."""
    async with volume_lab() as lab:
        async with AsyncExitStack() as stack:
            hosts = [await stack.enter_async_context(lab.host(f"h{n}")) for n in range(3)]
            work = Swarm(hosts, seed)
            await work.prepare()
            work.kill_after(2, steps=20 + seed % 17, kill=lambda: lab.kill(hosts[2]))
            await work.run(tasks=3, steps=20)
            late = await stack.enter_async_context(lab.host("late"))
            trees = [await shown_tree(host) for host in (late, *hosts[:2])]
            assert all(tree == trees[0] for tree in trees)
        await lab.assert_clean()


@pytest.mark.parametrize("cancelling", [False, True])
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_hosts_agree_whatever_they_do(
    autojump_clock: MockClock, seed: int, *, cancelling: bool
) -> None:
    await swarm(seed, cancelling=cancelling)


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_others_go_on_when_a_host_dies(autojump_clock: MockClock, seed: int) -> None:
    await killed_swarm(seed)


@pytest.mark.parametrize("seed", range(100, 130))
async def test_many_swarms(autojump_clock: MockClock, seed: int) -> None:
    await swarm(seed, cancelling=bool(seed % 2))
    await killed_swarm(seed)
