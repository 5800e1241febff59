"""Faults: real processes, really killed, stopped and cut off. All slow; some need mounts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import can_mount, enter_private_namespace


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("mount") and not can_mount():
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


@pytest.fixture(scope="session")
def private_mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is mounted here is seen by nobody else, nor are the records of who serves it."""
    enter_private_namespace()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMFS_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield
