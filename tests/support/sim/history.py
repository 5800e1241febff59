"""What hosts saw of the blocks that change by compare-and-write, and whether it has an order (I5).

Recorded at the hosts' end of the connection, so lost answers, late answers and restarts of lockd
are in it. Moments are numbers, one for each call and each return: virtual time stands still while
anybody works. A power cut takes back what was not durable: what came before it is a history of its
own.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from lockd.client import LockClient
from lockd.protocol.messages import Conflict, Good, Miscompare
from tests.support.linearizability import NotLinearizable, Operation, RegisterModel, check

_GOOD: Final = "good"


class BlockHistory:
    """Compare-and-writes and reads of single blocks, by all hosts."""

    def __init__(self, block: Callable[[int], bytes]) -> None:
        """`block` reads one as it stands: the state from which a history goes on."""
        self._block = block
        self._parts: dict[int, list[Operation]] = defaultdict(list)
        self._initial: dict[int, bytes] = {}
        self._moment = 0

    def record(self, client: LockClient, who: str) -> None:
        """Note down every compare-and-write that goes through `client` from now on."""
        compare_and_write = client.compare_and_write

        async def recorded(
            lba: int, expected: bytes, new: bytes, *, durable: bool, label: str
        ) -> Good | Miscompare | Conflict:
            with self._operation(lba, who, "cas", (expected, new)) as returned:
                answer = await compare_and_write(lba, expected, new, durable=durable, label=label)
                match answer:
                    case Good():
                        returned(_GOOD)
                    case Miscompare(current=current):
                        returned(current)
                    case Conflict():
                        pass  # nothing happened; as good as an outcome that is not known
                return answer

        client.compare_and_write = recorded  # type: ignore[method-assign]

    @contextmanager
    def read(self, lba: int, who: str) -> Iterator[Callable[[bytes], None]]:
        """A read of one block; say what it read before the block is left."""
        with self._operation(lba, who, "read", None) as returned:
            yield returned

    def knows(self, lba: int) -> bool:
        """Whether the block was ever compared and written."""
        return lba in self._parts

    def check(self) -> None:
        """Hold what was recorded to one order for each block, and begin anew.

        Raises:
            NotLinearizable: there is no such order.
        """
        for lba, part in self._parts.items():
            try:
                check(part, RegisterModel(initial=self._initial[lba]))
            except NotLinearizable as error:
                raise NotLinearizable(f"I5: {error}") from error
        self._parts.clear()
        self._initial.clear()

    @contextmanager
    def _operation(
        self, lba: int, who: str, verb: str, argument: tuple[bytes, bytes] | None
    ) -> Iterator[Callable[[bytes | str], None]]:
        """Kept with the result that is said inside; without one its outcome is not known."""
        self._initial.setdefault(lba, self._block(lba))
        part, called = self._parts[lba], self._next()
        place = len(part)
        operation = Operation(
            client=who, key=f"block {lba:#x}", verb=verb, argument=argument, called=called
        )
        part.append(operation)

        def returned(result: bytes | str) -> None:
            part[place] = Operation(
                client=who,
                key=operation.key,
                verb=verb,
                argument=argument,
                result=result,
                called=called,
                returned=self._next(),
            )

        yield returned

    def _next(self) -> int:
        self._moment += 1
        return self._moment
