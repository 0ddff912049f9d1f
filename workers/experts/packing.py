"""Balanced packing, vectorized: the first axis of every array is a row, an independent problem.

Chooses the number of copies of each expert (owner) and the bin of each copy, so that the fullest bin is as light as
possible. Two copies of one owner are never in one bin. Does not know ranks, nodes or models.
"""

import numpy as np
from numpy.typing import NDArray

from outrider.workers.experts.placement import BoolArray, IntArray, count_members

FloatArray = NDArray[np.float64]
_PATIENCE = 4  # passes without improvement
_WORTH_TRYING = 1.01  # times the goal: rows below it are not packed again


def count_copies(loads: FloatArray, slots: int, most: int) -> IntArray:
    """Copies of each of [rows, experts]:

    `slots` in total, at most `most` each, with the heaviest copy as light as possible.

    Each spare slot goes to the expert with the heaviest copies, which is optimal for the heaviest copy.
    """
    rows, experts = loads.shape
    copies = np.ones((rows, experts), dtype=np.int64)
    every = np.arange(rows)
    share = spread_ties(loads)
    whole = share.copy()
    for _ in range(slots - experts):
        chosen = share.argmax(axis=1)
        copies[every, chosen] += 1
        now = copies[every, chosen]
        share[every, chosen] = np.where(now < most, whole[every, chosen] / now, -1.0)
    return copies


def spread_ties(loads: FloatArray) -> FloatArray:
    """Loads without zeros, so that experts without load also share spare slots evenly."""
    return np.asarray(loads + np.maximum(loads.sum(axis=1, keepdims=True), 1.0) * 1e-12)


def pack(loads: FloatArray, slots: int, bins: int, goal: FloatArray) -> IntArray:
    """The owner of each place of each bin, [rows, bins, places]. Also decides how many places each owner gets.

    `goal` [rows] is a sufficiently light fullest bin: rows below it are not improved further. If copies that are as
    light as possible cannot be packed within the goal, the heaviest owners are tried with fewer copies, which leaves
    some bins without them.
    """
    packed = _pack_once(loads, slots, bins, goal, bins)
    for most in range(bins - 1, bins - 6, -1) if slots > loads.shape[1] else ():
        full = fullest(loads, packed)
        again = np.flatnonzero(full > goal * _WORTH_TRYING)
        if most < 1 or most * loads.shape[1] < slots or not len(again):
            break
        other = _pack_once(loads[again], slots, bins, goal[again], most)
        better = fullest(loads[again], other) < full[again]
        packed[again[better]] = other[better]
    return packed


def _pack_once(loads: FloatArray, slots: int, bins: int, goal: FloatArray, most: int) -> IntArray:
    copies = count_copies(loads, slots, most)
    return exchange(loads / copies, deal(loads / copies, copies, bins), goal)


def fullest(loads: FloatArray, packed: IntArray) -> FloatArray:
    """The load of each row's fullest bin, [rows]. An owner's load is split evenly over its copies."""
    copies = np.maximum(count_members(flat(packed), loads.shape[1]), 1)
    return np.asarray(bin_loads(loads / copies, packed).max(axis=1))


def deal(share: FloatArray, copies: IntArray, bins: int) -> IntArray:
    """Assigns copies in descending order of load, `bins` at a time: the heaviest copy goes to the lightest bin, etc."""
    rows, owners = share.shape
    items = np.repeat(np.tile(np.arange(owners), rows), copies.ravel()).reshape(rows, -1)  # [rows, items]
    heaviest_first = np.argsort(-np.take_along_axis(share, items, axis=1), axis=1, kind="stable")
    rounds = np.take_along_axis(items, heaviest_first, axis=1).reshape(rows, -1, bins)
    dealt = np.empty_like(rounds)  # [rows, places, bins]
    full = np.zeros((rows, bins))
    for place in range(rounds.shape[1]):
        batch = rounds[:, place]
        order = np.argsort(full + _deferred(dealt[:, place - 1], batch, place), axis=1, kind="stable")
        np.put_along_axis(dealt[:, place], order, batch, axis=1)
        full += np.take_along_axis(share, dealt[:, place], axis=1)
    return dealt.transpose(0, 2, 1).copy()


