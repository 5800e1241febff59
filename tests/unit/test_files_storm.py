"""Property: whatever is done, in whatever order, the volume does what the model does.

Every example ends with a check of the LUN that finds nothing: after a clean close, after a kill,
and after two hosts took turns. The steps of an example are data (`tests.support.storm`), so
hypothesis shrinks a failure to the few that matter.
"""

import random

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.build import tiny_request
from tests.support.model import Model
from tests.support.storm import NAMES, SIZES, Step, Storm, Verb, is_one_of, tree
from tests.support.volumes import volume_lab
from vmfs.errors import VmfsError
from vmfs.ondisk.descriptor import VolumeFlag

VERBS = [*Verb, Verb.CREATE, Verb.MKDIR, Verb.WRITE, Verb.WRITE, Verb.RENAME, Verb.TRUNCATE]

STEPS = st.lists(
    st.builds(
        Step,
        verb=st.sampled_from(VERBS),
        one=st.integers(0, 7),
        two=st.integers(0, 7),
        name=st.sampled_from(NAMES),
        other=st.sampled_from(NAMES),
        at=st.sampled_from(SIZES),
        size=st.sampled_from(SIZES),
    ),
    max_size=40,
)
FLAGS = st.sampled_from([VolumeFlag.NONE, VolumeFlag.NO_RESIDENT])

storms = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def random_steps(seed: int, count: int) -> list[Step]:
    rng = random.Random(seed)
    return [
        Step(
            verb=rng.choice(VERBS),
            one=rng.randrange(8),
            two=rng.randrange(8),
            name=rng.choice(NAMES),
            other=rng.choice(NAMES),
            at=rng.choice(SIZES),
            size=rng.choice(SIZES),
        )
        for _ in range(count)
    ]


def run(steps: list[Step], flags: VolumeFlag = VolumeFlag.NONE, *, crash: bool = False) -> None:
    async def main() -> None:
        async with volume_lab(tiny_request(flags=flags)) as lab:
            async with lab.host("a") as a:
                storm = Storm(a, Model())
                await storm.run(steps)
                await storm.compare()
                if crash:
                    lab.kill(a)
                else:
                    await storm.close_all()
            async with lab.host("b") as b:
                await trio.sleep(1)
                found = await tree(b)
                assert b.namespace.orphans.count == 0
                if crash:
                    assert is_one_of(found, [*storm.history, storm.model])
                else:
                    assert found == storm.model.tree()
            await lab.assert_clean()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def run_until_killed(steps: list[Step], writes: int) -> None:
    """The host dies in the middle of something, after so many writes."""

    async def main() -> None:
        async with volume_lab() as lab:
            async with lab.host("a") as a:
                storm = Storm(a, Model())
                await storm.run([])
                lab.kill_after(a, writes)
                for step in steps:
                    try:
                        await storm.step(step)
                    except (VmfsError, AssertionError):
                        if not lab.is_dead(a):
                            raise
                    storm.history.append(storm.model.clone())
                    if lab.is_dead(a):
                        break
                lab.kill(a)
            async with lab.host("b") as b:
                await trio.sleep(1)
                assert is_one_of(await tree(b), storm.history)
                assert b.namespace.orphans.count == 0
            await lab.assert_clean()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def run_in_turns(steps: list[Step]) -> None:
    async def main() -> None:
        async with volume_lab() as lab:
            async with lab.host("a") as a, lab.host("b") as b:
                storm = Storm(a, Model())
                await storm.run_in_turns(steps, [a, b])
                await storm.compare()
                storm.volume = a if storm.volume is b else b
                await storm.compare()
            await lab.assert_clean()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.slow
@storms
@given(steps=STEPS, flags=FLAGS)
def test_volume_does_what_the_model_does(steps: list[Step], flags: VolumeFlag) -> None:
    run(steps, flags)


@pytest.mark.slow
@storms
@given(steps=STEPS, flags=FLAGS)
def test_killed_volume_shows_a_state_since_the_last_sync(
    steps: list[Step], flags: VolumeFlag
) -> None:
    run(steps, flags, crash=True)


@pytest.mark.slow
@storms
@given(steps=STEPS, writes=st.integers(0, 200))
def test_volume_killed_within_an_operation_shows_all_of_it_or_nothing(
    steps: list[Step], writes: int
) -> None:
    run_until_killed(steps, writes)


@pytest.mark.slow
@storms
@given(steps=STEPS)
def test_two_hosts_in_turns_do_what_the_model_does(steps: list[Step]) -> None:
    run_in_turns(steps)


def test_one_storm() -> None:
    run(random_steps(1, 25))


def test_one_storm_and_a_kill() -> None:
    run(random_steps(2, 25), crash=True)


def test_one_storm_cut_short() -> None:
    run_until_killed(random_steps(4, 25), 20)


def test_one_storm_of_two_hosts() -> None:
    run_in_turns(random_steps(3, 25))
