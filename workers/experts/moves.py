"""Adapts a placement of experts to new loads with few moves. Arrays are [layers, ranks, slots per rank]."""

import numpy as np

from outrider.workers.experts.packing import FloatArray, bin_loads, exchange, flat
from outrider.workers.experts.placement import IntArray, count_members

_COPY_SHARE = 0.5  # of a rank's limit: an expert with heavier copies gets another, since those are hard to pack


def adjust(loads: FloatArray, present: IntArray, limit: FloatArray, parts: int) -> IntArray:
    """`present` with few changes, so that a rank's load is at most `limit` [layers] where possible.

    First spare copies are reassigned to experts whose load grew. Then heavily loaded ranks exchange experts with
    lightly loaded ones of the same part (a node, if routing groups stay on one node).
    """
    layers, ranks, slots = present.shape
    rows = present.reshape(layers * parts, ranks // parts, slots)
    own = np.repeat(loads, parts, axis=0)  # [rows, experts]: experts of other parts have no copy here
    limits = np.repeat(limit, parts)
    rows = _reassign_copies(own, rows, limits)
    share = own / np.maximum(count_members(flat(rows), loads.shape[1]), 1)
    return exchange(share, rows, limits, passes=64).reshape(present.shape)


def _reassign_copies(loads: FloatArray, packed: IntArray, limits: FloatArray) -> IntArray:
    """Reassigns copies, one at a time, from the expert that needs it least to the one with the heaviest copies.

    A copy is only reassigned if that lowers the heaviest load.
    """
    packed = packed.copy()
    active = np.arange(len(packed))
    experts = loads.shape[1]
    for _ in range(packed.shape[1] * packed.shape[2]):
        own = loads[active]
        copies = count_members(flat(packed[active]), experts)
        share = np.where(copies > 0, own / np.maximum(copies, 1), -1.0)
        without = np.where(copies > 1, own / np.maximum(copies - 1, 1), np.inf)  # a copy's load with one copy less
        needy, donor = share.argmax(axis=1), without.argmin(axis=1)
        every = np.arange(len(active))
        worth = (share[every, needy] > _COPY_SHARE * limits[active]) & (
            without[every, donor] < share[every, needy] * 0.999
        )
        worth &= copies[every, needy] < packed.shape[1]
        active, needy, donor, share = active[worth], needy[worth], donor[worth], share[worth]
        if not len(active):
            break
        moved = _reassign_one(packed[active], needy, donor, share)
        packed[active], active = moved, active[(moved != packed[active]).any(axis=(1, 2))]
    return packed


def _reassign_one(packed: IntArray, needy: IntArray, donor: IntArray, share: FloatArray) -> IntArray:
    """Replaces the donor's slot on its lightest rank without a copy of `needy`. Unchanged if there is no such rank."""
    given = packed == donor[:, None, None]  # [rows, ranks, slots]
    has = (packed == needy[:, None, None]).any(axis=2)
    rank_load = np.where(given.any(axis=2) & ~has, bin_loads(share, packed), np.inf)
    rank = rank_load.argmin(axis=1)
    row = np.flatnonzero(np.isfinite(rank_load.min(axis=1)))
    packed = packed.copy()
    slot = given[row, rank[row]].argmax(axis=1)
    packed[row, rank[row], slot] = needy[row]
    return packed


def nearest_order(fresh: IntArray, present: IntArray, parts: int) -> IntArray:
    """`fresh` with its parts, and the ranks within parts, renumbered so that ranks keep most of their experts."""
    ordered = np.empty_like(fresh)
    for layer in range(len(fresh)):
        nodes = fresh[layer].reshape(parts, -1)
        before = present[layer].reshape(parts, -1)
        for new, old in _match(nodes, before):
            ranks = nodes[new].reshape(-1, fresh.shape[2])
            old_ranks = before[old].reshape(-1, fresh.shape[2])
            into = ordered[layer].reshape(parts, -1, fresh.shape[2])[old]
            for new_rank, old_rank in _match(ranks, old_ranks):
                into[old_rank] = ranks[new_rank]
    return ordered


def _match(new: IntArray, old: IntArray) -> list[tuple[int, int]]:
    """Pairs (row of `new`, row of `old`), chosen greedily by the number of shared experts."""
    experts = int(max(new.max(), old.max())) + 1
    shared = np.minimum(count_members(new, experts)[:, None], count_members(old, experts)[None]).sum(axis=2)
    pairs: list[tuple[int, int]] = []
    free_new, free_old = np.ones(len(new), dtype=bool), np.ones(len(old), dtype=bool)
    for place in np.argsort(-shared, axis=None, kind="stable"):
        row, column = divmod(int(place), len(old))
        if free_new[row] and free_old[column]:
            free_new[row] = free_old[column] = False
            pairs.append((row, column))
    return pairs
