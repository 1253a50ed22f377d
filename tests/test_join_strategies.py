"""The ways to run a join: by slices of the ttl, of few keys, in ranges of keys, in buckets, from a kept state. Whichever it is, the answers are one."""

# ruff: noqa: E501 - a world, or an expectation, in one line each

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from offline_project import DAY, HOUR, MICROS, MINUTE, NOW, T0, asked, instants, put, store_of, user, write
from opened_files import opened_files

from feature_platform import Aggregate, Entity, Feature, FeatureStore, FeatureView, ParquetSource
from feature_platform.errors import EntityRowsError, NameClashError, RegistryError
from feature_platform.offline import asof, buckets, explanation, partition
from feature_platform.offline.buckets import Buckets, join_bucket, shuffle
from feature_platform.offline.join_plan import plan_views
from feature_platform.offline.question import Question

USERS = ["ann", "bob", "cid", "dee"]
SOURCE = ParquetSource("watches", "source/*.parquet", timestamp="at", created_timestamp="known_at")


def sources(root: Path, *, rows: int = 400, seed: int = 7) -> None:
    """Write watches of a few users over three days, some before 1970, too."""
    noise = random.Random(seed)
    times = [T0 + timedelta(seconds=noise.randrange(72 * 3600)) for _ in range(rows)]
    put(root, "watches", *[(noise.choice(USERS), at, at + noise.choice([0, 0, 5]) * HOUR) for at in times])
    early = [T0.replace(year=1969) + timedelta(minutes=noise.randrange(600)) for _ in range(40)]
    at = pa.array([*times, *early], MICROS)
    names = pa.array([noise.choice([*USERS, None]) for _ in at], pa.string())
    values = pa.array([noise.choice([None, number, -number]) for number in range(len(at))], pa.int64())
    zeros = pa.array([noise.choice([0.0, -0.0, float("nan"), None]) for _ in at], pa.float64())
    item = pa.array([noise.randrange(3) for _ in at], pa.int64())
    columns = {"user_id": names, "item_id": item, "event_timestamp": at, "value": values, "zero": zeros}
    write(root, pa.table(columns), "values")


def values_view(
    name: str = "values", *, keys: dict[str, Any] | None = None, ttl: timedelta | None = 3 * HOUR, delay: timedelta = HOUR
) -> FeatureView:
    """Return an event view over whatever keys, everybody's if none."""
    source = ParquetSource("values", "source/values.parquet", timestamp="event_timestamp")
    keys = {"user_id": str} if keys is None else keys
    unique = ", ".join([*keys, "event_timestamp"])
    query = f"select {unique}, max(value) as value, any_value(zero order by value) as zero from values group by {unique}"
    features = [Feature("value", int, default=7), Feature("zero", float)]
    entity = Entity(f"of_{name}", join_keys=keys)
    return FeatureView(name, entity=entity, sources=[source], query=query, features=features, schedule=None, ttl=ttl, delay=delay)


def views() -> list[FeatureView]:
    """Return views of every kind, of several entities."""
    counts = FeatureView(
        "counts", entity=user, sources=[SOURCE], schedule="@hourly", start=T0, features=[Aggregate("n", "count", window=5 * HOUR)]
    )
    seen = FeatureView(
        "seen",
        entity=user,
        sources=[SOURCE],
        schedule="@daily",
        start=T0,
        query='select user_id, "at" as event_timestamp, known_at as created_timestamp, minute("at") as minute from watches',
        features=[Feature("minute", int)],
        ttl=DAY,
    )
    whole = values_view("whole", keys={})
    pairs = values_view("pairs", keys={"user_id": str, "item_id": int}, ttl=30 * HOUR, delay=timedelta(0))
    return [counts, seen, values_view(), pairs, whole]


