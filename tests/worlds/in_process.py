"""A team's Dag processor and triggerer, for whoever sends them requests: `python -m tests.worlds.in_process PORT`.

Both ask Airflow's Execution API in their own process, as messages of the code that they run come in. Here each HTTP
request to the loopback interface is such a message: it passes the real supervisor's handling of messages, and the
in-process API that this supervisor makes. Only the request that comes out of the message is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import structlog
from airflow.dag_processing import processor
from airflow.jobs import triggerer_job_runner
from airflow.sdk.execution_time.comms import GetVariable

TEAM = "beta"
_PREFIX = "/execution"
_NOT_PASSED_ON = {"connection", "content-length", "host", "transfer-encoding"}

Send = Callable[[], Any]


def _supervisor(module: Any, kind: Any, **state: Any) -> Callable[[str, str, bytes, dict[str, str]], httpx.Response]:
    """Sends a request the way that the supervisor of this kind does."""
    client = httpx.Client(base_url="http://in-process.invalid./", transport=module.in_process_api_server().transport)

    def send(method: str, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        found: list[httpx.Response] = []

        def request(_key: str) -> None:
            found.append(client.request(method, path, content=body, headers=headers))

        acting = SimpleNamespace(
            client=SimpleNamespace(variables=SimpleNamespace(get=request)), send_msg=lambda *_, **__: None, **state
        )
        kind._handle_request(acting, GetVariable(key=""), structlog.get_logger(), 0)
        return found[0]

    return send


def _handler(supervisors: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """`/dag_processor/execution/…` and `/triggerer/execution/…`"""

        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            name, _, path = self.path.removeprefix("/").partition(_PREFIX)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
            try:
                answer = supervisors[name](self.command, path, body, headers)
            except Exception as error:
                # What Airflow's application raises reaches the supervisor as it is.
                answer = httpx.Response(500, text=type(error).__name__)
            self.send_response(answer.status_code)
            for header, value in answer.headers.items():
                if header.lower() not in _NOT_PASSED_ON:
                    self.send_header(header, value)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.content)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815 - http.server's names

        def log_message(self, *_: Any) -> None:
            """Nothing: there are thousands."""

    return Handler


def main(port: int) -> None:
    """Serve until somebody ends this process."""
    supervisors = {
        "dag_processor": _supervisor(processor, processor.DagFileProcessorProcess, bundle_name=f"{TEAM}-dags", id=None),
        "triggerer": _supervisor(triggerer_job_runner, triggerer_job_runner.TriggerRunnerSupervisor, team_name=TEAM),
    }
    ThreadingHTTPServer(("127.0.0.1", port), _handler(supervisors)).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
