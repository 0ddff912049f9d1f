from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.controller.reconcile import Goal, Phase
from outrider.cluster.controller.replicas.roster import Add, Member, Release, changes

MEMBERS = st.lists(
    st.builds(
        Member,
        name=st.integers(0, 12).map(lambda n: f"r{n}"),
        goal=st.sampled_from(Goal),
        phase=st.sampled_from(Phase),
        load=st.integers(0, 3),
        evicted=st.booleans(),
    ).filter(lambda member: member.phase is not Phase.DRAINING or member.goal is not Goal.SERVE),
    unique_by=lambda member: member.name,
    max_size=8,
)


def ready(name: str, load: int = 0, goal: Goal = Goal.SERVE) -> Member:
    return Member(name=name, goal=goal, phase=Phase.READY, load=load)


def test_as_many_as_are_wanted_are_left_alone() -> None:
    assert changes(2, [ready("r0"), ready("r1")]) == []


def test_new_replicas_take_the_first_names_that_nobody_has() -> None:
    assert changes(4, [ready("r1"), ready("r2", goal=Goal.DRAIN)]) == [Add("r0"), Add("r3"), Add("r4")]


def test_those_that_serve_least_leave_first_and_of_equals_the_youngest() -> None:
    loading = Member(name="r1", goal=Goal.SERVE, phase=Phase.STARTING)

    assert changes(1, [ready("r0", load=1), loading, ready("r2", load=2)]) == [Release("r1"), Release("r0")]
    assert changes(1, [ready("r0"), ready("r10"), ready("r9")]) == [Release("r10"), Release("r9")]


def test_an_evicted_one_serves_until_another_does_in_its_place() -> None:
    evicted = Member(name="r0", goal=Goal.SERVE, phase=Phase.READY, evicted=True)
    starting = Member(name="r2", goal=Goal.SERVE, phase=Phase.STARTING)

    assert changes(2, [evicted, ready("r1")]) == [Add("r2")]
    assert changes(2, [evicted, ready("r1"), starting]) == []
    assert changes(2, [evicted, ready("r1"), ready("r2")]) == [Release("r0")]
    assert changes(1, [evicted, ready("r1")]) == [Release("r0")]


@given(desired=st.integers(0, 10), members=MEMBERS)
def test_after_the_changes_as_many_are_to_stay_as_are_wanted_and_what_serves_is_not_let_go_too_early(
    desired: int, members: list[Member]
) -> None:
    found = changes(desired, members)

    by_name = {member.name: member for member in members}
    added = [change.name for change in found if isinstance(change, Add)]
    released = [by_name[change.name] for change in found if isinstance(change, Release)]
    serving = [member for member in members if member.goal is Goal.SERVE]
    staying = [member for member in serving if not member.evicted]
    left = [member for member in staying if member not in released]
    assert len(left) + len(added) == desired
    assert not (added and len(left) < len(staying))
    assert all(member in serving for member in released)
    assert len(set(added)) == len(added)
    assert not set(by_name) & set(added)
    before, after = (
        sum(member.phase is Phase.READY for member in some)
        for some in (serving, [member for member in serving if member not in released])
    )
    assert after >= min(before, desired)
