"""Every rank has one place, and the groups and links are those of the places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.parallel.mesh import Mesh, Place

MESHES = st.builds(Mesh, pipeline=st.integers(1, 4), data=st.integers(1, 4), tensor=st.integers(1, 4))


@given(mesh=MESHES)
def test_every_rank_has_a_place_of_its_own(mesh: Mesh) -> None:
    places = [mesh.place(rank) for rank in range(mesh.size)]

    assert len(set(places)) == mesh.size == mesh.pipeline * mesh.data * mesh.tensor
    assert places[0] == Place(0, 0, 0)
    assert places[mesh.sampler] == Place(mesh.pipeline - 1, 0, 0)


@given(mesh=MESHES)
def test_a_group_is_of_those_that_share_all_but_one_coordinate(mesh: Mesh) -> None:
    for rank in range(mesh.size):
        own = mesh.place(rank)
        tensor = [r for r in range(mesh.size) if (mesh.place(r).stage, mesh.place(r).data) == (own.stage, own.data)]
        stage = [r for r in range(mesh.size) if mesh.place(r).stage == own.stage]
        assert list(mesh.tensor_group(rank)) == tensor
        assert list(mesh.stage_group(rank)) == stage
        assert all(group in mesh.groups().values() for group in (tuple(tensor), tuple(stage)) if len(group) > 1)


@given(mesh=MESHES)
def test_every_rank_but_the_leader_is_reached_from_it(mesh: Mesh) -> None:
    routes = mesh.routes()
    reached = {0}
    for _ in range(mesh.size):
        reached |= {receiver for sender, receiver in routes if sender in reached}

    assert reached == set(range(mesh.size))
    assert len(set(routes)) == len(routes)
    assert all(sender != receiver for sender, receiver in routes)


@pytest.mark.parametrize(
    ("mesh", "name"),
    [
        (Mesh(pipeline=2), "rank 1 (stage 1, layers 7..12)"),
        (Mesh(tensor=2), "rank 1 (stage 0, layers 0..6, tensor 1)"),
        (Mesh(data=2, tensor=2), "rank 1 (stage 0, layers 0..6, data 0, tensor 1)"),
    ],
)
def test_a_rank_is_named_by_the_coordinates_that_there_are(mesh: Mesh, name: str) -> None:
    assert mesh.describe(((0, 7), (7, 13)), 1) == name