def entity_rows(rows: int = 300, *, seed: int = 1) -> pa.Table:
    """Return rows about known, unknown and NULL keys at any time, at bounds too."""
    noise = random.Random(seed)
    edge = [T0 + hour * HOUR for hour in range(80)] + [T0.replace(year=1969) + hour * HOUR for hour in range(15)]
    times = [noise.choice([T0 + timedelta(seconds=noise.randrange(80 * 3600)), noise.choice(edge), None]) for _ in range(rows)]
    return pa.table(
        {
            "user_id": pa.array([noise.choice([*USERS, "zoe", None]) for _ in times], pa.string()),
            "item_id": pa.array([noise.randrange(4) for _ in times], pa.int64()),
            "event_timestamp": pa.array(times, MICROS),
            "label": range(rows),
        }
    )


def answers_of(store: FeatureStore, entity_df: pa.Table, **options: Any) -> pa.Table:
    """Ask for everything."""
    names = [f"{view.name}:{name}" for view in store.registry.views.values() for name in view.feature_by_name]
    return store.get_historical_features(entity_df, names, full_feature_names=True, **options).to_arrow()


def same(left: pa.Table, right: pa.Table) -> bool:
    """Compare to the bit: NaN is NaN, and a zero has its sign."""
    return left.column_names == right.column_names and repr(left.to_pydict()) == repr(right.to_pydict())


def in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every join go in seven buckets, and its answers in ranges of 64 rows."""
    monkeypatch.setattr(explanation, "_SORTED", 1e12)
    monkeypatch.setattr(explanation, "_BUCKET_SHARE", 1e-15)
    monkeypatch.setattr(explanation, "_MOST_BUCKETS", 7)
    monkeypatch.setattr(buckets, "_RANGE_ROWS", 64)


def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every join go in one piece, as one that does not fit into memory."""
    monkeypatch.setattr(explanation, "_SORTED", 1e12)
    monkeypatch.setattr(explanation, "_SPILLED", 1e30)


def in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every join that sorts go in up to nine ranges of keys."""
    monkeypatch.setattr(explanation, "ROW_GROUP", 1)
    monkeypatch.setattr(explanation, "_RANGE_BYTES", 100)
    monkeypatch.setattr(explanation, "_GROUPS_A_RANGE", 5)
    monkeypatch.setattr(asof, "_SAMPLE_PERCENT", 100)


def of_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every join look for its keys first."""
    monkeypatch.setattr(asof, "_LARGE_ROWS", 0)
    monkeypatch.setattr(asof, "_FEW_KEYS", 1.0)


def without_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no join find its rows one by one."""
    monkeypatch.setattr(asof, "_may_be_near", lambda *_: False)


def given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every search for rows one by one find too many."""
    monkeypatch.setattr(asof, "_CANDIDATES_A_ROW", 0)
    monkeypatch.setattr(asof, "_CANDIDATES_MORE", 1)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Return a store of all kinds of views, computed."""
    sources(tmp_path)
    store = store_of(tmp_path, *views())
    store.compute(end=T0 + 72 * HOUR, now=NOW)
    return store


@pytest.mark.parametrize("force", [in_buckets, in_ranges, on_disk, of_few_keys, given_up], ids=lambda force: force.__name__)
@pytest.mark.parametrize("rows", [0, 1, 40, 300])
@pytest.mark.parametrize("options", [{}, {"statuses": True}, {"as_of": "latest"}], ids=["plain", "statuses", "latest"])
def test_every_way_gives_the_same_answers(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, force: Callable[[pytest.MonkeyPatch], None], rows: int, options: dict[str, Any]
) -> None:
    """As the plain ASOF join, which the laws of time are held against."""
    entity_df = entity_rows(rows)
    with store:
        with monkeypatch.context() as plain:
            without_slices(plain)
            expected = answers_of(store, entity_df, **options)
        assert same(answers_of(store, entity_df, **options), expected), "as it is chosen by itself"
        with monkeypatch.context() as forced:
            force(forced)
            assert same(answers_of(store, entity_df, **options), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ttl", [2 * HOUR, 7 * HOUR, 100 * DAY], ids=str)
def test_rows_within_the_ttl_are_found_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, ttl: timedelta) -> None:
    """By slices of time: at bounds, before 1970, for several keys, with a delay, the answers are the sort's; and slices are used."""
    sources(tmp_path, seed=seed)
    used: list[bool] = []
    find = asof._find_near

    def finding(*args: Any) -> bool:
        used.append(find(*args))
        return used[-1]

    monkeypatch.setattr(asof, "_find_near", finding)
    with store_of(
        tmp_path, values_view(ttl=ttl), values_view("pairs", keys={"item_id": int, "user_id": str}, ttl=ttl, delay=timedelta(0))
    ) as store:
        store.compute(now=NOW)
        entity_df = entity_rows(60, seed=seed)
        found = answers_of(store, entity_df)
        assert len(used) == 2
        assert any(used)
        with monkeypatch.context() as plain:
            without_slices(plain)
            assert same(found, answers_of(store, entity_df))


