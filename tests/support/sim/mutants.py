"""Faults of the protocol, seeded into single functions to see whether the checkers notice.

A mutant is a piece of a function's source and what to put in its place; the text must occur exactly
once, so that a mutant never becomes a no-op when the code changes.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Final


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault in one function."""

    name: str
    module: str
    function: str  # a function of the module, or Class.method
    old: str
    new: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The function with the fault in it, for the length of the block."""
        module = import_module(self.module)
        owner_name, _, name = self.function.rpartition(".")
        owner = getattr(module, owner_name) if owner_name else module
        original = inspect.getattr_static(owner, name)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.name}: {self.old!r} is not there once"
        names: dict[str, object] = {}
        code = compile(source.replace(self.old, self.new), f"<{self.name}>", "exec")
        exec(code, vars(module), names)
        replaced = dict(_importers(original, name))
        setattr(owner, name, names[name])
        for mod in replaced.values():
            setattr(mod, name, names[name])
        try:
            yield
        finally:
            setattr(owner, name, original)
            for mod in replaced.values():
                setattr(mod, name, original)


def _importers(original: object, name: str) -> list[tuple[str, object]]:
    """Modules that have imported a function by name."""
    return [
        (key, module)
        for key, module in list(sys.modules.items())
        if key.startswith(("vmfs", "lockd")) and vars(module).get(name) is original
    ]


MUTANTS: Final = (
    Mutant(
        "fence skipped",
        "lockd.machine.fencing",
        "_kill",
        "    if record.process != NO_PROCESS:\n",
        "    proof = FenceAnswer(result=FenceResult.FENCED, proof='assumed')\n"
        "    return turn.reply(session.id, request_id, proof)\n"
        "    if record.process != NO_PROCESS:\n",
    ),
    Mutant(
        "token not raised",
        "vmfs.ondisk.disk_lock",
        "DiskLock._acquired",
        "token=self.token + 1",
        "token=self.token",
    ),
    Mutant(
        "journal replayed before the fence",
        "vmfs.volume.recovery",
        "DeadHosts.recover",
        "        taken = await self._slots.take_over(seen)\n",
        "        await replay_journal(self._device, self._journals.region(index),"
        " self._journals.size, index)\n        taken = await self._slots.take_over(seen)\n",
    ),
    Mutant(
        "slot freed before the replay",
        "vmfs.volume.recovery",
        "DeadHosts.recover",
        "        if index < self._journals.count:\n",
        "        await self._slots.finish(taken)\n        if index < self._journals.count:\n",
    ),
    Mutant(
        "lock given up without writing back",
        "vmfs.locks.giving",
        "Giving._weaken",
        "    await self._revoke(entry.lock, to_mode)\n",
        "",
    ),
    Mutant(
        "journal not emptied before a lock is given up",
        "vmfs.txn.transaction",
        "Transactions._checkpoint_now",
        "    await self._journal.mark_done()\n",
        "",
    ),
    Mutant(
        "lock given up under an operation",
        "vmfs.locks.giving",
        "Giving.close",
        "entry.taking or entry.pinned_above(to_mode)",
        "entry.taking",
    ),
    Mutant(
        "everybody who holds a lock is stale",
        "vmfs.locks.decide",
        "judge",
        "    same = slot.generation == holder.generation and slot.owner == holder.owner\n",
        "    same = False\n",
    ),
    Mutant(
        "permit not checked",
        "vmfs.locks.permit",
        "GuardedDevice.write",
        "    await self._permit.enter()\n",
        "    self._permit._in_flight += 1\n",
    ),
    Mutant(
        "blocklist not durable",
        "lockd.machine.fencing",
        "_block",
        "turn.change(host, blocked=True)",
        "host.record = __import__('dataclasses').replace(host.record, blocked=True)",
    ),
    Mutant(
        "locks taken before the dead are recovered",
        "vmfs.volume.roll_call",
        "RollCall.settle",
        "        if not found.dead and not unknown:\n",
        "        if True:\n",
    ),
    Mutant(
        "recovery by another host not waited for at mount",
        "vmfs.volume.roll_call",
        "missing",
        "Missing(tuple(dead),",
        "Missing(tuple(slot for slot in dead if not slot.replayer),",
    ),
    Mutant(
        "slot freed without a new generation",
        "vmfs.locks.recovery",
        "SlotRecovery.finish",
        "taken.recovered().pack()",
        "taken.released().pack()",
    ),
    Mutant(
        "permit returned before the drain",
        "vmfs.locks.permit",
        "Permit._return_if_drained",
        "    if self._in_flight:\n",
        "    if False:\n",
    ),
    Mutant(
        "new start let in before the old one has ended",
        "lockd.machine.nexus",
        "register",
        "    if host is None or not host.open:\n",
        "    if True:\n",
    ),
    Mutant(
        "second recoverer not excluded",
        "vmfs.locks.recovery",
        "SlotRecovery.take_over",
        "    if rival is not None and rival != self._me:\n",
        "    if False:\n",
    ),
    Mutant(
        "reservation granted before the drain",
        "lockd.machine.reservation",
        "reserve",
        "missing={other.record.host_uuid for other in out}",
        "missing=set()",
    ),
    Mutant(
        "killed taken for dead",
        "lockd.machine.fencing",
        "_kill",
        "    begin(turn, host, by)\n",
        "    begin(turn, host, by)\n"
        "    from lockd.machine.nexus import process_exited\n"
        "    process_exited(turn, record.process, 'assumed')\n    return\n",
    ),
)

VOLUME_MUTANTS: Final = (
    Mutant(
        "lock given up with a transaction to replay",
        "vmfs.volume.volume",
        "Volume._revoke",
        "await self._ground.metadata.checkpoint()",
        "await self._ground.metadata.commit()",
    ),
    Mutant(
        "lock given up with nothing written back",
        "vmfs.volume.volume",
        "Volume._revoke",
        "await self._ground.metadata.checkpoint()",
        "pass",
    ),
)
"""For the whole simulation."""


__all__ = ["MUTANTS", "VOLUME_MUTANTS", "Mutant"]
