"""The block pool on its own: all or nothing, reference counts, and which cached block is forgotten first."""

from outrider.workers.engine.scheduling.blocks import BlockPool, blocks_needed, extend_keys


def keys_of(token_ids: list[int], block_size: int = 2, salt: bytes = b"") -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, token_ids, len(token_ids) // block_size, block_size, salt)
    return keys


def cached(pool: BlockPool, keys: list[bytes]) -> list[int]:
    """Takes a block for each key, publishes them and gives them back."""
    blocks = pool.take(len(keys))
    assert blocks is not None
    for block, key in zip(blocks, keys, strict=True):
        pool.publish(block, key)
    pool.release(blocks)
    return blocks


def test_a_request_too_large_for_the_pool_takes_nothing() -> None:
    pool = BlockPool(3)

    assert pool.take(4) is None
    assert pool.free == 3


def test_every_block_is_given_once() -> None:
    pool = BlockPool(5)

    assert sorted([*(pool.take(2) or []), *(pool.take(3) or [])]) == [0, 1, 2, 3, 4]
    assert pool.take(1) is None


def test_a_shared_block_is_free_when_its_last_holder_releases_it() -> None:
    pool, keys = BlockPool(2), keys_of([1, 2])
    blocks = cached(pool, keys)
    pool.share(blocks)
    pool.share(blocks)

    pool.release(blocks)
    assert (pool.free, pool.references(blocks[0])) == (1, 1)
    pool.release(blocks)
    assert (pool.free, pool.references(blocks[0])) == (2, 0)


def test_a_cached_block_is_found_until_it_is_taken_again() -> None:
    pool, keys = BlockPool(2), keys_of([1, 2])
    blocks = cached(pool, keys)

    assert pool.find(keys) == blocks
    pool.take(2)
    assert pool.find(keys) == []


def test_blocks_that_are_not_cached_are_taken_before_those_that_are() -> None:
    pool, keys = BlockPool(4), keys_of([1, 2, 3, 4])
    blocks = cached(pool, keys)

    assert set(pool.take(2) or []).isdisjoint(blocks)
    assert pool.find(keys) == blocks


def test_the_prefix_released_longest_ago_is_forgotten_first() -> None:
    pool, old, used = BlockPool(2), keys_of([1, 2]), keys_of([3, 4])
    cached(pool, old)
    blocks = cached(pool, used)
    first = pool.find(old)
    pool.share(first)
    pool.release(first)

    assert pool.take(1) == blocks
    assert pool.find(old) == first


def test_of_one_prefix_the_end_is_forgotten_first() -> None:
    pool, keys = BlockPool(3), keys_of([1, 2, 3, 4, 5, 6])
    blocks = cached(pool, keys)

    pool.take(1)

    assert pool.find(keys) == blocks[:2]


def test_an_equal_block_does_not_replace_the_cached_one() -> None:
    pool, keys = BlockPool(2), keys_of([1, 2])
    first, second = pool.take(2) or []
    pool.publish(first, keys[0])
    pool.publish(second, keys[0])

    pool.release([second])

    assert pool.find(keys) == [first]
    assert not pool.is_cached(second)


def test_a_key_stands_for_all_tokens_before_it_and_for_the_salt() -> None:
    same = keys_of([1, 2, 3, 4])

    assert same == keys_of([1, 2, 3, 4, 5])
    assert keys_of([9, 2, 3, 4])[1] != same[1]
    assert keys_of([1, 2, 3, 9])[0] == same[0]
    assert set(keys_of([1, 2, 3, 4], salt=b"other")).isdisjoint(same)


def test_free_among_counts_blocks_that_nobody_holds() -> None:
    pool = BlockPool(3)
    blocks = cached(pool, keys_of([1, 2, 3, 4]))
    pool.share(blocks[:1])

    assert pool.free_among(blocks) == 1


def test_a_block_begun_is_a_block_needed() -> None:
    assert [blocks_needed(slots, 16) for slots in (0, 1, 16, 17)] == [0, 1, 1, 2]
