"""Guards of the tests behind a guard server: each guard's steps run in threads of a server.

A plugin of pytest. The tests in ``BOTH_WAYS`` run with embedded guards and, once more, with each
guard that a test makes (``Guard.ephemeral``, ``Guard.open``) as a client of a server in the same
process. ``pytest --served PATHS`` runs any tests with such guards alone. What a client can't reach
(the log) the tests read from the embedded parts.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit.log import LogReader
from agentguard.client.dial import AtPath
from agentguard.client.link import Link
from agentguard.client.parts import ClientParts
from agentguard.domain.config import Config
from agentguard.domain.config.server import ServerConfig
from agentguard.domain.report import Report
from agentguard.flow.ports import OnRequest
from agentguard.guard import embedded, guard
from agentguard.guard.callbacks import Functions
from agentguard.guard.process import Runtime
from agentguard.server.serve import GuardServer


class ServedParts(ClientParts):
    """The parts of a client whose server runs in this process, with the server's parts at hand."""

    def __init__(
        self, settings: Config, inner: embedded.Embedded, on_request: OnRequest | None
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ag", dir="/tmp"))  # a socket's path is short
        socket = self._folder / "s"
        self._settings = replace(settings, server=ServerConfig(socket, pin_tools=False, drain=0.2))
        self._inner = inner
        self._server = GuardServer(self._settings, inner)
        super().__init__(Link(AtPath(socket), timeout=30), settings.telemetry, on_request)
        self.policy_place = inner.policy_place

    @property
    def runtime(self) -> Runtime:
        return self._inner.runtime

    def reader(self) -> LogReader:
        self._link.flush()
        return self._inner.reader()

    def verify(self) -> Report:
        self._link.flush()
        return self._inner.verify()

    def close(self) -> None:
        super().close()
        self._server.close()
        self._inner.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _served(
    settings: Config,
    engine: Any,
    domain: Any,
    functions: Functions = Functions(),  # noqa: B008  a value
    **more: Any,
) -> Any:
    at_server = functions._replace(on_request=None)
    inner = embedded.Embedded(settings, engine, domain, at_server, **more)
    try:
        return ServedParts(settings, inner, functions.on_request)
    except BaseException:
        inner.close()
        raise


BOTH_WAYS = {
    "test_crewai_approvals_answers",
    "test_crewai_delegation_hops",
    "test_crewai_delegation_users",
    "test_crewai_kit",
    "test_crewai_runs_results",
    "test_langchain_approvals",
    "test_langchain_approvals_refused",
    "test_langchain_approvals_roles",
    "test_langchain_delegation_contexts",
    "test_langchain_journal",
    "test_langchain_kit",
    "test_langchain_traces",
    "test_mcp_request_guard",
    "test_proof_requests",
    "test_proof_rights",
    "test_request_ends",
    "test_served_guards",
    "test_testing",
}
"""The modules whose tests run with embedded guards and with guards behind servers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--served", action="store_true", help="run with guards behind servers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module = metafunc.module.__name__.rpartition(".")[2]
    if metafunc.config.getoption("served"):
        ways = ["served"]
    elif module in BOTH_WAYS:
        ways = ["embedded", "served"]
    else:
        return
    metafunc.parametrize("guards_are", ways, indirect=True)


@pytest.fixture(autouse=True)
def guards_are(request: pytest.FixtureRequest) -> Iterator[str]:
    """Make each new guard of the test a client of a server of its own, where that is asked."""
    way: str = getattr(request, "param", "embedded")
    with pytest.MonkeyPatch.context() as patched:
        if way == "served":
            patched.setattr(guard, "Embedded", _served)
            patched.setattr(guard, "open_embedded", _opened)
        yield way


def _opened(
    settings: Config,
    passphrase: Any,
    functions: Functions = Functions(),  # noqa: B008  a value
) -> Any:
    inner = embedded.open_embedded(settings, passphrase, functions._replace(on_request=None))
    return ServedParts(settings, inner, functions.on_request)
