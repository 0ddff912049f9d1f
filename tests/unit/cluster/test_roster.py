from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.reconcile import Goal, Phase
from outrider.cluster.roster import Add, Member, Release, changes

MEMBERS = st.lists(
    st.builds(
        Member,
        name=st.integers(0, 12).map(lambda n: f"r{n}"),
        goal=st.sampled_from(Goal),
        phase=st.sampled_from(Phase),
        load=st.integers(0, 3),
    ),
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


@given(desired=st.integers(0, 10), members=MEMBERS)
def test_after_the_changes_as_many_serve_as_are_wanted_and_only_one_kind_of_change_is_made(
    desired: int, members: list[Member]
) -> None:
    found = changes(desired, members)

    names = {member.name for member in members}
    added = [change.name for change in found if isinstance(change, Add)]
    released = [change.name for change in found if isinstance(change, Release)]
    serving = {member.name for member in members if member.goal is Goal.SERVE}
    assert len(serving) + len(added) - len(released) == desired
    assert not (added and released)
    assert set(released) <= serving
    assert len(set(added)) == len(added)
    assert not names & set(added)