def _deferred(last: IntArray, batch: IntArray, place: int) -> FloatArray | float:
    """Infinite for bins with the owner that continues from the last batch, so that they are filled last.

    By then that owner's copies have been assigned to other bins.
    """
    if not place:
        return 0.0
    return np.where(last == batch[:, :1], np.inf, 0.0)


def exchange(share: FloatArray, packed: IntArray, goal: FloatArray, passes: int = 12) -> IntArray:
    """Balances bins by exchanging items one for one: the heaviest bin with the lightest, and so on.

    Only bins above `goal` [rows] exchange. Partners shift in each pass, so that a bin meets different partners. A row
    that did not improve for some passes is dropped. Returns a new array, [rows, bins, places].
    """
    packed = packed.copy()
    active = np.arange(len(packed)) if packed.shape[1] > 1 else np.arange(0)
    best, since = np.full(len(packed), np.inf), np.zeros(len(packed), dtype=np.int64)
    for turn in range(passes):
        full = bin_loads(share[active], packed[active]).max(axis=1)
        since[active] = np.where(full < best[active] * (1 - 1e-4), 0, since[active] + 1)
        best[active] = np.minimum(best[active], full)
        active = active[(full > goal[active]) & (since[active] < _PATIENCE)]
        if not len(active):
            break
        packed[active] = _exchange_once(share[active], packed[active], goal[active], turn)
    return packed


def bin_loads(share: FloatArray, packed: IntArray) -> FloatArray:
    """The load of each bin, [rows, bins]."""
    return np.asarray(_shares(share, packed).sum(axis=2))


def _shares(share: FloatArray, packed: IntArray) -> FloatArray:
    return np.take_along_axis(share, flat(packed), axis=1).reshape(packed.shape)


def flat(packed: IntArray) -> IntArray:
    """[rows, bins * places]; also works without rows."""
    rows, bins, places = packed.shape
    return packed.reshape(rows, bins * places)


def _exchange_once(share: FloatArray, packed: IntArray, goal: FloatArray, turn: int) -> IntArray:
    """The best exchange of every heavy bin with its light partner, for all pairs at once."""
    weights = _shares(share, packed)  # [rows, bins, places]
    loads = weights.sum(axis=2)
    order = np.argsort(loads, axis=1)
    pairs = min(packed.shape[1] // 2, int((loads > goal[:, None]).sum(axis=1).max()))
    light, heavy = (
        np.roll(order[:, : packed.shape[1] // 2], -turn, axis=1)[:, :pairs],
        order[:, ::-1][:, :pairs],
    )  # [rows, pairs]
    row = np.arange(len(packed))[:, None]
    surplus = loads[row, heavy] - loads[row, light]
    cost = weights[row, heavy][..., :, None] - weights[row, light][..., None, :]  # [rows, pairs, places, places]
    usable = (cost > 0) & (cost < surplus[..., None, None]) & _apart(packed[row, heavy], packed[row, light])
    miss = np.where(usable, np.abs(cost - surplus[..., None, None] / 2), np.inf)
    best = miss.reshape(*surplus.shape, -1).argmin(axis=2)  # [rows, pairs]
    places = packed.shape[2]
    give, take = best // places, best % places
    wanted = (loads[row, heavy] > goal[:, None]) & np.isfinite(miss.reshape(*surplus.shape, -1).min(axis=2))
    given, taken = packed[row, heavy, give], packed[row, light, take]
    packed[row, heavy, give] = np.where(wanted, taken, given)
    packed[row, light, take] = np.where(wanted, given, taken)
    return packed


def _apart(heavy: IntArray, light: IntArray) -> BoolArray:
    """Whether the exchange of two places leaves no bin with two copies of one owner, [rows, pairs, places, places]."""
    same = heavy[..., :, None] == light[..., None, :]
    return np.asarray(~same.any(axis=3)[..., :, None] & ~same.any(axis=2)[..., None, :])
