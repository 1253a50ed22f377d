"""
The contract of online stores: every one inherits this class and adds a fixture named `store`.

Values are made of the head alone, with a few bytes behind it: what a store must know of them.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_platform.online.layout import key_prefix, key_suffix, meta_key, pack_head, read_head
from feature_platform.online.store import OnlineStore, WriteCounts

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFINITION = "0123456789abcdef"
MOMENT = 1_767_225_600_000_000
GENERATIONS = st.integers(0, 3) | st.integers(2**53 - 3, 2**53 - 1)
TIMES = st.integers(-2, 2) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**53, 2**53 + 1, 2**62, 2**62 + 1])
WRITES = st.lists(st.tuples(st.integers(0, 2), GENERATIONS, TIMES, st.booleans()), max_size=12)


def key(text: str, view: str = "profile") -> bytes:
    """Return the key of one user."""
    return key_prefix("shop", "user") + text.encode() + key_suffix(view)


def value(generation: int, micros: int = MOMENT, body: bytes = b"\xa1x", *, gone: bool = False) -> bytes:
    """Return a value with a head, and a body that is told apart."""
    return pack_head(0 if gone else 1, generation, micros, DEFINITION, is_tombstone=gone) + (b"" if gone else body)


def reference(writes: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], WriteCounts]:
    """Return what law L7 leaves of writes, in plain Python: the greatest (generation, time), at equal ones the last."""
    kept: dict[bytes, bytes] = {}
    written = removed = skipped = 0
    for one, new in writes:
        head, had = read_head(new), read_head(kept.get(one, b""))
        assert head is not None
        if had is not None and (head.generation, head.micros) < (had.generation, had.micros):
            skipped += 1
            continue
        written += not head.is_tombstone
        removed += head.is_tombstone and had is not None and not had.is_tombstone
        kept[one] = new
    return kept, WriteCounts(written, removed, skipped)


class OnlineStoreContract:
    """What every online store promises, whatever holds its bytes. The store of a test is empty."""

    def test_is_an_online_store(self, store: OnlineStore) -> None:
        """A store has every method of the protocol."""
        assert isinstance(store, OnlineStore)

    def test_an_empty_store_holds_nothing(self, store: OnlineStore) -> None:
        """A key that was never written reads as None, and so does each of several."""
        store.ping()
        assert store.get_many([key("a"), meta_key("shop", "profile")]) == [None, None]

    def test_no_keys_are_no_values(self, store: OnlineStore) -> None:
        """Asking for nothing and writing nothing is allowed."""
        assert store.get_many([]) == []
        assert store.put_many([]) == WriteCounts(0, 0, 0)

    def test_values_come_back_in_the_order_asked(self, store: OnlineStore) -> None:
        """Rows and metas come back in order, repeated ones repeatedly, unknown ones as None."""
        meta = meta_key("shop", "profile")
        store.put_many([(key("a"), value(1)), (key("b"), value(2))])
        assert store.put_meta(meta, value(1))
        assert store.get_many([meta, key("b"), key("?"), key("a"), key("b")]) == [value(1), value(2), None, value(1), value(2)]

    def test_async_reads_answer_the_same(self, store: OnlineStore) -> None:
        """The async read answers what the blocking one does, in one event loop and in the next."""
        store.put_many([(key("a"), value(1))])
        keys = [meta_key("shop", "profile"), key("a"), key("?")]

        async def read() -> list[list[bytes | None]]:
            try:
                return await asyncio.gather(*(store.get_many_async(keys) for _ in range(40)))
            finally:
                await store.aclose()

        for _ in range(2):
            assert asyncio.run(read()) == [[None, value(1), None]] * 40

    def test_keys_and_values_are_bytes(self, store: OnlineStore) -> None:
        """Braces, globs, commas, emoji, spaces, line ends and zero bytes in keys and values change nothing."""
        texts = ["}", "{", "a}:profile", "*", "[a]", "a\\,b", "🎬", "", " ", "a\r\nb", "\x00", "ü", "x" * 5000]
        items = {key(text): value(1, body=b"\xc4\x04" + bytes([0, index, 13, 10])) for index, text in enumerate(texts)}
        assert store.put_many(items.items()).written == len(texts)
        assert store.get_many(list(items)) == list(items.values())

    def test_many_values_are_written_and_read(self, store: OnlineStore) -> None:
        """More values than fit in one trip or one read are all there."""
        items = [(key(str(index)), value(1, body=b"\xcd" + index.to_bytes(2, "big"))) for index in range(10_500)]
        assert store.put_many(iter(items)) == WriteCounts(written=10_500)
        assert store.get_many([one for one, _ in items]) == [one for _, one in items]

    def test_a_later_generation_replaces_a_newer_time(self, store: OnlineStore) -> None:
        """A correction replaces the value whatever its time, and an earlier generation never does."""
        store.put_many([(key("a"), value(1, MOMENT))])
        assert store.put_many([(key("a"), value(2, MOMENT - 5))]) == WriteCounts(written=1)
        assert store.put_many([(key("a"), value(1, MOMENT + 5))]) == WriteCounts(skipped=1)
        assert store.get_many([key("a")]) == [value(2, MOMENT - 5)]

    def test_within_a_generation_the_newer_time_wins(self, store: OnlineStore) -> None:
        """Values of one generation may arrive in any order."""
        store.put_many([(key("a"), value(1, MOMENT))])
        assert store.put_many([(key("a"), value(1, MOMENT - 1))]) == WriteCounts(skipped=1)
        assert store.put_many([(key("a"), value(1, MOMENT + 1))]) == WriteCounts(written=1)
        assert store.get_many([key("a")]) == [value(1, MOMENT + 1)]

    def test_at_equal_times_the_later_write_wins(self, store: OnlineStore) -> None:
        """A key that stands several times in one call ends with its last write, as in calls of their own."""
        store.put_many([(key("a"), value(1, body=b"\x01")), (key("a"), value(1, body=b"\x02"))])
        assert store.get_many([key("a")]) == [value(1, body=b"\x02")]
        store.put_many([(key("a"), value(1, body=b"\x03"))])
        assert store.get_many([key("a")]) == [value(1, body=b"\x03")]

    def test_tombstones_are_counted_where_they_remove_something(self, store: OnlineStore) -> None:
        """A tombstone counts as removed where it replaces a value, not on nothing or another tombstone, and guards the key."""
        store.put_many([(key("a"), value(1))])
        gone = [(key(text), value(2, gone=True)) for text in "ab"]
        assert store.put_many(gone) == WriteCounts(removed=1)
        assert store.put_many(gone) == WriteCounts()
        assert store.put_many([(key("b"), value(1))]) == WriteCounts(skipped=1)
        assert store.get_many([key("a"), key("b")]) == [value(2, gone=True)] * 2
        assert store.put_many([(key("a"), value(1, gone=True))]) == WriteCounts(skipped=1)
        assert store.put_many([(key("b"), value(3))]) == WriteCounts(written=1)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(first=WRITES, second=WRITES)
    def test_newness_is_the_law(
        self, store: OnlineStore, first: list[tuple[int, int, int, bool]], second: list[tuple[int, int, int, bool]]
    ) -> None:
        """Any writes leave what law L7 says, and are counted as it says."""
        everything = store.sweep("shop", "user", "law", below_generation=2**53)
        assert everything >= 0
        items = [
            (key(str(user), "law"), value(generation, time, bytes([index]), gone=gone))
            for index, (user, generation, time, gone) in enumerate(first + second)
        ]
        counts = store.put_many(items[: len(first)]).plus(store.put_many(items[len(first) :]))
        kept, expected = reference(items)
        keys = [key(str(user), "law") for user in range(3)]
        assert store.get_many(keys) == [kept.get(one) for one in keys]
        assert counts == expected

    def test_two_writers_leave_the_newest(self, store: OnlineStore) -> None:
        """Writers that race, each in its own order, leave the newest value of every key."""
        users = [key(str(index)) for index in range(150)]

        def write(generations: list[int]) -> None:
            for generation in generations:
                store.put_many([(user, value(generation)) for user in users])

        orders = [list(range(0, 20, 2)), list(range(19, 0, -2))]
        threads = [threading.Thread(target=write, args=(order,)) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.get_many(users) == [value(19)] * len(users)

    def test_a_meta_moves_forward_only(self, store: OnlineStore) -> None:
        """A meta of an earlier generation or moment does not replace a later one, except by force."""
        meta = meta_key("shop", "profile")
        assert store.put_meta(meta, value(2, MOMENT))
        assert not store.put_meta(meta, value(1, MOMENT + 1))
        assert not store.put_meta(meta, value(2, MOMENT - 1))
        assert store.put_meta(meta, value(2, MOMENT, b"\x01"))
        assert store.get_many([meta]) == [value(2, MOMENT, b"\x01")]
        assert store.put_meta(meta, value(1, MOMENT), force=True)
        assert store.get_many([meta]) == [value(1, MOMENT)]

    def test_sweep_deletes_earlier_generations_of_one_view(self, store: OnlineStore) -> None:
        """A sweep takes values below a generation, counts the live ones, and touches no other view, entity, project or meta."""
        others = [
            key("a", "profile2"),
            key("a}:profile", "other"),
            b"shop:{user2:a}:profile",
            b"shop2:{user:a}:profile",
            meta_key("shop", "profile"),
        ]
        store.put_many([(one, value(1)) for one in others])
        store.put_many([(key(str(index)), value(1)) for index in range(250)])
        store.put_many([(key("}*[a]"), value(1)), (key("gone"), value(1, gone=True)), (key("new"), value(2))])
        assert store.sweep("shop", "user", "profile", below_generation=2) == 251
        assert store.get_many([key("0"), key("}*[a]"), key("gone"), key("new")]) == [None, None, None, value(2)]
        assert store.get_many(others) == [value(1)] * len(others)
        assert store.sweep("shop", "user", "profile", below_generation=2) == 0

    def test_sweep_takes_names_literally(self, store: OnlineStore) -> None:
        """Stars and brackets in a name mean themselves, so a sweep of one project takes nothing of another."""
        store.put_many([(b"sh*p:{user:a}:profile", value(1)), (key("a"), value(1))])
        assert store.sweep("sh*p", "user", "profile", below_generation=2) == 1
        assert store.sweep("sh[o]p", "user", "profile", below_generation=2) == 0
        assert store.get_many([key("a")]) == [value(1)]

    def test_sweep_deletes_values_before_a_time(self, store: OnlineStore) -> None:
        """A sweep takes values whose time is before the one given, and keeps those exactly at it, also past 2^53 and before 1970."""
        for edge in (MOMENT, -MOMENT, 2**53 + 1, 2**62 + 1):
            store.put_many([(key("old"), value(5, edge - 1)), (key("edge"), value(5, edge))])
            assert store.sweep("shop", "user", "profile", below_generation=0, before=edge) == 1
            assert store.get_many([key("old"), key("edge")]) == [None, value(5, edge)]
            store.sweep("shop", "user", "profile", below_generation=6)

    def test_a_sample_of_keys_is_of_one_view_and_bounded(self, store: OnlineStore) -> None:
        """Of few keys all come, tombstones' too, and none of another view, entity or project; of many, as many as are asked for."""
        assert store.sample_keys("shop", "user", "profile", seed=1, limit=10) == []
        store.put_many([(one, value(1)) for one in (key("a", "profile2"), b"shop:{user2:a}:profile", b"shop2:{user:a}:profile")])
        store.put_many([(key("}*[a]"), value(1)), (key("gone"), value(1, gone=True)), (key("b"), value(2))])
        found = store.sample_keys("shop", "user", "profile", seed=1, limit=10)
        assert sorted(found) == sorted([key("}*[a]"), key("gone"), key("b")])
        store.put_many([(key(str(index)), value(1)) for index in range(2500)])
        found = store.sample_keys("shop", "user", "profile", seed=1, limit=50)
        assert len(set(found)) == len(found) == 50

    def test_the_seed_decides_which_keys_are_sampled(self, store: OnlineStore) -> None:
        """One seed gives the same keys again; several together reach every key, and none is met by all."""
        keys = {key(str(index)) for index in range(3000)}
        store.put_many([(one, value(1)) for one in keys])
        samples = [set(store.sample_keys("shop", "user", "profile", seed=seed, limit=300)) for seed in range(150)]
        assert set(store.sample_keys("shop", "user", "profile", seed=0, limit=300)) == samples[0]
        assert set.union(*samples) == keys
        assert set.intersection(*samples) == set()

    def test_values_that_expire_are_read_until_then(self, store: OnlineStore) -> None:
        """A value with a far expiry is there, and a later write without one keeps it for good."""
        store.put_many([(key("a"), value(1))], expire_seconds=3600)
        assert store.get_many([key("a")]) == [value(1)]
        store.put_many([(key("a"), value(2))])
        assert store.get_many([key("a")]) == [value(2)]

    def test_a_closed_store_opens_again(self, store: OnlineStore) -> None:
        """Closing gives connections back and loses nothing, and a with block does it."""
        with store as same:
            same.put_many([(key("a"), value(1))])
        store.close()
        assert store.get_many([key("a")]) == [value(1)]