def test_a_hot_key_is_given_up_on(tmp_path: Path) -> None:
    """A key with very many rows within the ttl is joined by a sort: finding out is bounded."""
    rows = 60_000
    at = pa.array([T0 + timedelta(milliseconds=number) for number in range(rows)], MICROS)
    write(
        tmp_path,
        pa.table({"user_id": ["ann"] * rows, "item_id": [0] * rows, "event_timestamp": at, "value": range(rows), "zero": [0.0] * rows}),
        "values",
    )
    with store_of(tmp_path, values_view(delay=timedelta(0))) as store:
        store.compute(now=NOW)
        times = [T0 + timedelta(milliseconds=number) for number in range(0, rows, 60)]
        assert store.get_historical_features(asked(times), ["value"]).to_arrow()["value"].to_pylist() == list(range(0, rows, 60))


def test_a_range_of_keys_reads_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those where the next one begins, for both; the answers are those of one piece. A file of few row groups is not cut."""
    rows, times, every = 4 * partition.ROW_GROUP, 16, range(0, 4 * partition.ROW_GROUP, 97)
    at = pa.array([T0 + timedelta(seconds=number % times) for number in range(rows)], MICROS)
    users = pa.array([f"u{number // times:06}" for number in range(rows)])
    columns = {"user_id": users, "event_timestamp": at, "value": pa.array(range(rows)), "zero": pa.array([0.5] * rows)}
    write(tmp_path, pa.table(columns), "values")
    with store_of(tmp_path, values_view(delay=timedelta(0), ttl=None)) as store:
        store.compute(now=NOW)
        joined = store.get_historical_features(
            asked(at.take(pa.array(every)).to_pylist(), users.take(pa.array(every)).to_pylist()), ["value"]
        )
        monkeypatch.setattr(explanation, "_RANGE_BYTES", 1)
        monkeypatch.setattr(asof, "_SAMPLE_PERCENT", 100)
        assert joined.explain().views[0].ranges == 2
        assert "in 2 ranges of the keys" in str(joined.explain())
        seen = list[int]()
        assert joined.to_arrow(progress=lambda _, done, __: seen.append(done))["value"].to_pylist() == list(every)
        assert seen == [0, 1]
        monkeypatch.setattr(explanation, "_GROUPS_A_RANGE", 5)
        assert joined.explain().views[0].ranges == 1
        assert joined.to_arrow()["value"].to_pylist() == list(every)
        (plan,) = plan_views(store.offline, Question(tuple(store.registry.resolve(["value"]))), (0, 2 * 10**15))
        assert plan.history is not None
        with store._connect() as connection:
            ranges = list(asof._key_ranges(connection, plan, plan.history, "spine", 2))
            read = [connection.execute(f"explain (analyze, format json) {its}", values).fetchall()[0][1] for its, _, values in ranges]
        groups = [json.loads(one)["query"]["total_row_groups_scanned"] for one in read]
        assert len(groups) == 2
        assert sum(groups) <= 4 + 1


def test_a_bucket_is_joined_in_another_process(store: FeatureStore, tmp_path: Path) -> None:
    """With nothing but plain values and paths: what an engine on other machines would send."""
    with store:
        question = Question(tuple(store.registry.resolve(["counts:n"])))
        plans = plan_views(store.offline, question, (0, 2 * 10**15))
        folder = tmp_path / "shuffled"
        parts = Buckets(folder=str(folder), count=3)
        times = ", ".join(f"({number}, '{name}', timestamp '2026-03-28 06:00')" for number, name in enumerate(USERS))
        shuffle(parts, f"select * from (values {times}) as t(__row, user_id, __time)", ["user_id"], "group/spine")
        assert plans[0].history is not None
        shuffle(parts, plans[0].history, ["user_id"], "group/0")
        (tmp_path / "call").write_bytes(pickle.dumps((parts, plans)))
        code = (
            "import pickle, sys; from feature_platform.offline.buckets import join_bucket; "
            "parts, plans = pickle.load(open(sys.argv[1], 'rb')); [join_bucket(parts, plans, 'group', b) for b in range(3)]"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "call")], check=True, timeout=60)
        found = duckdb.sql(f"select n from read_parquet('{folder}/group/answers/*/*.parquet') order by __row").fetchall()  # type: ignore[union-attr]
        expected = store.get_historical_features(asked([T0 + 6 * HOUR] * 4, USERS), ["counts:n"]).to_arrow()["n"].to_pylist()
        assert [row[0] for row in found] == expected
        join_bucket(parts, plans, "nobody", 0)  # an empty one


def test_a_join_on_disk_leaves_the_memory_limit_as_it_was(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the whole database's: lowered for a join and left so, it would be lower for each one after."""
    with store:
        (view, *_) = store.registry.views.values()
        joined = store.get_historical_features(entity_rows(), [f"{view.name}:{view.features[0].name}"])
        before = joined.explain().memory_limit_bytes
        on_disk(monkeypatch)
        for _ in range(3):
            joined.to_arrow()
        assert joined.explain().memory_limit_bytes == before


