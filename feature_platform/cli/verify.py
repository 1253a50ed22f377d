"""
`fp verify`: whether a training set would come out the same today.

Shows what `offline.reproduction` finds, which loads DuckDB when the command runs and not before. Needs no Dagster.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from feature_platform.cli.arguments import Project, examples, json_option, pass_project
from feature_platform.cli.output import count, instant, iso

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feature_platform.offline.card import DatasetCard
    from feature_platform.offline.reproduction import Difference

__all__ = ["verify"]

_SHOWN = 20


@click.command(epilog=examples("fp verify training.parquet", "fp verify training.parquet --recompute"))
@click.argument("dataset", metavar="DATASET.parquet", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--recompute", is_flag=True, help="Join again, and compare every row.")
@json_option
@pass_project
def verify(project: Project, *, dataset: Path, recompute: bool) -> None:
    """
    Say whether a training set would come out the same today.

    Compares the card beside it with today's code, partitions and labels, and lists what differs. With --recompute the rows
    decide: partitions and labels that were written again to the same effect count as the same, while changed code and a
    changed file never do.

    Exit code 0: the same. Exit code 1: not the same, or there is no card.
    """
    from feature_platform.offline.card import read_card  # noqa: PLC0415 - loads DuckDB
    from feature_platform.offline.reproduction import differences, entity_path, refs_of  # noqa: PLC0415 - as above
    from feature_platform.offline.store import OfflineStore  # noqa: PLC0415 - as above

    card = read_card(dataset)
    found = differences(card, dataset.absolute(), project.registry, OfflineStore(project.settings.offline_root))
    rows: list[Difference] = []
    _, undeclared = refs_of(card, project.registry)
    # The dataset has its labels in it, so it can be asked about itself; a changed one only of the labels' own file.
    is_intact = all(one.kind != "dataset" for one in found)
    entity_df = entity_path(card, dataset.absolute().parent)
    compared = recompute and dataset.is_file() and not undeclared and (is_intact or entity_df is not None)
    if compared:
        rows = _join_again(project, dataset.absolute(), card, entity_df)
    are_equal = compared and not rows
    settled = [one for one in found if are_equal and one.is_settled_by_rows]
    different = rows + [one for one in found if not (are_equal and one.is_settled_by_rows)]
    _show(project, dataset, card, different, settled, compared=compared)
    project.output.document(
        {
            "dataset": str(dataset),
            "is_same": not different,
            "is_recomputed": compared,
            "rows": card.rows,
            "created_at": iso(card.created_at),
            "platform_version": card.platform_version,
            "differences": [_document(one) for one in different],
            "without_effect": [_document(one) for one in settled],
        }
    )
    if different:
        click.get_current_context().exit(1)


def _join_again(project: Project, dataset: Path, card: DatasetCard, entity_df: str | None) -> list[Difference]:
    """Ask the card's question again, of the labels as they are today, else of the dataset's own; compare the rows."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - slow to import, and only for --recompute

    from feature_platform.feature_store import FeatureStore  # noqa: PLC0415 - loads DuckDB
    from feature_platform.offline.reproduction import differing_rows  # noqa: PLC0415 - as above

    with (
        tempfile.TemporaryDirectory() as folder,
        FeatureStore(project.registry, project.settings) as store,
        project.output.progress("joining"),
    ):
        today = Path(folder) / dataset.name
        store.get_historical_features(
            entity_df or pq.read_table(dataset, columns=card.entity_df.columns),
            [feature.reference for feature in card.features],
            card.as_of,
            full_feature_names=card.full_feature_names,
            statuses=card.statuses,
        ).to_parquet(today)
        return differing_rows(dataset, today)


def _show(
    project: Project, dataset: Path, card: DatasetCard, different: Sequence[Difference], settled: Sequence[Difference], *, compared: bool
) -> None:
    output = project.output
    output.line(f"{dataset}: {count(card.rows)} rows, written {instant(card.created_at)} UTC by version {card.platform_version}.")
    if different:
        output.line("Not the same today:", style="bold red")
        _table(project, different)
    elif compared:
        output.line("The same today: joined again, every row is equal.", style="green")
    else:
        labels = "labels" if card.entity_df.path is not None else "defaults (the labels were in memory: the card has their SHA-256)"
        output.line(f"The same today: code, partitions and {labels} are what they were.", style="green")
    if settled:
        output.line("Changed since, without an effect on these rows:")
        _table(project, settled)


def _table(project: Project, differences: Sequence[Difference]) -> None:
    rows: list[list[object]] = [
        [one.kind.replace("_", " "), Text(one.where, style="bold"), one.window, one.what, instant(one.since)]
        for one in differences[:_SHOWN]
    ]
    project.output.table(["what", "where", "partition", "difference", "since (UTC)"], rows)
    if len(differences) > _SHOWN:
        project.output.line(f"... and {count(len(differences) - _SHOWN)} more; --json lists them all.")


def _document(one: Difference) -> dict[str, object]:
    return {
        "kind": one.kind,
        "where": one.where,
        "what": one.what,
        "window": one.window,
        "since": iso(one.since),
        "rows": one.rows,
    }
