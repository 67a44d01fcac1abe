"""A refusal that no agent has signed, and what is told of it to people.

Its agent's signer failed, so the log alone vouches for it: whoever has the log's key could have
made it up. Nobody is told that the agent has signed it, or that its key says anything.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace

import pytest

from agentguard import Denied
from agentguard.audit import evidence
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.find import scan_entries
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.cli.audit import call_report, evidence_report, show
from agentguard.cli.terminal.location import Trust
from agentguard.domain import keystore
from agentguard.store.reader import StoredLog


@pytest.fixture
def told(place, capsys):
    """Tell of a call by ``evidence verify`` and by ``audit show``: what each prints."""

    def tell(*, signs: bool, calls: int = 1) -> tuple[evidence.Evidence, str, str]:
        with place.open() as guard:
            tool = guard.tool(lambda: None, name="tool")
            agent = guard.new_agent("reader")
            instance = agent._caller.instance()
            if signs:
                for _ in range(calls):
                    agent.call(tool)
            else:
                instance.actor = replace(instance.actor, signer=None)
                with pytest.raises(Denied):
                    agent.call(tool)
        trust = keystore.load_trust(place.config.state)
        with closing(StoredLog.of(place.config.state)) as reader:
            call = list(scan_entries(reader, (CallEntry,)))[-1]
            read = call_report.read(reader, call, trust)
            data = prove_call(reader, trust, str(read.call.invocation_id))
        proved = verify_evidence(data, trust)
        evidence_report.draw(proved)
        by_evidence = capsys.readouterr().out
        show._draw(read, Trust(trust, "here", outside=True), show._Options("", ""))
        return proved, by_evidence, capsys.readouterr().out

    return tell


def test_nobody_is_said_to_have_signed_it(told):
    proved, by_evidence, by_show = told(signs=False)
    for shown in (by_evidence, by_show):
        assert re.search(r"^signed +\| by nobody: the agent.s signer failed", shown, re.MULTILINE)
    assert "signed at" not in by_evidence
    assert "attributes the call to the agent instance" not in by_evidence
    assert "whether the agent asked for this call" in by_evidence
    assert "signatures" not in by_show
    answer = json.loads(json.dumps(evidence_report.as_json(proved)))
    assert answer["signed"] is False
    assert "signed by nobody" in str(evidence_report.row({**answer, "file": "call.json"})[1])


@pytest.mark.parametrize("calls", [1, 2], ids=["alone", "with the outcome before it"])
def test_the_twin_is_signed(told, calls):
    proved, by_evidence, by_show = told(signs=True, calls=calls)
    assert "by nobody" not in by_evidence + by_show
    assert "signed at" in by_evidence
    assert "attributes the call to the agent instance" in by_evidence
    assert "signatures, credential and commitments hold" in by_show
    assert "the log around the call: agentguard audit verify does" in by_show
    answer = evidence_report.as_json(proved)
    assert answer["signed"] is True
    assert evidence_report.row({**answer, "file": "call.json"})[1] == ""