def test_nothing_is_left_of_a_join_in_buckets(store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files go with it, also where it fails; and it never writes into the working directory."""
    in_buckets(monkeypatch)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path / "here")
    with store:
        answers_of(store, entity_rows())
        monkeypatch.setattr(buckets, "join_bucket", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answers_of(store, entity_rows())
    assert not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "here").iterdir())


def test_a_state_is_where_a_join_begins(tmp_path: Path) -> None:
    """Hours before the month are not opened; the answers are those of a history without states."""
    sources(tmp_path)
    counts = views()[0]
    events = FeatureView(
        "events", entity=user, sources=[SOURCE], schedule="@hourly", start=T0,
        query='select user_id, "at" as event_timestamp, known_at as created_timestamp, minute("at") as minute from watches', features=[Feature("minute", int)],
    )  # fmt: skip
    with store_of(tmp_path, counts, events) as store:
        store.compute(end=T0 + 72 * HOUR, now=NOW)
        late = asked([T0 + 49 * HOUR + number * 20 * MINUTE for number in range(60)] * 4, [name for name in USERS for _ in range(60)])
        before = answers_of(store, late, statuses=True)
        store.compact(now=T0 + 50 * HOUR)
        for view in (counts, events):
            explained = store.get_historical_features(late, [f"{view.name}:{name}" for name in view.feature_by_name]).explain()
            assert explained.views[0].state == f"{T0 + 48 * HOUR:%Y-%m-%dT%H%MZ}"
            folder = store.offline.folder(view)
            with opened_files(folder, folder / "_compacted", folder / "_states") as opened:
                store.get_historical_features(late, [f"{view.name}:{name}" for name in view.feature_by_name]).to_arrow()
            assert opened == {Path(one).name for one in explained.views[0].files}
            assert f"{T0 + 40 * HOUR:%Y-%m-%dT%H%MZ}.parquet" not in opened
        assert same(answers_of(store, late, statuses=True), before)


def test_an_explanation_names_what_is_opened(store: FeatureStore) -> None:
    """Files, rows, bytes and windows of each view, without opening one; running opens these and no others."""
    with store:
        rows = asked([T0 + 30 * HOUR, T0 + 31 * HOUR])
        joined = store.get_historical_features(rows, ["seen:minute", "values:value"])
        seen, values = (store.offline.folder(store.registry.view(name)) for name in ("seen", "values"))
        with opened_files(seen, values) as opened:
            explained = joined.explain()
        assert not opened
        with opened_files(seen, values) as opened:
            joined.to_arrow()
        assert opened == {Path(file).name for view in explained.views for file in view.files}
        assert (explained.views[0].partitions, explained.views[0].skipped) == (2, 1)
        assert explained.rows == sum(pq.read_metadata(file).num_rows for view in explained.views for file in view.files)
        assert explained.bytes == sum(Path(file).stat().st_size for view in explained.views for file in view.files)
        assert explained.entity_rows == 2
        assert explained.buckets == 1
        text = str(explained)
        assert "seen" in text
        assert "joined in one piece" in text
        assert "2026-03-28 00:00" in text
        assert explained.memory_bytes < 10**9


@pytest.mark.parametrize("rows", [200_000, 1_000_000])
def test_the_memory_expected_is_near_the_memory_held(tmp_path: Path, rows: int) -> None:
    """Between the peak of the process and three times that."""
    at = pa.array([T0 + timedelta(seconds=number) for number in range(rows)], MICROS)
    users = pa.array([f"u{number % 1000}" for number in range(rows)])
    table = pa.table(
        {
            "user_id": users,
            "item_id": pa.array([0] * rows),
            "event_timestamp": at,
            "value": pa.array(range(rows)),
            "zero": pa.array([0.5] * rows),
        }
    )
    write(tmp_path, table, "values")
    with store_of(tmp_path, values_view(ttl=None, delay=timedelta(0))) as store:
        store.compute(now=T0 + 4000 * DAY)
    pq.write_table(pa.table({"user_id": users, "event_timestamp": at}).slice(0, rows // 10), tmp_path / "asked.parquet")
    code = f"""
import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_join_strategies import *
with store_of(Path({str(tmp_path)!r}), values_view(ttl=None, delay=timedelta(0))) as store:
    joined = store.get_historical_features({str(tmp_path / "asked.parquet")!r}, ["value"])
    expected = joined.explain().memory_bytes
    joined.to_parquet({str(tmp_path / "out.parquet")!r})
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([expected, peak]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    expected, peak = json.loads(done.stdout.splitlines()[-1])
    assert peak <= expected * 1.25
    assert expected <= peak * 3


def test_labels_are_what_is_true_later(store: FeatureStore) -> None:
    """Each label is the feature as asked at the later time; NULL where that is not over, whatever the default; features are untouched."""
    with store:
        rows = asked([T0 + hour * HOUR for hour in range(72)])
        horizon = 6 * HOUR
        table = store.get_historical_features(
            rows, ["counts:n", "values:value"], labels=["counts:n"], label_delay=horizon, statuses=True
        ).to_arrow()
        assert table.column_names[2:] == ["n", "n__status", "value", "value__status", "label_n", "label_n__status"]
        later = store.get_historical_features(
            asked([T0 + hour * HOUR + horizon for hour in range(72)]), ["counts:n"], statuses=True
        ).to_arrow()
        plain = store.get_historical_features(rows, ["counts:n", "values:value"], statuses=True).to_arrow()
        assert table.select(plain.column_names).equals(plain)
        # The last window ends at hour 72: what stands until 73 is known.
        known = [hour + 6 < 73 for hour in range(72)]
        assert table["label_n"].to_pylist() == [
            value if is_known else None for value, is_known in zip(later["n"].to_pylist(), known, strict=True)
        ]
        assert table["label_n__status"].to_pylist() == [
            status if is_known else None for status, is_known in zip(later["n__status"].to_pylist(), known, strict=True)
        ]
        assert None in table["label_n"].to_pylist()


def test_labels_of_an_event_view_are_known_as_far_as_it_is_computed(store: FeatureStore) -> None:
    """Up to the end of its newest partition, its delay included."""
    with store:
        rows = asked([T0 + hour * HOUR for hour in range(0, 80, 4)])
        table = store.get_historical_features(rows, ["counts:n"], labels=["seen:minute"], label_delay=2 * HOUR).to_arrow()
        later = store.get_historical_features(asked([T0 + (hour + 2) * HOUR for hour in range(0, 80, 4)]), ["seen:minute"]).to_arrow()
        expected = [value if hour + 2 < 72 else None for hour, value in zip(range(0, 80, 4), later["minute"].to_pylist(), strict=True)]
        assert table["label_minute"].to_pylist() == expected


@pytest.mark.parametrize(
    "options",
    [{"labels": ["counts:n"]}, {"label_delay": HOUR}, {"labels": ["counts:n"], "label_delay": -HOUR}],
    ids=["no-delay", "no-labels", "past"],
)
def test_labels_and_their_delay_go_together(store: FeatureStore, options: dict[str, Any]) -> None:
    """One without the other is a mistake, and a label from before the row would be a feature."""
    with store, pytest.raises(RegistryError, match="label_delay"):
        store.get_historical_features(asked([T0]), ["counts:n"], **options)


def test_labels_do_not_clash_with_columns(store: FeatureStore) -> None:
    """Like features, they are refused where a column has their name."""
    rows = asked([T0]).append_column("label_n", pa.array([1]))
    with store, pytest.raises(NameClashError, match="label_n"):
        store.get_historical_features(rows, ["values:value"], labels=["counts:n"], label_delay=HOUR)


def test_rows_are_written_into_folders(store: FeatureStore, tmp_path: Path) -> None:
    """In Hive's manner, in the order of the rows within each folder, as a whole or not at all."""
    with store:
        table = entity_rows(200)
        joined = store.get_historical_features(table, ["counts:n", "values:value"])
        told: list[tuple[str, int, int]] = []
        assert joined.to_parquet(tmp_path / "out", partition_by=["user_id"], progress=lambda *step: told.append(step)) == 200
        assert {one.name for one in (tmp_path / "out").iterdir()} == {
            f"user_id={name}" for name in [*USERS, "zoe", "__HIVE_DEFAULT_PARTITION__"]
        }
        assert told[-1] == ("writing", 200, 200)
        expected = joined.to_arrow()
        for name in USERS:
            files = sorted((tmp_path / "out" / f"user_id={name}").iterdir())
            assert [one.name for one in files] == ["part-0.parquet"]
            found = pq.read_table(files[0], partitioning=None)
            assert "user_id" not in found.column_names
            assert found["label"].to_pylist() == [row["label"] for row in expected.to_pylist() if row["user_id"] == name]
        back = ds.dataset(tmp_path / "out", partitioning="hive").to_table().sort_by("label")
        assert back["n"].to_pylist() == expected["n"].to_pylist()
        # Again, over what is there: replaced whole.
        assert joined.to_parquet(tmp_path / "out", partition_by=["user_id"]) == 200
        assert ds.dataset(tmp_path / "out", partitioning="hive").count_rows() == 200
        assert not [one for one in tmp_path.iterdir() if one.name.endswith(".tmp")]


def test_a_value_is_no_way_out_of_the_folder(store: FeatureStore, tmp_path: Path) -> None:
    """Whatever a value is spelled like, its rows are below the folder that was named."""
    rows = pa.table({"user_id": ["../../x", "a/b", "c=d", ""], "event_timestamp": instants(HOUR, HOUR, HOUR, HOUR)})
    with store:
        store.get_historical_features(rows, ["counts:n"]).to_parquet(tmp_path / "deep" / "out", partition_by=["user_id"])
    assert {one.name for one in (tmp_path / "deep").iterdir()} == {"out"}
    assert not (tmp_path / "x").exists()
    assert len(list((tmp_path / "deep" / "out").iterdir())) == 4
    assert ds.dataset(tmp_path / "deep" / "out", partitioning="hive").count_rows() == 4


@pytest.mark.parametrize(
    ("partition_by", "options", "error", "says"),
    [
        (["usr_id"], {}, EntityRowsError, "Did you mean 'user_id'"),
        (["user_id", "event_timestamp", "n"], {}, EntityRowsError, "leaves none"),
        (["user_id"], {"card": True}, EntityRowsError, "one file"),
    ],
    ids=["unknown", "all", "card"],
)
def test_what_folders_cannot_be_is_named(
    store: FeatureStore, tmp_path: Path, partition_by: list[str], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Before anything is read or written."""
    with store, pytest.raises(error, match=says):
        store.get_historical_features(asked([T0]), ["counts:n"]).to_parquet(tmp_path / "out", partition_by=partition_by, **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(store: FeatureStore, tmp_path: Path) -> None:
    """Only what such a call wrote is replaced."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with store, pytest.raises(FileExistsError, match=r"letter\.txt"):
        store.get_historical_features(asked([T0]), ["counts:n"]).to_parquet(tmp_path / "mine", partition_by=["user_id"])
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_slice_is_as_long_as_the_ttl_to_the_microsecond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row exactly a ttl old is found, wherever it lies to the slices: seconds as a float made some of them a microsecond short."""
    ttl = timedelta(milliseconds=1001)
    width, micro = 1_000_999, timedelta(microseconds=1)
    start = T0.replace(hour=0, minute=0)
    first = start + ((-int(start.timestamp() * 1_000_000)) % width + 5 * width) * micro  # a bound of such slices
    history = [first - ttl - number * timedelta(hours=1) for number in range(5)]
    columns = {"item_id": [0] * 5, "event_timestamp": pa.array(history, MICROS), "value": range(5), "zero": [0.0] * 5}
    write(tmp_path, pa.table({"user_id": ["ann"] * 5, **columns}), "values")
    with store_of(tmp_path, values_view(ttl=ttl, delay=timedelta(0))) as store:
        store.compute(now=NOW)
        found = store.get_historical_features(asked([first]), ["value"]).to_arrow()["value"].to_pylist()
        without_slices(monkeypatch)
        assert store.get_historical_features(asked([first]), ["value"]).to_arrow()["value"].to_pylist() == [0]
        assert found == [0]


@pytest.mark.parametrize("other", [pa.int32(), str], ids=str)
def test_a_key_of_two_dtypes_is_refused(tmp_path: Path, other: Any) -> None:
    """As online: in buckets, -1 of 32 bits and of 64 would lie apart, and text is no number."""
    views = [values_view("wide", keys={"item_id": int}), values_view("narrow", keys={"item_id": other})]
    with store_of(tmp_path, *views) as store:
        with pytest.raises(RegistryError, match=r"'item_id' is int in one view(?s:.*)one by one"):
            store.get_historical_features(entity_rows(3), ["wide:value", "narrow:zero"])
        with pytest.raises(RegistryError, match=r"'item_id' is int in one view(?s:.*)one by one"):
            store.get_historical_features(entity_rows(3), ["wide:value"], labels=["narrow:zero"], label_delay=HOUR)
