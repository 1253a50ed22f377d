"""
Dagster's UI in a real browser, as a stranger finds it: by roles and texts, after `fp demo`, while `fp up` runs.

`SCREENSHOTS=docs/images pytest -m browser -p no:randomly` makes the pictures of docs/ui.md on the way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from browser_project import DAY, Project, open_browser, running_project
from playwright.sync_api import BrowserContext, Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

HOUR = timedelta(hours=1)
# A warning says "Failed" too: only its mark tells it from an error.
STATES = {"search": ("check_circle", "Passed"), "rating": ("warning_outline", "Failed"), "device": ("cancel", "Failed")}


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    """Start one project for all tests: each looks at another part of it. Pictures show its path, so it is a short one."""
    with TemporaryDirectory(prefix="example-") as folder, running_project(Path(folder)) as project:
        yield project


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Open one browser for all tests."""
    with open_browser(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture
def page(browser: BrowserContext, project: Project) -> Iterator[Page]:
    """Open the UI's first page in a tab."""
    page = browser.new_page()
    page.goto(project.url)
    yield page
    page.close()


def picture(page: Page, name: str) -> None:
    """Save what is seen, where pictures are asked for."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.mouse.move(0, 0)  # no tooltip
        page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")


def asset(page: Page, project: Project, key: str, view: str) -> None:
    """Open a tab of an asset's page by its address, as links in chats and mails do."""
    page.goto(f"{project.url}/assets/{key}?view={view}")
    expect(page.get_by_role("tab", name=view.capitalize())).to_have_attribute("aria-selected", "true")


def seen(page: Page, text: str) -> Locator:
    """Return what shows a text in full: Dagster shortens what is too long, and keeps the whole of it where nobody sees it."""
    return page.get_by_text(text, exact=True).filter(visible=True)


def value(page: Page, key: str) -> Locator:
    """Return the value of a row of metadata."""
    cell = page.get_by_role("cell", name=key, exact=True)
    return page.get_by_role("row").filter(has=cell).get_by_role("cell").last


def pushed_checks(page: Page, mark: str) -> Locator:
    """Return how many of an online asset's checks passed, in the lineage, where they have this mark; `skew` may be yet to come."""
    return page.get_by_role("link", name=re.compile(rf"^{mark} \d . [12] Passed$"))  # a slash would end Playwright's own pattern


def verdict(page: Page, mark: str) -> Locator:
    """Return what is said of the check that is shown, where it has this mark."""
    blocks = page.locator("div").filter(has=page.get_by_text("Evaluation result", exact=True))
    return blocks.filter(has=page.get_by_role("img", name=mark, exact=True)).last


def launch(page: Page, button: str, key: str) -> None:
    """Ask for one partition in the dialog behind a button, and open the page of its run."""
    page.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").first.fill(key)
    dialog.get_by_role("textbox").first.press("Enter")
    expect(dialog.get_by_text("1 partition", exact=True)).to_be_visible()
    dialog.get_by_role("button", name="Launch 1 run").click()
    notice = page.get_by_role("region", name="Notifications").get_by_role("listitem").filter(has_text="Launched run")
    notice.get_by_role("link", name="View").click()
    expect(page.get_by_role("button", name="View tags and config")).to_be_visible()


def rows_of(project: Project, view: str, key: str) -> int:
    """Return how many rows the file of a partition has."""
    file = f"{datetime.fromisoformat(key):%Y-%m-%dT%H%MZ}.parquet"
    rows: int = pq.read_metadata(project.root / "data" / "features" / view / file).num_rows
    return rows


def served(page: Page, project: Project, feature: str, users: list[str]) -> object:
    """Return what the retrieval API answers."""
    answer = page.request.post(f"{project.api}/get-online-features", data={"features": [feature], "entities": {"user_id": users}})
    return answer.json()["results"][1]["values"]


def edges(locator: Locator) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of what is seen."""
    box = locator.bounding_box()
    assert box is not None
    return box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]


def key_of(start: datetime) -> str:
    """Return the key of the hour that starts then."""
    return f"{start:%Y-%m-%dT%H}"


def test_lineage_leads_from_a_source_over_a_feature_to_the_online_store(page: Page, project: Project) -> None:
    """The groups are the views and open at a click; a feature's own lineage reads from left to right."""
    page.get_by_role("link", name="Lineage").click()
    for group in ("sources", "training", "user_activity", "user_last_watch", "user_minutes", "user_profile", "user_search", "user_today"):
        expect(page.get_by_role("button", name=group)).to_be_visible()
    page.get_by_role("img").get_by_text("user_activity", exact=True).filter(visible=True).last.click()  # of the graph, not of the list
    for name in ("watch_count_30d", "watch_minutes_7d"):
        expect(seen(page, name)).to_be_visible()

    asset(page, project, "features/user_activity/watch_count_30d", "lineage")
    chain = [seen(page, name).last for name in ("watches", "watch_count_30d", "user_activity")]
    for node in chain:
        expect(node).to_be_visible()
    lefts = [edges(node)[0] for node in chain]
    assert lefts == sorted(set(lefts))
    expect(page.get_by_role("link", name="done 4 / 4 Passed")).to_be_visible()
    expect(pushed_checks(page, "done")).to_be_visible()
    picture(page, "lineage")


def test_the_page_of_a_feature_tells_rows_columns_query_and_promise(page: Page, project: Project) -> None:
    """What a partition holds, what its columns are, how it is computed and how fresh it must be."""
    asset(page, project, "features/user_profile/user_segment", "overview")
    newest = project.windows["user_profile"][1]
    rows = rows_of(project, "user_profile", newest)
    assert rows > 100
    expect(page.get_by_role("link", name=newest)).to_be_visible()
    expect(value(page, "dagster/partition_row_count")).to_have_text(str(rows))
    for column in ("user_id .*str.*Join key", "event_timestamp .*datetime", "user_segment .*str.*Activity segment over the last 30 days"):
        expect(page.get_by_role("row", name=re.compile(column))).to_be_visible()
    expect(page.get_by_text("Passing", exact=True).first).to_be_visible()
    expect(page.get_by_text("Fails if more than 26 hours since last materialization")).to_be_visible()
    # Nothing is laid over the partition key: that happens in narrower windows.
    assert edges(page.get_by_role("link", name=newest))[2] <= edges(page.get_by_text("Latest check results"))[0]
    picture(page, "feature")

    definition = value(page, "definition")
    expect(definition).to_contain_text("when count(*) >= 30 then 'power_user'")
    expect(definition).to_contain_text("group by user_id")
    page.get_by_role("button", name="Lineage").scroll_into_view_if_needed()
    picture(page, "definition")


def test_hourly_partitions_are_readable(page: Page, project: Project) -> None:
    """Each key of the list stands in full on a line of its own, newest first; a click shows what the partition holds."""
    asset(page, project, "features/user_activity/watch_count_30d", "partitions")
    first, newest = (datetime.fromisoformat(key) for key in project.windows["user_activity"])
    shown = [key_of(newest - hours * HOUR) for hours in range(8)]
    assert newest - first > 8 * HOUR
    lines = [seen(page, key).last for key in shown]  # the newest stands at the end of the bar above, too
    for line in lines:
        expect(line).to_be_visible()
    boxes = [edges(line) for line in lines]
    assert all(above[3] <= below[1] for above, below in pairwise(boxes))

    lines[1].click()
    rows = rows_of(project, "user_activity", shown[1])
    expect(page.get_by_role("row", name=f"dagster/partition_row_count {rows}", exact=True)).to_be_visible()
    picture(page, "partitions")


def test_a_backfill_of_a_range_is_one_run(page: Page, project: Project) -> None:
    """A range written into the dialog is launched, succeeds, and has one run for its 24 partitions."""
    asset(page, project, "features/user_activity/watch_count_30d", "partitions")
    end = datetime.fromisoformat(project.windows["user_activity"][0]) - 24 * HOUR
    first, last = key_of(end - 23 * HOUR), key_of(end)
    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Backfills all partitions in a single run.")).to_be_visible()
    dialog.get_by_role("textbox").first.fill(f"[{first}...{last}]")
    dialog.get_by_role("textbox").first.press("Enter")
    expect(dialog.get_by_text("24 partitions", exact=True)).to_be_visible()
    picture(page, "backfill-dialog")
    dialog.get_by_role("button", name="Launch backfill").click()
    created = page.get_by_text(re.compile(r"^Created backfill \w+$"))
    backfill = created.inner_text().split()[-1]

    page.get_by_role("link", name="Runs").click()
    page.get_by_role("tab", name="Backfills").click()
    link = page.get_by_role("link", name=backfill)
    row = page.locator("div").filter(has=link).filter(has=page.get_by_role("link", name="View")).last
    expect(row.get_by_text("Success", exact=True)).to_be_visible()
    link.click()
    expect(page.get_by_text("100% completed")).to_be_visible()
    expect(page.get_by_text(f"{first}...{last}")).to_be_visible()
    picture(page, "backfill")
    page.get_by_role("tab", name="Runs").click()
    expect(page.get_by_role("link", name=re.compile(r"^run [0-9a-f]{8}$"))).to_have_count(1)
    expect(page.get_by_text("Success", exact=True)).to_have_count(1)


def test_a_schedule_ticks_while_it_is_on(page: Page) -> None:
    """Switched on, a schedule asks for a run at the next minute, which computes and pushes; then it is switched off."""
    page.get_by_role("link", name="Automation").click()
    row = page.locator("div").filter(has_text=re.compile(r"^user_today_schedule")).filter(has=page.get_by_role("checkbox").nth(1)).last
    switch = row.get_by_role("checkbox").last
    expect(switch).to_be_enabled()
    expect(switch).not_to_be_checked()
    switch.press("Space")
    expect(switch).to_be_checked()
    page.get_by_role("link", name="user_today_schedule").click()
    expect(page.get_by_role("row", name="Latest tick").get_by_text("1 run requested")).to_be_visible()
    tick = page.get_by_role("row").filter(has=page.get_by_role("button", name="View logs")).last
    expect(tick.get_by_role("img", name="run_success")).to_be_visible()
    picture(page, "ticks")

    page.get_by_role("link", name="Automation").first.click()
    expect(row.get_by_role("button", name="run_success")).to_be_visible()
    expect(switch).to_be_checked()
    picture(page, "automation")
    switch.press("Space")
    expect(switch).not_to_be_checked()

    page.get_by_role("link", name="Runs").click()
    job = page.get_by_role("link", name="user_today_refresh")
    page.locator("div").filter(has=job).filter(has=page.get_by_role("link", name="View")).last.get_by_role("link", name="View").click()
    expect(page.get_by_text("Succeeded (2)")).to_be_visible()
    for step in ("compute_user_today", "online__user_today"):
        expect(seen(page, step).first).to_be_visible()


def test_the_page_of_a_pushed_view_tells_rows_and_age(page: Page, project: Project) -> None:
    """After a push: how many rows went online, how old the data behind them is, and when the next push comes."""
    asset(page, project, "online/user_search", "overview")
    expect(value(page, "rows_written")).to_have_text("20")
    expect(value(page, "data_age_seconds")).to_have_text(re.compile(r"^\d+(\.\d+)?$"))
    assert 0 <= float(value(page, "data_age_seconds").inner_text()) < 2 * 3600
    expect(page.get_by_text("history newer than the online store")).to_be_visible()
    picture(page, "online")


def test_the_age_of_the_data_has_three_states(page: Page, project: Project) -> None:
    """Within its promise, close to it, beyond it: each has a mark of its own, though every run succeeded."""
    views = [f"user_{name}" for name in STATES]
    query = quote(" or ".join(f'key:"online/{view}"' for view in views), safe="")
    page.goto(f"{project.url}/asset-groups~{query}?expanded={quote(','.join(f'global@global:{view}' for view in views), safe='')}")
    expect(page.get_by_role("link", name="Passed").first).to_be_visible()
    for _ in range(5):  # the three do not fit in at first, and what is not seen is not there; with eight, nodes hide their checks
        page.get_by_role("button", name="zoom_out").click()
    for mark in ("done", "warning_outline", "close"):
        expect(pushed_checks(page, mark)).to_be_visible()
    picture(page, "freshness")

    for name, (mark, word) in STATES.items():
        asset(page, project, f"online/user_{name}", "checks")
        expect(page.get_by_text("at most 1 d old; a warning from 18 h on.")).to_be_visible()
        expect(verdict(page, mark)).to_contain_text(word)


def test_an_old_partition_does_not_make_old_data_look_fresh(page: Page, project: Project) -> None:
    """A run of an old partition, and the push after it, satisfy Dagster's freshness policy; the age of the data fails as before."""
    asset(page, project, "features/user_device/last_device", "partitions")
    launch(page, "Materialize…", f"{project.first_day:%Y-%m-%d}")
    expect(page.get_by_text("Success", exact=True)).to_be_visible()

    asset(page, project, "online/user_device", "checks")
    page.get_by_role("tab", name="Execution history").click()
    # Those of pushes name what was pushed, those of the sensor do not: the first push, and the one that follows the run.
    expect(page.get_by_role("row", name=re.compile(r"^cancel Failed .*M .*M - metadata$"))).to_have_count(2)
    expect(page.get_by_role("cell", name="Passed")).to_have_count(0)
    page.get_by_role("tab", name="Overview").last.click()
    expect(verdict(page, "cancel")).to_contain_text("Failed")
    assert float(value(page, "data_age_seconds").inner_text()) > 30 * 3600
    picture(page, "checks")

    page.get_by_role("tab", name="Overview").first.click()
    expect(page.get_by_text("Passing", exact=True).first).to_be_visible()
    expect(page.get_by_text("Fails if more than 24 hours since last materialization")).to_be_visible()


def test_a_partition_that_breaks_an_expectation_is_not_promoted(page: Page, project: Project) -> None:
    """Its run fails before the push, the check names what is wrong, the partition is red, and readers see what they saw before."""
    users = ["viewer-00", "viewer-19"]  # one who would be served seconds, and one who would not
    before = served(page, project, "minutes_watched", users)
    days = [f"{project.first_day + number * DAY:%Y-%m-%d}" for number in range(4)]
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("link", name="user_minutes_refresh").click()
    launch(page, "Materialize all…", days[-1])
    expect(page.get_by_text("Failure", exact=True)).to_be_visible()
    expect(page.get_by_text("between(0, 1440) fails for 3 of 20 rows").first).to_be_visible()
    expect(page.get_by_text("Dependencies for step online__user_minutes failed").first).to_be_visible()

    asset(page, project, "features/user_minutes/minutes_watched", "checks")
    expect(verdict(page, "cancel")).to_contain_text("Failed")
    expect(page.get_by_text("between(0, 1440): a partition that breaks it is not promoted.")).to_be_visible()
    for name, number in (("failed_rows", 3), ("rows", 20), ("rejected_windows", 1)):
        expect(value(page, name)).to_have_text(str(number))
    for name in ("contract", "late_data", "volume"):
        expect(seen(page, name)).to_be_visible()
    picture(page, "expectation")
    value(page, "sample_rows").get_by_text("[Show Markdown]").click()
    for user in range(3):
        expect(page.get_by_role("dialog").get_by_role("row", name=f"viewer-{user:02} ")).to_contain_text(str(60 * (30 + user)))
    page.get_by_role("button", name="Close").click()

    page.get_by_role("tab", name="Partitions").click()
    expect(page.get_by_role("checkbox", name="Failed (1)")).to_be_checked()
    page.get_by_role("checkbox", name="Materialized (3)").press("Space")
    expect(seen(page, days[1])).to_have_count(0)
    expect(seen(page, days[-1]).last).to_be_visible()

    asset(page, project, "online/user_minutes", "overview")
    page.get_by_role("button", name="Materialize").click()  # whoever pushes by hand pushes nothing of it
    page.get_by_role("region", name="Notifications").get_by_role("link", name="View").click()
    expect(page.get_by_text("Success", exact=True)).to_be_visible()
    assert served(page, project, "minutes_watched", users) == before == [32, 51]
