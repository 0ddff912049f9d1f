"""Which tokens the drafting head keeps."""

from pathlib import Path

import numpy as np

from outrider.workers.training.draft_head import frequencies, most_frequent


def test_the_fewest_tokens_that_cover_the_share_are_kept_in_ascending_order() -> None:
    shares = np.array([0.05, 0.4, 0.1, 0.3, 0.15])

    assert most_frequent(shares, 0.65).tolist() == [1, 3]
    assert most_frequent(shares, 0.75).tolist() == [1, 3, 4]


def test_tokens_that_must_be_there_are_there_once() -> None:
    shares = np.array([0.05, 0.4, 0.1, 0.3, 0.15])

    assert most_frequent(shares, 0.65, always=(0, 1)).tolist() == [0, 1, 3]


def test_each_kind_of_text_counts_by_its_share_however_long_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "train.code.npy", np.array([0] * 90 + [1] * 10, dtype=np.uint16))
    np.save(tmp_path / "train.prose.npy", np.array([2, 2], dtype=np.uint16))

    found = frequencies(tmp_path, 4, {"code": 0.5, "prose": 0.5})

    assert np.allclose(found, [0.45, 0.05, 0.5, 0])
