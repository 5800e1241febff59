"""The journal under every crash that a device can suffer, and a test of these tests.

The scenarios stand in `tests.support.journal_scenarios`. Here they run on the code as it is, and on
copies of it with one seeded fault each: a fault that no scenario notices fails the run.
"""

import pytest

from tests.support.journal_scenarios import SCENARIOS, Scenario
from tests.support.mutants import Kit, Mutant, loaded

REC = "vmfs.ondisk.journal_rec"
ORPHAN = "vmfs.ondisk.orphan_rec"
BUFFER = "vmfs.txn.buffer"
REPLAY = "vmfs.txn.replay"
JOURNAL = "vmfs.txn.journal"
RECOVERY = "vmfs.txn.recovery"
TXN = "vmfs.txn.transaction"

COMMIT_WRITE = "await self._device.write(commit.lv_offset, commit.pack())  # the commit point\n"
BODY_WRITE = "await self._device.write(self._layout.body_offset(half), body)\n"
FLUSH = "        await self._device.flush()\n"

MUTANTS = (
    Mutant(
        "no flush before the commit sector",
        JOURNAL,
        FLUSH + "        " + COMMIT_WRITE,
        "        " + COMMIT_WRITE,
    ),
    Mutant(
        "no flush after the commit sector",
        JOURNAL,
        "        " + COMMIT_WRITE + FLUSH,
        "        " + COMMIT_WRITE,
    ),
    Mutant(
        "commit sector before the body",
        JOURNAL,
        BODY_WRITE + FLUSH + "        " + COMMIT_WRITE,
        COMMIT_WRITE + FLUSH + "        " + BODY_WRITE,
    ),
    Mutant(
        "no flush before DONE",
        JOURNAL,
        FLUSH + "        self._newest = await write_done",
        "        self._newest = await write_done",
    ),
    Mutant(
        "DONE before the flush",
        JOURNAL,
        FLUSH + "        self._newest = await write_done(self._device, self._newest)\n",
        "        self._newest = await write_done(self._device, self._newest)\n" + FLUSH,
    ),
    Mutant(
        "no flush after DONE",
        JOURNAL,
        "    await device.flush()\n    return done",
        "    return done",
    ),
    Mutant("both transactions in one half", REC, "return sequence % 2", "return 0"),
    Mutant(
        "an unreplayed journal is opened",
        JOURNAL,
        "newest.state is not CommitState.DONE:",
        "newest.state is None:",
    ),
    Mutant(
        "a journal from the future is opened",
        JOURNAL,
        "newest.generation > generation:",
        "newest.generation > generation + 1000:",
    ),
    Mutant(
        "replay: no flush before DONE",
        RECOVERY,
        "    await device.flush()\n",
        "",
    ),
    Mutant(
        "replay: DONE before the writes",
        RECOVERY,
        "    for offset, data in runs:\n",
        "    await write_done(device, newest)\n    for offset, data in runs:\n",
    ),
    Mutant(
        "replay: never DONE",
        RECOVERY,
        "    await device.flush()\n    await write_done(device, newest)\n",
        "    await device.flush()\n",
    ),
    Mutant(
        "replay: only the first run",
        RECOVERY,
        "    for offset, data in runs:\n",
        "    for offset, data in runs[:1]:\n",
    ),
    Mutant("the older commit counts", REPLAY, "newest = found[-1]", "newest = found[0]"),
    Mutant(
        "DONE is replayed",
        REPLAY,
        "newest.state is CommitState.COMMITTED",
        "newest.state is not None",
    ),
    Mutant(
        "nothing is replayed",
        REPLAY,
        "newest is not None and newest.state is CommitState.COMMITTED",
        "False",
    ),
    Mutant("a lost commit sector passes", REPLAY, "if before != expected:", "if False:"),
    Mutant("another slot's journal passes", REPLAY, "if commit.slot != slot:", "if False:"),
    Mutant("body digest is not checked", REPLAY, "if not commit.matches(body):", "if False:"),
    Mutant(
        "commit sector digest is not checked", REC, "if digest != _digest(checked):", "if False:"
    ),
    Mutant(
        "own place is not checked",
        REC,
        'require(cls.NAME, address, "own LV offset", lv_offset, address)',
        "pass",
    ),
    Mutant(
        "digest without slot",
        REC,
        "self.slot, self.generation, self.sequence, self.lv_offset,",
        "0, self.generation, self.sequence, self.lv_offset,",
    ),
    Mutant(
        "digest without generation",
        REC,
        "self.slot, self.generation, self.sequence, self.lv_offset,",
        "self.slot, 0, self.sequence, self.lv_offset,",
    ),
    Mutant(
        "digest without sequence",
        REC,
        "self.slot, self.generation, self.sequence, self.lv_offset,",
        "self.slot, self.generation, 0, self.lv_offset,",
    ),
    Mutant(
        "digest without place",
        REC,
        "self.slot, self.generation, self.sequence, self.lv_offset,",
        "self.slot, self.generation, self.sequence, 0,",
    ),
    Mutant(
        "orphan digest is not checked",
        ORPHAN,
        "if digest != _digest(head + places):",
        "if False:",
    ),
    Mutant(
        "in place before the commit",
        TXN,
        "            await self._journal.append(runs)\n"
        "            self._journaled = staged\n"
        "            for offset, data in runs:\n"
        "                await self._device.write(offset, data)\n",
        "            for offset, data in runs:\n"
        "                await self._device.write(offset, data)\n"
        "            await self._journal.append(runs)\n"
        "            self._journaled = staged\n",
    ),
    Mutant(
        "never in place",
        TXN,
        "                await self._device.write(offset, data)\n",
        "                pass\n",
    ),
    Mutant("discard does nothing", TXN, "self._running.discard(offset, length)", "pass"),
    Mutant(
        "reads do not see what is committing",
        TXN,
        "for layer in (self._committing, self._running)\n",
        "for layer in (self._running,)\n",
    ),
    Mutant(
        "older layer on top",
        TXN,
        "for layer in (self._committing, self._running)\n",
        "for layer in (self._running, self._committing)\n",
    ),
    Mutant("a read ignores a commit that ended", TXN, "if ended == self._ended:", "if True:"),
    Mutant(
        "a replayable sector is not live",
        TXN,
        "for layer in (self._running, self._committing, self._journaled)\n"
        "            if layer is not None and len(layer)",
        "for layer in (self._running, self._committing)\n"
        "            if layer is not None and len(layer)",
    ),
    Mutant(
        "commit does not wait for the one under way",
        TXN,
        "return self._ended + (self._committing is not None) + 1",
        "return self._ended + 1",
    ),
    Mutant(
        "checkpoint without commit",
        TXN,
        "            await self._commit_running()\n        await self._journal.mark_done()",
        "            pass\n        await self._journal.mark_done()",
    ),
    Mutant("checkpoint without DONE", TXN, "await self._journal.mark_done()", "pass"),
    Mutant(
        "sync of data alone does not flush",
        TXN,
        "            await self._device.flush()\n            await self.commit()\n",
        "            await self.commit()\n",
    ),
    Mutant(
        "sync trusts a commit that had nothing to do",
        TXN,
        "if self._flushed < wanted:",
        "if False:",
    ),
    Mutant("an error in a commit is forgotten", TXN, "                self._fail(error)\n", ""),
    Mutant(
        "called back before the commit",
        TXN,
        "        callbacks, self._callbacks = self._callbacks, []\n",
        "        callbacks, self._callbacks = self._callbacks, []\n"
        "        for callback in callbacks:\n            callback()\n",
    ),
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_the_journal_keeps_its_promises(scenario: Scenario) -> None:
    with loaded() as kit:
        explored = await scenario(kit)

    if explored is not None:
        print(f"{scenario.__name__}: {explored}")
        assert explored.image_count > 10


@pytest.mark.slow
async def test_every_seeded_fault_is_noticed() -> None:
    survivors = []
    for mutant in MUTANTS:
        with loaded(mutant) as kit:
            if not await _is_killed(kit):
                survivors.append(mutant.name)

    print(f"killed {len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants")
    assert survivors == []


async def _is_killed(kit: Kit) -> bool:
    for scenario in SCENARIOS:
        try:
            await scenario(kit)
        except Exception:
            return True
    return False
