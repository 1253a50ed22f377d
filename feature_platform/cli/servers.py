"""
`fp up`, `fp serve` and `fp down`: the servers of a project on one machine.

Knows what to start and where it answers. How processes live and die is `processes`'.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from feature_platform.cli.arguments import Project, examples, json_option, pass_project
from feature_platform.cli.online import online_address
from feature_platform.cli.output import shown_path
from feature_platform.cli.processes import LOOPBACK, ChildError, Children, StopSignals, answers, check_port
from feature_platform.errors import SettingsError

if TYPE_CHECKING:
    from feature_platform.settings import Settings

__all__ = ["api_command", "dagster_home", "down", "serve", "up"]

_READY_SECONDS: Final = 180.0
_UI_PORT: Final = 3000


@click.command(epilog=examples("fp up", "fp up --ui-port 3001 --api-port 8001"))
@click.option("--ui-port", type=int, default=_UI_PORT, show_default=True, help="Port of the Dagster UI.")
@click.option("--api-port", type=int, help="Port of the API. [default: the setting api_port, 8000]")
@json_option
@pass_project
def up(project: Project, *, ui_port: int, api_port: int | None) -> None:
    """
    Start online store, Dagster and API.

    Ctrl-C stops them all. They answer on this machine only, Dagster with its UI and its daemon. Its runs are kept in
    .dagster, or in DAGSTER_HOME where that is set; what the servers print goes to .dagster/up.
    """
    settings, output = project.settings, project.output
    api_port = settings.api_port if api_port is None else api_port
    project.registry  # noqa: B018 - a contradiction is said here, and not in a log of Dagster's
    check_port(ui_port, "the Dagster UI", "--ui-port")
    check_port(api_port, "the API", "--api-port")
    if ui_port == api_port:
        raise click.UsageError("--ui-port and --api-port are the same.")
    home, logs = dagster_home(settings), settings.root / ".dagster" / "up"
    addresses = {"ui": f"http://{LOOPBACK}:{ui_port}", "api": f"http://{LOOPBACK}:{api_port}"}
    with StopSignals() as signals, Children() as children:
        try:
            with output.progress("starting"):
                addresses["online_store"] = _start_online_store(project)
                children.start(
                    "Dagster",
                    dagster_command(settings, ui_port),
                    folder=settings.root,
                    log=logs / "dagster.log",
                    environment={"DAGSTER_HOME": str(home)},
                )
                children.start("the API", api_command(api_port), folder=settings.root, log=logs / "api.log")
                _wait(children, signals, [f"{addresses['ui']}/server_info", f"{addresses['api']}/health"])
            if not signals.asked:
                _show_addresses(project, addresses, logs)
            while not signals.wait(1.0):
                children.check()
        finally:
            output.note("Stopping ...")
            children.stop(hurry=lambda: signals.asked > 1)
            if settings.redis_url is None:
                from feature_platform.online.embedded import stop_server  # noqa: PLC0415 - loads redis-py

                stop_server(settings.online_root)
            output.note("Stopped: Dagster, the API" + (" and the online store." if settings.redis_url is None else "."))


def _wait(children: Children, signals: StopSignals, urls: list[str]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while urls and not signals.wait(0.2):
        children.check()
        urls = [url for url in urls if not answers(url)]
        if time.monotonic() > deadline:
            message = f"{urls[0]} has not answered for {_READY_SECONDS:.0f} s.\nSee the logs in .dagster/up."
            raise ChildError(message)


def _show_addresses(project: Project, addresses: dict[str, str], logs: Path) -> None:
    output, root = project.output, project.settings.root
    output.facts(
        {
            "Dagster UI": addresses["ui"],
            "API": f"{addresses['api']}/docs",
            "online store": _shown_store(addresses["online_store"], root),
        }
    )
    output.line(f"Logs in {logs.relative_to(root)}. Ctrl-C stops all three.", style="dim")
    output.document({**addresses, "pid": os.getpid(), "logs": str(logs.relative_to(root))})


def _shown_store(address: str, root: Path) -> str:
    path = address.removeprefix("unix://")
    return f"{shown_path(Path(path), root)} (unix socket)" if path != address else address


def _start_online_store(project: Project) -> str:
    settings = project.settings
    if settings.redis_url is None:
        from feature_platform.online.embedded import ensure_server  # noqa: PLC0415 - loads redis-py

        return f"unix://{ensure_server(settings.online_root)}"
    from feature_platform.online.opening import open_online_store  # noqa: PLC0415 - loads redis-py

    with open_online_store(settings) as store:
        store.ping()
    return online_address(settings.redis_url)


def dagster_command(settings: Settings, port: int) -> list[str]:
    """
    Return the command that starts the UI and the daemon, which share one code server.

    Raises:
        SettingsError: The project does not say what Dagster shall load.
    """
    for option, name in (("-w", "workspace.yaml"), ("-f", "definitions.py")):
        if (settings.root / name).is_file():
            return [sys.executable, "-m", "dagster", "dev", option, name, "--host", LOOPBACK, "--port", str(port)]
    message = f"there is neither workspace.yaml nor definitions.py in {settings.root}.\n'fp init' writes both into a new project."
    raise SettingsError(message, field="root")


def api_command(port: int) -> list[str]:
    """Return the command that starts the API on this machine."""
    return [sys.executable, "-m", "feature_platform.cli", "serve", "--host", LOOPBACK, "--port", str(port)]


def dagster_home(settings: Settings) -> Path:
    """
    Return Dagster's folder: DAGSTER_HOME, else `.dagster` in the project, with the project's dagster.yaml linked into it.

    A link, so that the file that people edit is the one that counts.
    """
    named = os.environ.get("DAGSTER_HOME")
    if named:
        return Path(named)
    home = settings.root / ".dagster"
    home.mkdir(exist_ok=True)
    link = home / "dagster.yaml"
    if not link.exists() and (settings.root / "dagster.yaml").is_file():
        link.unlink(missing_ok=True)  # one that points nowhere: the project was moved
        link.symlink_to(Path("..") / "dagster.yaml")
    return home


@click.command(epilog=examples("fp serve --port 8001", "fp serve --workers 4"))
@click.option("--host", help="Address to bind; beyond this machine only with a token. [default: the setting api_host, 127.0.0.1]")
@click.option("--port", type=int, help="Port to bind. [default: the setting api_port, 8000]")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that share the port. [default: the setting api_workers, 1]")
@json_option
@pass_project
def serve(project: Project, *, host: str | None, port: int | None, workers: int | None) -> None:
    """
    Serve features over HTTP until Ctrl-C.

    Documentation of the routes is at /docs. Ctrl-C and SIGTERM answer what is under way. With several workers, one that
    dies is replaced, and SIGHUP replaces them one by one: with new code, and without a dropped connection.
    """
    from feature_platform import api  # noqa: PLC0415 - loads FastAPI
    from feature_platform.api.auth import check_binding  # noqa: PLC0415 - as above

    settings = project.settings
    host, port = host or settings.api_host, settings.api_port if port is None else port
    workers = settings.api_workers if workers is None else workers
    check_binding(settings, host)
    if "LISTEN_FDS" not in os.environ and host in {LOOPBACK, "localhost"}:
        check_port(port, "the API", "--port")
    url = f"http://{host}:{port}"
    registry = project.registry
    project.output.line(f"{url}/docs")
    project.output.document({"url": url, "pid": os.getpid()})
    if workers == 1:
        api.serve(registry, settings, host=host, port=port)
    else:
        api.serve_workers(settings, workers=workers, host=host, port=port)


@click.command(epilog=examples("fp down"))
@json_option
@pass_project
def down(project: Project) -> None:
    """
    Stop the embedded online store.

    Its data stays on disk. `fp up` stops it by itself. The next command that needs it starts it again.
    """
    settings, output = project.settings, project.output
    if settings.redis_url is not None:
        output.line(f"The online store is {online_address(settings.redis_url)}: it was not started here, so it is left alone.")
        output.document({"stopped": False})
        return
    from feature_platform.online.embedded import stop_server  # noqa: PLC0415 - loads redis-py

    was_running = stop_server(settings.online_root)
    output.line(
        "The online store is stopped; its data is in " + str(settings.online_root) if was_running else "No online store was running."
    )
    output.document({"stopped": was_running})
