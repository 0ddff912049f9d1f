"""Grids of cases of which half always run."""

import itertools
from collections.abc import Mapping

import pytest


def chequered(*axes: Mapping[str, object]) -> list[object]:
    """Cases for `parametrize`: every combination of the axes' values, by their names.

    As on a chessboard every second one is marked `full`. With three axes, any two of them whose third has two values or
    more always run in all their combinations.
    """
    cases = []
    for places in itertools.product(*(enumerate(axis.items()) for axis in axes)):
        marks = [pytest.mark.full] if sum(place for place, _ in places) % 2 else []
        names, values = zip(*(named for _, named in places), strict=True)
        cases.append(pytest.param(*values, id="-".join(names), marks=marks))
    return cases
