"""
A production set-up in temporary folders: Postgres, Redis, and each of Dagster's processes and the API for itself.

Knows how they are started, killed, started again and asked. Secrets are made here, once per set-up, and given by environment only.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pytest

from feature_platform.cli.processes import Child, Children, answers, free_port
from feature_platform.errors import OnlineStoreError
from feature_platform.online.redis import RedisOnlineStore

REPOSITORY = Path(__file__).parent.parent
UNITS = REPOSITORY / "deploy" / "systemd"
SCRIPTS = Path(sys.executable).parent
# Generous: the machine may be busy with other tests. A wait ends as soon as what it waits for is there.
SECONDS = 240.0
T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], logs: Callable[[], str] = str) -> T:
    """Wait for something to be there."""
    deadline = time.monotonic() + SECONDS
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"waited in vain for {what}\n{logs()}"
        time.sleep(0.2)
    return found


def is_true(claim: bool) -> bool | None:  # noqa: FBT001 - the claim is the point
    """Return None for what is not so, as `until` wants it."""
    return claim or None


# -- Postgres ------------------------------------------------------------------------------------------------------------


def _postgres_folder() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    assert found, "these tests need Postgres: apt-get install postgresql"
    return found[-1]


def _as_postgres() -> list[str]:
    """Return what to put before a command of Postgres, which refuses to run as root."""
    return [] if os.geteuid() else ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]


@dataclass
class Postgres:
    """
    A Postgres of its own, which asks for a password.

    Attributes:
        folder: Data and log.
        password: Of the user `dagster`.
        port: On loopback.
    """

    folder: Path
    password: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What Dagster connects to."""
        return f"postgresql+psycopg2://dagster:{self.password}@127.0.0.1:{self.port}/dagster"

    def run(self, tool: str, *arguments: str) -> str:
        """Run one of Postgres's clients; return what it printed."""
        environment = {**os.environ, "PGPASSWORD": self.password}
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "dagster"]
        command = [str(_postgres_folder() / tool), *address, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=SECONDS).stdout

    def create(self) -> None:
        """Make the data folder and the database."""
        word = self.folder / "word"  # initdb takes a password from a file only; it is gone before anything else starts
        word.touch(0o600)
        word.write_text(self.password)
        if not os.geteuid():
            owner = pwd.getpwnam("postgres")
            for path in (self.folder, word):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        command = [*_as_postgres(), str(_postgres_folder() / "initdb"), "-D", str(self.folder / "data"), "-U", "dagster"]
        command += ["-A", "scram-sha-256", "--pwfile", str(word), "--no-sync", "-E", "UTF8", "--locale", "C"]
        subprocess.run(command, cwd=self.folder, capture_output=True, check=True, timeout=SECONDS)
        word.unlink()
        self.start()
        self.run("createdb", "dagster")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [*_as_postgres(), str(_postgres_folder() / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        until("Postgres", self._answer)

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop the server, not waiting for its clients."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def _answer(self) -> bool | None:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "postgres.log").read_text()
        with contextlib.suppress(subprocess.CalledProcessError):
            return is_true(bool(self.run("psql", "-d", "postgres", "-c", "select 1")))
        return None


@dataclass
class Redis:
    """
    A Redis of its own, which asks for a password and keeps nothing on disk.

    Attributes:
        folder: For its socket.
        password: Of everybody.
    """

    folder: Path
    password: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What the platform connects to."""
        return f"unix://:{self.password}@{self.folder}/redis.sock"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        assert shutil.which("redis-server"), "these tests need Redis: apt-get install redis-server"
        # By its standard input: a command line can be read by every user of the machine.
        configuration = f'port 0\nunixsocket {self.folder}/redis.sock\ndir {self.folder}\nsave ""\nrequirepass {self.password}\n'
        log = subprocess.DEVNULL
        self.process = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        assert self.process.stdin is not None
        self.process.stdin.write(configuration.encode())
        self.process.stdin.close()
        with RedisOnlineStore.from_url(self.url) as store:
            until("Redis", lambda: is_true(_pings(store)))

    def kill(self) -> None:
        """Kill the server: what it held is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _pings(store: RedisOnlineStore) -> bool:
    try:
        store.ping()
    except OnlineStoreError:
        return False
    return True


# -- everything ----------------------------------------------------------------------------------------------------------


class WebserverError(Exception):
    """The webserver answered with an error of its own."""


@dataclass
class Production:
    """
    A project in production.

    Attributes:
        root: The project folder.
        home: DAGSTER_HOME.
        logs: What the processes print.
        secrets: By what they open.
        postgres: Dagster's storage.
        redis: The online store.
        children: All other processes.
        ui: Address of the webserver.
        api: Address of the API.
        instance: The same one that the processes share.
    """

    root: Path
    home: Path
    logs: Path
    secrets: dict[str, str]
    postgres: Postgres
    redis: Redis
    children: Children
    ui: str
    api: str
    running: dict[str, Child] = field(default_factory=dict)
    instance: dg.DagsterInstance = field(init=False)

    def command(self, name: str, key: str = "ExecStart") -> list[str]:
        """Return the command of a process, as its systemd unit has it, with the paths and ports of this set-up."""
        unit = configparser.ConfigParser(interpolation=None)
        unit.read(UNITS / f"feature-platform-{name}.service")
        command = unit["Service"][key].replace("/srv/features/.venv/bin", str(SCRIPTS)).replace("127.0.0.1:3000", self.ui[len("http://") :])
        command = command.replace("/run/feature-platform/code.sock", os.environ["DAGSTER_CODE_SOCKET"])
        return shlex.split(command.replace("-p 3000", f"-p {self.ui.rpartition(':')[2]}"))

    def start(self, name: str) -> None:
        """Start a process; for the second time too."""
        log = self.logs / f"{name}.{len(list(self.logs.glob(f'{name}.*')))}.log"
        self.running[name] = self.children.start(name, self.command(name), folder=self.root, log=log)

    def kill(self, name: str) -> None:
        """Kill a process, and nothing that it started."""
        self.running[name].process.kill()
        self.running[name].process.wait()

    def wait_for(self, name: str) -> None:
        """Wait until a process does its work."""
        ready: dict[str, Callable[[], bool]] = {
            "code": self._code_server_answers,
            "webserver": lambda: answers(f"{self.ui}/server_info") and self.location_id() is not None,
            "daemon": self._daemon_lives,
            "api": lambda: answers(f"{self.api}/health"),
        }
        until(name, lambda: is_true(ready[name]()), self.tails)

    def tails(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in sorted(self.logs.glob("*.log")))

    def log_has(self, name: str, text: str) -> bool | None:
        """Return whether the process that runs now has said something."""
        return is_true(text in self.running[name].log.read_text(errors="replace"))

    # -- Dagster's UI

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask the webserver what its UI would ask."""
        request = urllib.request.Request(  # noqa: S310 - a loopback address made here
            f"{self.ui}/graphql", json.dumps({"query": query, "variables": variables}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _open(request) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise WebserverError(error.read().decode()) from error
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def location_id(self) -> str | None:
        """Return the id of the code server as the webserver has loaded it; it changes with every reload."""
        # Also after a crash of Postgres: each connection that the webserver held fails one request.
        with contextlib.suppress(WebserverError):
            return self._location_id()
        return None

    def _location_id(self) -> str | None:
        query = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus versionKey locationOrLoadError { __typename } } } } }"
        for entry in self.graphql(query)["workspaceOrError"]["locationEntries"]:
            if entry["loadStatus"] == "LOADED" and entry["locationOrLoadError"]["__typename"] == "RepositoryLocation":
                return str(entry["versionKey"])
        return None

    def backfill(self, view: str, keys: Sequence[str], features: Sequence[str] = ("plays", "last_title")) -> str:
        """Launch a backfill of a view's features, as the UI does; return its id."""
        mutation = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
            __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
        params = {"assetSelection": [{"path": ["features", view, name]} for name in features], "partitionNames": keys}
        launched = self.graphql(mutation, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def compute(self, view: str, keys: Sequence[str]) -> str:
        """Launch a run of adjacent partitions of a view, as its schedule does; return its id."""
        tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
        return self._launch({"pipelineName": f"{view}_refresh"}, tags if len(keys) > 1 else {"dagster/partition": keys[0]})

    def push(self, view: str) -> str:
        """Launch a run that pushes a view online, as its automation does; return its id."""
        return self._launch({"pipelineName": "__ASSET_JOB", "assetSelection": [{"path": ["online", view]}]}, {})

    def _launch(self, what: Mapping[str, object], tags: Mapping[str, str]) -> str:
        mutation = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        selector = {"repositoryLocationName": "feature_platform", "repositoryName": "__repository__", **what}
        execution = {"tags": [{"key": name, "value": value} for name, value in tags.items()]}
        params = {"selector": selector, "mode": "default", "runConfigData": {}, "executionMetadata": execution}
        launched = self.graphql(mutation, params=params)["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise WebserverError(launched)
        return str(launched["run"]["runId"])

    def reload(self) -> None:
        """Load the project's code anew, as `systemctl reload` does."""
        subprocess.run(self.command("code", "ExecReload"), cwd=self.root, capture_output=True, check=True, timeout=SECONDS)

    def runs_of(self, backfill: str) -> list[dg.DagsterRun]:
        """Return the runs of a backfill."""
        return list(self.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill})))

    def retry_of(self, run_id: str) -> str | None:
        """Return the run that runs another one again by itself."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.tags.get("dagster/auto_retry_run_id")

    def done(self, backfill: str) -> bool | None:
        """Return whether a backfill's one run has succeeded; it must not fail."""
        runs = self.runs_of(backfill)
        assert len(runs) <= 1, runs
        return self.succeeded(runs[0].run_id) if runs else None

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        """Return the status of a run."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def succeeded(self, run_id: str) -> bool | None:
        """Return whether a run has succeeded; it must not fail."""
        status = self.status(run_id)
        assert status not in {dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}, self.tails()
        return is_true(status == dg.DagsterRunStatus.SUCCESS)

    # -- the API

    def serve(self, view: str) -> tuple[int, dict[str, Any]]:
        """Ask the API for the features of the one user; return the HTTP status and what it answered."""
        body = {"user_id": "ann", "features": [f"{view}:plays", f"{view}:last_title"]}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.secrets['api']}"}
        request = urllib.request.Request(f"{self.api}/get-online-features", json.dumps(body).encode(), headers)  # noqa: S310 - as above
        try:
            with _open(request) as response:
                return response.status, json.load(response)["features"]
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def served(self, view: str) -> str | None:
        """Return the title that the API answers for the one user; None where it has none."""
        status, features = self.serve(view)
        return str(features["last_title"]) if status == 200 else None

    # -- private

    def _code_server_answers(self) -> bool:
        command = [str(SCRIPTS / "dagster"), "api", "grpc-health-check", "-s", os.environ["DAGSTER_CODE_SOCKET"]]
        return subprocess.run(command, capture_output=True, check=False, timeout=SECONDS).returncode == 0

    def _daemon_lives(self) -> bool:
        return self.log_has("daemon", "Instance is configured with the following daemons") is not None


def _open(request: urllib.request.Request) -> Any:
    # No proxy: these are addresses of this machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)


@contextlib.contextmanager
def production(root: Path, files: Mapping[str, str]) -> Iterator[Production]:
    """
    Start all processes of a project, with the files of `deploy/`, and stop them in the end.

    Args:
        root: An empty folder.
        files: Of the project, by path.
    """
    project, home, logs = root / "project", root / "home", root / "logs"
    for folder in (project, home, logs):
        folder.mkdir()
    for path, text in files.items():
        (project / path).write_text(text)
    shutil.copy(REPOSITORY / "deploy" / "workspace.yaml", project)
    shutil.copy(REPOSITORY / "deploy" / "dagster.yaml", home)
    words = {name: secrets.token_hex(16) for name in ("postgres", "redis", "api")}
    # Of their own: Postgres runs as another user, who cannot enter pytest's folders; socket paths are short.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="pg") as database,
        tempfile.TemporaryDirectory(prefix="fp") as sockets,
        contextlib.ExitStack() as stack,
    ):
        postgres = Postgres(Path(database), words["postgres"], free_port())
        stack.callback(postgres.stop)
        postgres.create()
        redis = Redis(Path(sockets), words["redis"])
        stack.callback(redis.kill)
        redis.start()
        api_port = free_port()
        for name in [name for name in os.environ if name.startswith(("FEATURE_PLATFORM_", "DAGSTER_"))]:
            patch.delenv(name)
        for name, value in {
            "DAGSTER_HOME": str(home),
            "DAGSTER_POSTGRES_URL": postgres.url,
            "DAGSTER_CODE_SOCKET": f"{sockets}/code.sock",
            "FEATURE_PLATFORM_REDIS_URL": redis.url,
            "FEATURE_PLATFORM_API_TOKEN": words["api"],
            "FEATURE_PLATFORM_API_PORT": str(api_port),
            "FEATURE_PLATFORM_READ_DEADLINE_MS": "5000",
            "PYTHONPATH": str(REPOSITORY),
        }.items():
            patch.setenv(name, value)
        children = stack.enter_context(Children())
        made = Production(
            root=project,
            home=home,
            logs=logs,
            secrets=words,
            postgres=postgres,
            redis=redis,
            children=children,
            ui=f"http://127.0.0.1:{free_port()}",
            api=f"http://127.0.0.1:{api_port}",
        )
        # Dagster makes its tables when it first connects; the first to connect is the only one.
        made.instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        made.start("code")
        made.start("api")
        made.wait_for("code")
        for name in ("daemon", "webserver"):
            made.start(name)
        for name in ("api", "daemon", "webserver"):
            made.wait_for(name)
        yield made
