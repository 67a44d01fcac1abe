"""The receiver's log has each accepted request, and garbage does not fill the receiver's disk."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import httpx
from call_scene import AUDIENCE, CallScene
from call_scene import check as check_call
from call_scene import refused as refused_call
from fastapi import Depends, FastAPI
from proof_scene import URL, check, header, refused, with_header
from request_logs import QUERY
from tool_servers import SCOPE, in_call, send, send_plainly, tool_server

from agentguard import ReceiverLog
from agentguard.errors import StorageError
from agentguard.proof import CallerMiddleware, ProofStore, Receiver
from agentguard.proof.fastapi import requires
from agentguard.proof.httpx import AsyncCallerTransport
from agentguard.signing.canonical import sha256_hex

PROOF = "DPoP"


def test_an_accepted_request_is_on_record_with_its_caller(sides):
    with sides.open() as opened:
        sent = opened.prove()
        caller = check(opened.receiver, sent)
        (entry,) = sides.server.entries("received")  # as another process reads the files
    members = entry.members
    assert members["request"] == {
        "method": "POST",
        "url": f"{URL}/pay",
        "query_sha256": sha256_hex(QUERY.encode()),
        "body_sha256": sha256_hex(sent.body),
    }
    assert (members["audience"], members["server"]) == (URL, URL + "/")
    assert members["proof"] == {
        "jti": caller.evidence.proof_jti,
        "sha256": sha256_hex(header(sent, PROOF).encode()),
        "key_id": caller.chain.leaf.key_id,
    }
    token = header(sent, "Authorization").removeprefix("DPoP ")
    assert members["token"] == {"jti": caller.token_jti, "sha256": sha256_hex(token.encode())}
    assert (members["agent"], members["principal"]) == (caller.agent, "user:alice")
    assert members["invocation_sha256"] == caller.invocation_sha256
    assert (members["assurance"], members["unrecorded"]) == ("request", 0)
    (proved,) = sides.agent.entries("proof")
    assert proved.members["request"] == members["request"]
    assert sides.server.verify().ok


def test_a_log_that_can_t_be_written_refuses_the_request(sides, put_faults):
    with sides.open() as opened:
        faults, sent = put_faults(opened.server), opened.prove()
        faults.before = StorageError("the disk is full", code="storage.full")
        assert refused(opened.receiver, sent) == "proof.unrecorded"
        faults.before = None
        assert refused(opened.receiver, sent) == "proof.used"  # the proof is used up
        opened.send()  # the twin: a new proof, and a log that can be written
    assert len(sides.server.entries("received")) == 1


def test_a_closed_log_refuses_the_request(sides):
    with sides.open() as opened:
        opened.send()
        sent = opened.prove()
        opened.server.close()
        assert refused(opened.receiver, sent) == "proof.unrecorded"


def test_a_refused_request_of_a_known_caller_is_on_record_with_its_code(sides):
    with sides.open() as opened:
        sent = opened.send()
        assert refused(opened.receiver, sent) == "proof.used"
        assert refused(opened.receiver, sent._replace(body=b"more")) == "proof.request"
        opened.send()
    used, altered = sides.server.entries("refused")
    assert (used.members["code"], altered.members["code"]) == ("proof.used", "proof.request")
    digest = sha256_hex(header(sent, PROOF).encode())
    assert used.members["proof_sha256"] == altered.members["proof_sha256"] == digest
    assert altered.members["request"]["body_sha256"] == sha256_hex(b"more")
    assert used.members["principal"] == "user:alice"
    assert len(sides.server.entries("received")) == 2
    assert sides.server.verify().ok


def test_requests_of_strangers_are_counted_and_leave_no_entry(sides):
    with sides.open() as opened:
        sent = opened.prove()
        for _ in range(50):
            assert refused(opened.receiver, sent._replace(headers=[])) == "proof.missing"
            forged = with_header(sent, "Authorization", header(sent, "Authorization") + "A")
            assert refused(opened.receiver, forged)
        assert sides.server.entries("received", "refused") == []
        check(opened.receiver, sent)
    (entry,) = sides.server.entries("received")
    assert entry.members["unrecorded"] == 100


def test_a_flood_of_a_known_caller_gets_a_few_entries_in_a_minute(sides, clock):
    with sides.open(max_refusals=3) as opened:
        sent = opened.send()
        for _ in range(10):
            assert refused(opened.receiver, sent) == "proof.used"
        assert len(sides.server.entries("refused")) == 3
        clock.advance(seconds=61)
        assert refused(opened.receiver, sent) == "proof.used"
    entries = sides.server.entries("refused")
    assert [entry.members["unrecorded"] for entry in entries] == [0, 0, 0, 7]


def test_a_refusal_that_can_t_be_recorded_stays_the_same_refusal(sides, put_faults):
    with sides.open() as opened:
        sent, faults = opened.send(), put_faults(opened.server)
        faults.before = StorageError("full", code="storage.full")
        assert refused(opened.receiver, sent) == "proof.used"
        assert refused(opened.receiver, opened.prove()) == "proof.unrecorded"
        faults.before = None
        opened.send()
    entries = sides.server.entries("received", "refused")
    assert [entry.members["unrecorded"] for entry in entries] == [0, 2]  # both had no entry


def test_many_threads_record_each_request_once(sides):
    with sides.open() as opened:
        requests = [opened.prove() for _ in range(12)]
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(lambda sent: check(opened.receiver, sent), requests))
    digests = [entry.members["proof"]["sha256"] for entry in sides.server.entries("received")]
    assert sorted(digests) == sorted(sha256_hex(header(one, PROOF).encode()) for one in requests)


def test_worker_processes_write_their_parent_s_log(sides):
    with sides.open() as opened:
        requests = [opened.prove() for _ in range(4)]
        log = ReceiverLog(opened.server)
        store = ProofStore(sides.folder / "workers.sqlite")
        receiver = Receiver(URL, opened.guard.trust, store, log=log)

        def work(part):
            for sent in part:
                check(receiver, sent)
            opened.server.close()

        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=work, args=(requests[at::2],)) for at in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(sides.server.entries("received")) == 4
    assert sides.server.verify().ok


def test_a_request_over_mcp_is_on_record_on_both_sides(sides):
    with sides.open() as opened:
        scene = CallScene(sides.folder, opened.guard)
        receiver = scene.new_receiver(log=ReceiverLog(opened.server))
        sent = scene.prove()
        check_call(receiver, sent)
        assert refused_call(receiver, sent) == "proof.used"
    (proved,), (received,) = sides.agent.entries("proof"), sides.server.entries("received")
    assert proved.members["request"] == received.members["request"]
    assert received.members["request"]["method"] == "tools/call"
    assert received.members["request"]["url"] == AUDIENCE
    assert proved.members["assurance"] == received.members["assurance"] == "call"
    (again,) = sides.server.entries("refused")
    assert again.members["code"] == "proof.used"
    assert sides.agent.verify().ok
    assert sides.server.verify().ok


def test_a_server_answers_503_where_its_log_can_t_be_written(sides, put_faults):
    with sides.agent.open() as guard, sides.server.open() as own:
        faults = put_faults(own)
        with tool_server(guard, sides.folder, log=ReceiverLog(own)) as server:

            def pay():
                answers = []
                for fault in (StorageError("full", code="storage.full"), None):
                    faults.before = fault
                    answers.append(send(f"{server.url}/pay", server.url, content=b"{}"))
                return [answer.status_code for answer in answers]

            statuses = in_call(guard, pay, audience=[server.url])
    assert statuses == [503, 200]
    assert len(sides.server.entries("received")) == 1


def test_requests_that_the_middleware_refuses_unread_are_counted(sides):
    with (
        sides.agent.open() as guard,
        sides.server.open() as own,
        tool_server(guard, sides.folder, max_body=100, log=ReceiverLog(own)) as server,
    ):

        def pay(**more):
            return send(f"{server.url}/pay", server.url, **more).status_code

        def requests():
            return pay(content=b"x" * 101), pay(headers={"X": "x" * 33_000}), pay()

        stranger = send_plainly("POST", f"{server.url}/pay").status_code
        public = send_plainly("GET", f"{server.url}/healthz").status_code
        answers = in_call(guard, requests, audience=[server.url])
    assert (stranger, public, answers) == (401, 200, (413, 431, 200))
    (entry,) = sides.server.entries("received", "refused")
    assert (entry.kind, entry.members["unrecorded"]) == ("received", 3)


def test_a_scope_that_an_endpoint_lacks_is_on_record(sides):
    app = FastAPI()

    @app.post("/pay", dependencies=[Depends(requires("payments:write"))])
    async def pay(): ...

    @app.post("/refund", dependencies=[Depends(requires("refunds:write"))])
    def refund(): ...

    async def make(path):
        transport = AsyncCallerTransport(URL, transport=httpx.ASGITransport(app))
        async with httpx.AsyncClient(transport=transport) as client:
            return (await client.post(f"{URL}{path}")).status_code

    with sides.open() as opened:
        app.add_middleware(CallerMiddleware, receiver=opened.receiver)
        tool, agent = opened.guard.tool(name="pay")(make), opened.guard.new_agent("payer")

        async def calls():
            return [await agent.acall(tool, path) for path in ("/pay", "/refund")]

        with opened.guard.delegate("user:alice", scope=SCOPE, audience=[URL]):
            assert asyncio.run(calls()) == [200, 403]
    received = list(sides.server.entries("received"))
    assert [one.request.url for one in received] == [f"{URL}/pay", f"{URL}/refund"]
    (entry,) = sides.server.entries("refused")
    assert (entry.members["code"], entry.members["proof_sha256"]) == (
        "proof.scope",
        received[1].proof.sha256,
    )
