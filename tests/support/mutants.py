"""Fresh copies of the transaction modules, whole or with one seeded fault.

A mutant is a piece of source text and what to put in its place. The text must occur exactly once,
so that a mutant never turns into a no-op when the code changes.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "vmfs.ondisk.journal_rec",
    "vmfs.ondisk.orphan_rec",
    "vmfs.txn.buffer",
    "vmfs.txn.replay",
    "vmfs.txn.journal",
    "vmfs.txn.recovery",
    "vmfs.txn.transaction",
    "vmfs.txn.orphans",
)
"""In the order in which they import each other."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault, seeded into one module."""

    name: str
    module: str
    old: str
    new: str

    def applied_to(self, source: str) -> str:
        """The source with the fault in it."""
        assert source.count(self.old) == 1, (
            f"mutant {self.name!r}: its text occurs {source.count(self.old)} times"
        )
        return source.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Kit:
    """The names that scenarios work with, from one set of modules."""

    Journal: Any
    JournalLayout: Any
    CommitSector: Any
    OrphanEntry: Any
    OrphanTable: Any
    Transactions: Any
    replay_journal: Any


@contextmanager
def loaded(mutant: Mutant | None = None) -> Iterator[Kit]:
    """Load the modules again, beside those that are loaded already."""
    before = {name: sys.modules.get(name) for name in MODULES}
    made: dict[str, ModuleType] = {}
    try:
        for name in MODULES:
            spec = importlib.util.find_spec(name)
            assert spec is not None, name
            assert spec.origin is not None, name
            source = Path(spec.origin).read_text(encoding="utf-8")
            if mutant is not None and mutant.module == name:
                source = mutant.applied_to(source)
            module = ModuleType(name)
            module.__spec__ = spec
            sys.modules[name] = made[name] = module
            exec(compile(source, spec.origin, "exec"), module.__dict__)
        names: dict[str, Any] = {}
        for module in made.values():
            names |= vars(module)
        yield Kit(**{name: names[name] for name in Kit.__slots__})
    finally:
        for name, module_before in before.items():
            if module_before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module_before
