"""What a task does beside its work: callbacks, listeners and e-mail, before, after and between its attempts."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.running import RunningSite

pytestmark = pytest.mark.timeout(900)

# What each of them tries, and whether it is done. Alpha's XComs are those of another Dag, and the task's own.
TRIED = {
    ("read connection", "alpha_db"): True,
    ("read connection", "common_db"): True,
    ("read connection", "beta_db"): False,
    ("read variable", "alpha_config"): True,
    ("read variable", "announcement"): True,
    ("read variable", "beta_config"): False,
    ("pull xcom", "alpha_daily"): True,
    ("pull xcom", "common_cleanup"): True,
    ("pull xcom", "beta_daily"): False,
    ("push xcom", "left"): True,
    ("write variable", "alpha_config"): True,
    ("write variable", "common_config"): False,
    ("write variable", "beta_config"): False,
    # Airflow keeps tasks from its database.
    ("query", "connection"): False,
}
OF_TASKS = (
    "a callback of execution", "a callback of failure", "a callback of retry", "a callback of skipping",
    "a callback of success", "a listener of failure", "a listener of retry", "a listener of success",
)  # fmt: skip
# This runs in the Dag processor, which writes nothing.
OF_THE_DAG = "the Dag's callback of failure"
READ = {tried: done for tried, done in TRIED.items() if tried[0] != "push xcom"} | {
    tried: False for tried in TRIED if tried[0] == "write variable"
}


class _Mailbox(socketserver.StreamRequestHandler):
    """An SMTP server that takes every e-mail, and keeps the lines of all of them."""

    def handle(self) -> None:
        self.wfile.write(b"220 at your service\r\n")
        for line in self.rfile:
            command = line[:4].upper()
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                for content in iter(self.rfile.readline, b".\r\n"):
                    self.server.received.append(content.decode())  # type: ignore[attr-defined]
            self.wfile.write(b"250 well\r\n")
            if command == b"QUIT":
                return


@contextmanager
def mailbox(site: RunningSite) -> Iterator[list[str]]:
    """The lines of e-mail that tasks send by the common connection which Airflow's e-mail takes."""
    pat = site.client("pat")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Mailbox) as server:
        received = server.received = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        named = {"connection_id": "smtp_default", "conn_type": "smtp", "host": "127.0.0.1"}
        plain = json.dumps({"disable_ssl": True, "disable_tls": True})
        made = pat.post("/api/v2/connections", json=named | {"port": server.server_address[1], "extra": plain})
        assert made.status_code == 201, made.text
        try:
            yield received
        finally:
            pat.delete("/api/v2/connections/smtp_default")
            server.shutdown()


def left_in(directory: Path) -> dict[str, dict[tuple[str, str], bool]]:
    """What each of them has done, by its words."""
    return {
        file.name: {(tried["what"], tried["about"]): tried["done"] for tried in json.loads(file.read_text())}
        for file in directory.iterdir()
        if file.suffix != ".unfinished"
    }


@pytest.mark.parametrize(
    "site", ["site_in_process", pytest.param("site_with_opa", marks=pytest.mark.exhaustive)], indirect=True
)
def test_what_callbacks_and_listeners_do_is_decided_as_their_task(site: RunningSite, tmp_path: Path) -> None:
    conf = {"attempts": list(TRIED), "reads": list(READ), "leave_in": str(tmp_path)}
    with mailbox(site) as received:
        run_id = site.trigger("alpha_callbacks", conf)
        site.wait_for((tmp_path / OF_THE_DAG).exists, "the run to fail, and the Dag's callback")
        assert site.state("alpha_callbacks", run_id) == "failed"
        # Two mails at about the same time may come in either order.
        subjects = sorted(line for line in received if line.startswith("Subject:"))
    assert left_in(tmp_path) == dict.fromkeys(OF_TASKS, TRIED) | {OF_THE_DAG: READ}
    # One of each attempt.
    assert ["try_number=1 " in subjects[0], "try_number=2 " in subjects[1], len(subjects)] == [True, True, 2]
