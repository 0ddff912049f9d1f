"""Finds and removes a cluster's Ray actors and placement groups by name."""

import contextlib
from collections.abc import Collection, Sequence

import ray
from ray.util import get_placement_group
from ray.util.placement_group import remove_placement_group

from outrider.cluster.controller import record
from outrider.cluster.controller.gangs.processes import end_processes, live_groups, processes_of
from outrider.cluster.controller.names import controller_name, prefix


def remove_leftovers(cluster: str) -> list[str]:
    """Removes actors (also frozen ones), groups and the record of a killed run. Returns what it removed, by name."""
    found = remove_all_but((), cluster)
    record.forget(cluster)
    return found


def remove_all_but(kept: Collection[str], cluster: str) -> list[str]:
    """Removes every actor and group of the cluster whose name starts with none of `kept`. Returns their names."""
    found = [name for name in _named_actors(cluster) if not name.startswith(tuple(kept))]
    actors = sorted(found, key=lambda name: name != controller_name(cluster))
    _remove_actors(actors)
    groups = [name for name in live_groups(prefix(cluster)) if not name.startswith(tuple(kept))]
    for group in groups:
        remove_placement_group(get_placement_group(group))
    return [*actors, *groups]


def remove_controller(cluster: str) -> None:
    """Removes only the controller's actor; the ranks continue."""
    _remove_actors([controller_name(cluster)])


def _remove_actors(names: Sequence[str]) -> None:
    processes = processes_of(names)
    for name in names:
        with contextlib.suppress(ValueError):  # ended since it was listed
            ray.kill(ray.get_actor(name), no_restart=True)
    end_processes(processes.values())


def _named_actors(cluster: str) -> list[str]:
    return [actor for actor in ray.util.list_named_actors() if actor.startswith(prefix(cluster))]
