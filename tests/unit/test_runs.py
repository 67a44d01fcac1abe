"""What adapters keep of runs, on disk and in memory: the two stores say the same."""

from __future__ import annotations

import pytest

from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.storage.memory_state import MemoryRuns
from agentguard.storage.runs import FileRuns


@pytest.fixture(params=["file", "memory"])
def runs(request, tmp_path, signer):
    trust = TrustDocument("acme.example", "log", (TrustedKey("log", signer.public_key, 0),))
    keys = lambda: (signer, trust)  # noqa: E731
    return FileRuns(tmp_path, keys) if request.param == "file" else MemoryRuns()


def test_what_was_written_is_read_until_it_is_removed(runs):
    assert runs.read("run") is None
    runs.write("run", b"one")
    runs.write("run", b"two")
    assert runs.read("run") == b"two"
    runs.remove("run")
    runs.remove("run")
    assert runs.read("run") is None


@pytest.mark.parametrize("data", [b"", b"1", b"call_1"])
def test_only_the_first_adds(runs, data):
    assert runs.add("owner", data) is True
    assert runs.add("owner", data) is False  # the very object, too
    assert runs.add("owner", b"another") is False
    assert runs.read("owner") == data


def test_a_name_is_any_text(runs):
    for name in ("../up", "a/b", "\udcff", "x" * 5000):
        runs.write(name, b"kept")
        assert runs.read(name) == b"kept"
