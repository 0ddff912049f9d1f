"""Changes a placement of experts as little as its new loads allow. Arrays are [layers, ranks, slots per rank]."""

import numpy as np

from outrider.workers.experts.packing import FloatArray, bin_loads, exchange, flat
from outrider.workers.experts.placement import IntArray, count_members

_COPY_SHARE = 0.5  # of what a rank may carry: copies heavier than that are hard to pack, so their expert gets another


def adjust(loads: FloatArray, present: IntArray, limit: FloatArray, parts: int) -> IntArray:
    """`present` with few changes, so that ranks carry `limit` [layers] at most where that can be had so.

    First spare copies go over to experts that outgrew theirs, then heavy ranks exchange with light ones of their part
    (a node, where routing groups stay whole on one).
    """
    layers, ranks, slots = present.shape
    rows = present.reshape(layers * parts, ranks // parts, slots)
    own = np.repeat(loads, parts, axis=0)  # [rows, experts]: what is not of the part has no copy in it
    limits = np.repeat(limit, parts)
    rows = _hand_copies_over(own, rows, limits)
    share = own / np.maximum(count_members(flat(rows), loads.shape[1]), 1)
    return exchange(share, rows, limits, passes=64).reshape(present.shape)


def _hand_copies_over(loads: FloatArray, packed: IntArray, limits: FloatArray) -> IntArray:
    """One copy at a time from the expert that needs it least to the one whose copies are heaviest, where worth it."""
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
        moved = _hand_over(packed[active], needy, donor, share)
        packed[active], active = moved, active[(moved != packed[active]).any(axis=(1, 2))]
    return packed


def _hand_over(packed: IntArray, needy: IntArray, donor: IntArray, share: FloatArray) -> IntArray:
    """The donor's slot on the lightest rank that has no copy of `needy` becomes one. Unchanged where there is none."""
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
    """`fresh` with parts, and ranks within parts, numbered so that each keeps as much as it can of what it holds."""
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
    """Pairs (row of `new`, row of `old`), those that share most first. Greedy."""
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
