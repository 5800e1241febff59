"""Tests with real mounts: a mount namespace of their own, and a reason where they cannot run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import can_mount, enter_private_namespace


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.mount)
            if not can_mount():
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


@pytest.fixture(scope="session", autouse=True)
def _private_namespace() -> None:
    if can_mount():
        enter_private_namespace()


@pytest.fixture(scope="session", autouse=True)
def _runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The records of who serves which mount go to a directory of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMFS_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield
