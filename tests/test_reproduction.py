"""Training sets that can be made again: the card beside a dataset, and whether it would come out the same today."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline_project import DAY, HOUR, T0, instants, store_of, user, watches, write

from feature_platform import Feature, FeatureStore, FeatureView
from feature_platform.errors import DatasetCardError
from feature_platform.offline.card import CARD_VERSION, CardPartition, card_path, content_sha256, file_sha256, read_card
from feature_platform.offline.reproduction import Difference, differences, differing_rows, entity_path

NOW = T0 + 3 * DAY
PROFILE = FeatureView(
    "profile",
    entity=user,
    sources=[watches],
    query="select user_id, count(*) as n, max(minutes) as longest from watches group by user_id",
    features=[Feature("n", int, default=-1), Feature("longest", float)],
    schedule="@daily",
    start=T0,
    ttl=2 * DAY,
)
WATCHES = [("ann", HOUR, 5.0), ("bob", 2 * HOUR, None), ("ann", DAY + HOUR, 7.0)]


def watched(rows: list[tuple[str, timedelta, float | None]]) -> pa.Table:
    """Return watches: who, when after T0, for how long."""
    minutes = pa.array([length for _, _, length in rows], pa.float64())
    return pa.table({"user_id": [who for who, _, _ in rows], "at": instants(*(offset for _, offset, _ in rows)), "minutes": minutes})


def labelled(*labels: int) -> pa.Table:
    """Return entity rows with labels: ann, bob and zoe on the second day, then on the third."""
    times = instants(*[DAY + 2 * HOUR] * 3, *[2 * DAY + 2 * HOUR] * 3)
    rows = pa.table({"user_id": ["ann", "bob", "zoe"] * 2, "event_timestamp": times, "label": [0, 1, 0, 1, 0, 1]})
    return rows if not labels else rows.set_column(2, "label", pa.array(labels))


class Made:
    """A dataset with its card, and the project that made it."""

    def __init__(self, root: Path) -> None:
        self.root, self.dataset = root, root / "training" / "set.parquet"
        write(root, watched(WATCHES))
        self.store = store_of(root, PROFILE)
        self.store.compute(now=NOW)
        (root / "labels").mkdir()
        pq.write_table(labelled(), root / "labels" / "first.parquet")
        self.ask(root / "labels").to_parquet(self.dataset, card=True)

    def ask(self, entity_df: Any, store: FeatureStore | None = None) -> Any:
        """Ask the dataset's question of some entity rows."""
        return (store or self.store).get_historical_features(entity_df, ["profile:n", "profile:longest"], statuses=True)

    def differences(self, store: FeatureStore | None = None) -> list[Difference]:
        """Compare the card with what is there."""
        used = store or self.store
        return differences(read_card(self.dataset), self.dataset, used.registry, used.offline)

    def joined_again(self, store: FeatureStore | None = None) -> list[Difference]:
        """Join again, and compare the rows."""
        today = self.root / "today.parquet"
        path = entity_path(read_card(self.dataset), self.dataset.parent)
        assert path is not None
        self.ask(path, store).to_parquet(today)
        return differing_rows(self.dataset, today)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Make a dataset."""
    return Made(tmp_path)


def test_the_card_says_what_the_dataset_was_made_of(made: Made) -> None:
    """Features as declared and counted, versions of code and partitions, sums of inputs and output."""
    card = read_card(made.dataset)
    assert (card.version, card.rows, card.as_of, card.statuses, card.full_feature_names) == (CARD_VERSION, 6, "known", True, False)
    assert (card.dataset.path, card.dataset.sha256) == ("set.parquet", file_sha256(made.dataset))
    assert (card.entity_df.path, card.entity_df.sha256) == ("../labels", None)
    assert [(one.path, one.sha256) for one in card.entity_df.files] == [
        ("../labels/first.parquet", file_sha256(made.root / "labels" / "first.parquet"))
    ]
    assert card.entity_df.columns == ["user_id", "event_timestamp", "label"]
    assert (card.entity_df.earliest, card.entity_df.latest) == (T0 + DAY + 2 * HOUR, T0 + 2 * DAY + 2 * HOUR)
    n, longest = card.features
    assert (n.reference, n.column, n.dtype, n.default, n.nulls) == ("profile:n", "n", "int", -1, 0)
    assert n.statuses == {"NOT_FOUND": 3, "PRESENT": 3}
    assert (longest.nulls, longest.statuses) == (4, {"NOT_FOUND": 3, "NULL_VALUE": 1, "PRESENT": 2})
    [view] = card.views.values()
    assert (view.code_version, view.ttl_seconds) == (PROFILE.definition_hash, 172_800)
    stored = made.store.offline.partitions(PROFILE)[:2]
    assert view.partitions == [CardPartition(one.window.key, one.generation, one.rows, PROFILE.definition_hash) for one in stored]
    lines = card_path(made.dataset).read_text().splitlines()
    assert sum("2026-03-2" in line and PROFILE.definition_hash in line for line in lines) == 2, "a partition is one line"


def test_an_untouched_project_makes_the_same_dataset(made: Made) -> None:
    """Nothing differs by the card, and nothing when joined again; a later window that no row reads is no difference."""
    made.store.compute(now=NOW + 5 * DAY)
    assert made.differences() == []
    assert made.joined_again() == []


def test_a_project_that_moved_makes_the_same_dataset(tmp_path: Path) -> None:
    """Paths are told as seen from the card, so a copy of the project elsewhere is the same."""
    (tmp_path / "here").mkdir()
    Made(tmp_path / "here")
    moved = (tmp_path / "here").rename(tmp_path / "there")
    store = store_of(moved, PROFILE)
    dataset = moved / "training" / "set.parquet"
    assert differences(read_card(dataset), dataset, store.registry, store.offline) == []


def test_changed_code_is_told(made: Made) -> None:
    """Another query is another code version, though the stored rows are what they were."""
    changed = replace(PROFILE, query=str(PROFILE.query) + " having count(*) > 0")
    store = store_of(made.root, changed)
    [found] = made.differences(store)
    assert (found.kind, found.where) == ("code_version", "profile")
    assert PROFILE.definition_hash in found.what
    assert changed.definition_hash in found.what
    assert not found.is_settled_by_rows
    assert made.joined_again(store) == []


def test_a_feature_that_is_gone_is_told(made: Made) -> None:
    """A feature that is not declared any more cannot come out the same."""
    narrower = replace(PROFILE, query="select user_id, count(*) as n from watches group by user_id", features=[PROFILE.features[0]])
    found = made.differences(store_of(made.root, narrower))
    assert [(one.kind, one.where) for one in found] == [("code_version", "profile:longest"), ("code_version", "profile")]


@pytest.mark.parametrize(
    ("view", "kind", "said"),
    [
        (replace(PROFILE, features=[Feature("n", int, default=0), PROFILE.features[1]]), "feature", "its default was -1, and is 0"),
        (replace(PROFILE, ttl=3 * DAY), "ttl", "its ttl was 172800.0 s, and is 259200.0 s"),
    ],
    ids=["default", "ttl"],
)
def test_what_changes_answers_and_no_file_is_told(made: Made, view: FeatureView, kind: str, said: str) -> None:
    """Defaults and ttls are in no definition hash, and decide values all the same."""
    assert (kind, said) in [(one.kind, one.what) for one in made.differences(store_of(made.root, view))]


def test_late_data_is_told_by_partition_and_by_row(made: Made) -> None:
    """A partition that was computed again with other rows is named with its time; joined again, so are columns and rows."""
    write(made.root, watched([*WATCHES, ("bob", 3 * HOUR, 9.0), ("zoe", HOUR, 1.0)]))
    again = NOW + HOUR
    made.store.compute(start=T0, end=T0 + DAY, now=again)
    [found] = made.differences()
    assert (found.kind, found.where, found.window, found.since) == ("partition", "profile", "2026-03-28T0000Z", again)
    assert found.what == "it was computed again; rows: 2 then, 3 now"
    rows = {one.where: one.rows for one in made.joined_again()}
    assert rows == {"n": 2, "n__status": 1, "longest": 2, "longest__status": 2}


def test_a_partition_that_came_out_the_same_changes_no_row(made: Made) -> None:
    """Computed again to the same rows, whatever its generation is then, it is settled by joining again."""
    made.store.compute(start=T0, end=T0 + DAY, now=NOW + HOUR)
    assert all(one.kind == "partition" and one.is_settled_by_rows for one in made.differences())
    assert made.joined_again() == []


def test_a_partition_that_is_gone_or_new_is_told(made: Made) -> None:
    """A missing file, and one that was missing then, both change what is read."""
    first = made.store.offline.partitions(PROFILE)[0]
    made.store.offline.path(PROFILE, first.window).unlink()
    assert [(one.window, one.what) for one in made.differences()] == [("2026-03-28T0000Z", "it is not there any more")]
    made.ask(made.root / "labels").to_parquet(made.dataset, card=True)
    made.store.compute(now=NOW + HOUR)
    assert [(one.window, one.what, one.since) for one in made.differences()] == [("2026-03-28T0000Z", "it was not there then", NOW + HOUR)]


def test_changed_labels_are_told(made: Made) -> None:
    """Another value, another row, another file and no file: each says which."""
    labels = made.root / "labels" / "first.parquet"
    pq.write_table(labelled(0, 1, 0, 1, 0, 0), labels)
    assert [(one.kind, one.where) for one in made.differences()] == [("entity_df", "../labels/first.parquet")]
    assert [(one.where, one.rows) for one in made.joined_again()] == [("label", 1)]
    pq.write_table(labelled(), labels)
    assert made.differences() == []
    pq.write_table(labelled().slice(0, 2), labels.with_name("second.parquet"))
    assert [(one.where, one.what) for one in made.differences()] == [("../labels/second.parquet", "it was not there then")]
    assert [(one.kind, one.rows) for one in made.joined_again()] == [("rows", 2)]
    labels.unlink()
    assert ("../labels/first.parquet", "it is not there any more") in [(one.where, one.what) for one in made.differences()]
    labels.with_name("second.parquet").unlink()
    assert [(one.where, one.what) for one in made.differences()] == [("../labels", "it is not there any more")]


def test_a_file_that_somebody_changed_is_told(made: Made) -> None:
    """One value of 12 is another: the sum says that it happened, the rows say where."""
    table = pq.read_table(made.dataset)
    n = table["n"].to_pylist()
    forged = table.set_column(table.column_names.index("n"), "n", pa.array([n[0] + 1, *n[1:]]))
    pq.write_table(forged, made.dataset)
    [found] = made.differences()
    assert (found.kind, found.is_settled_by_rows) == ("dataset", False)
    assert [(one.where, one.rows) for one in made.joined_again()] == [("n", 1)]
    pq.write_table(table.drop_columns(["n"]), made.dataset)
    assert [(one.kind, one.what) for one in made.joined_again()] == [("columns", "the dataset and today's rows do not both have: n")]
    made.dataset.write_bytes(b"PAR1, or what is left of it")
    [unreadable] = made.joined_again()
    assert unreadable.kind == "dataset"
    assert "cannot be read as Parquet" in unreadable.what
    made.dataset.unlink()
    assert [one.what for one in made.differences()] == ["the file is not there"]


def test_rows_in_memory_have_a_sum_of_their_own(made: Made) -> None:
    """The same rows, however they are cut, have one sum; another value has another. They are asked again from the dataset itself."""
    sums = set()
    for given_rows in (labelled(), pa.concat_tables([labelled().slice(0, 1), labelled().slice(1)]), labelled().to_reader(4)):
        made.ask(given_rows).to_parquet(made.dataset, card=True)
        card = read_card(made.dataset)
        sums.add(card.entity_df.sha256)
        assert (card.entity_df.path, card.entity_df.files, made.differences()) == (None, [], [])
    assert len(sums) == 1
    made.ask(labelled(1, 1, 0, 1, 0, 1)).to_parquet(made.dataset, card=True)
    assert read_card(made.dataset).entity_df.sha256 not in sums
    own = pq.read_table(made.dataset, columns=read_card(made.dataset).entity_df.columns)
    made.ask(own).to_parquet(made.root / "again.parquet")
    assert differing_rows(made.dataset, made.root / "again.parquet") == []


def test_times_beyond_a_calendar_are_carried(made: Made) -> None:
    """A row that asks about the year 200,000 has a card too; a dataset without rows has no earliest time."""
    far = pa.table({"user_id": ["ann"], "event_timestamp": pa.array([6_000_000_000_000_000_000], pa.timestamp("us"))})
    made.ask(far).to_parquet(made.dataset, card=True)
    assert made.differences() == []
    made.ask(labelled().slice(0, 0)).to_parquet(made.dataset, card=True)
    card = read_card(made.dataset)
    assert (card.rows, card.entity_df.earliest, card.entity_df.latest, card.views["profile"].partitions) == (0, None, None, [])
    assert made.differences() == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "has no card"),
        (lambda path: path.write_text("{"), "is not a dataset card"),
        (lambda path: path.write_text(json.dumps({"version": CARD_VERSION})), "is not a dataset card"),
        (lambda path: path.write_text(json.dumps({"version": 99})), "is a card of version 99"),
    ],
    ids=["none", "cut-off", "another-json", "a-later-version"],
)
def test_a_card_that_cannot_be_read_is_refused(made: Made, spoil: Callable[[Path], object], said: str) -> None:
    """The error says what is wrong with it, and what to do."""
    spoil(card_path(made.dataset))
    with pytest.raises(DatasetCardError, match=said):
        read_card(made.dataset)


VALUES = st.one_of(st.none(), st.floats(), st.integers(-(2**62), 2**62).map(float))


@given(rows=st.lists(st.tuples(st.text(max_size=3), VALUES), max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_a_sum_depends_on_rows_and_not_on_batches(rows: list[tuple[str, float | None]], cuts: list[int]) -> None:
    """However a table is cut it has one sum; without its last row it has another."""
    table = pa.table({"text": [text for text, _ in rows], "number": pa.array([number for _, number in rows], pa.float64())})
    bounds = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    pieces = [table.slice(start, stop - start) for start, stop in pairwise(bounds)] or [table]
    whole = content_sha256(table.combine_chunks().to_batches())
    assert content_sha256(batch for piece in pieces for batch in piece.to_batches()) == whole
    if rows:
        assert content_sha256(table.slice(0, len(rows) - 1).to_batches()) != whole


@given(
    rows=st.lists(VALUES, max_size=20),
    changes=st.dictionaries(st.integers(0, 19), VALUES, max_size=4),
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_differing_rows_are_counted_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, rows: list[float | None], changes: dict[int, float | None], sizes: tuple[int, int]
) -> None:
    """Files with row groups of any sizes are compared place by place; NaN is equal to itself, and -0.0 is another value than 0.0."""
    then, now = (tmp_path_factory.mktemp("files") / name for name in ("then.parquet", "now.parquet"))
    changed = [changes.get(place, value) for place, value in enumerate(rows)]
    for path, values, size in zip((then, now), (rows, changed), sizes, strict=True):
        pq.write_table(pa.table({"value": pa.array(values, pa.float64())}), path, row_group_size=size)
    expected = sum(repr(one) != repr(other) for one, other in zip(rows, changed, strict=True))
    assert [one.rows for one in differing_rows(then, now)] == ([expected] if expected else [])


def test_a_card_is_dated_by_the_clock(made: Made) -> None:
    """When the dataset was written is told to the second, in UTC."""
    age = datetime.now(UTC) - read_card(made.dataset).created_at
    assert timedelta(0) <= age < timedelta(minutes=5)
