"""Settings for every test: hypothesis profiles, and the line that replays a failure."""

import os

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "gate", derandomize=True, deadline=None, max_examples=50, print_blob=True
)
hypothesis.settings.register_profile("dev", deadline=None, max_examples=50, print_blob=True)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=2_000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("VMFS_HYPOTHESIS", "gate"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Say how to run a failed test again, with the profile that it ran under."""
    report = (yield).get_result()
    if report.failed:
        profile = os.environ.get("VMFS_HYPOTHESIS", "gate")
        report.sections.append(
            ("replay", f"VMFS_HYPOTHESIS={profile} scripts/test '{item.nodeid}'")
        )
