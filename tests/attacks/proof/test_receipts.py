"""A tool's server signs its answers; a receipt of another key, request or answer does not count."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from typing import Any

import httpx
import pytest
import requests
from embedded_parts import runtime_of
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from proof_scene import URL
from tool_servers import SCOPE, ToolServer, guard_in_memory, in_call

from agentguard import ConfigError, Ed25519Signer, Guard, ProofError
from agentguard.audit.kinds.running import ReceiptEntry
from agentguard.call.releases import ReleaseSubject
from agentguard.proof import CallerMiddleware, ProofStore, Receiver, receipt
from agentguard.proof.answers import ReceiptedAnswer
from agentguard.proof.httpx import AsyncCallerTransport, CallerTransport
from agentguard.proof.presentation import note_receipt, prove_request
from agentguard.proof.receipt import Answer, VerifiedReceipt, mint
from agentguard.proof.requests import CallerAdapter
from agentguard.signing import jws
from agentguard.signing.canonical import sha256_hex


@pytest.fixture
def key() -> Ed25519Signer:
    return Ed25519Signer.from_seed(os.urandom(32))


JSON_TYPE = [("Content-Type", "application/json")]


def application() -> FastAPI:
    app = FastAPI()

    @app.head("/pay")
    @app.post("/pay", status_code=201)
    def pay() -> dict[str, str]:
        return {"paid": "42"}

    @app.post("/parts")
    def parts() -> StreamingResponse:
        return StreamingResponse(iter([b"a", b"b", b"c"]))

    @app.post("/long")
    def long() -> Response:
        return Response(b"x" * (receipt.MAX_ANSWER + 1))

    @app.post("/events")
    def events() -> StreamingResponse:
        return StreamingResponse(iter([b"data: 1\n\n"]), media_type="text/event-stream")

    return app


class Changing(httpx.AsyncBaseTransport):
    """A server that somebody stands before: ``change`` gets each answer on its way."""

    def __init__(self, app: Any, change: Any) -> None:
        self._inner, self._change = httpx.ASGITransport(app), change

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        body = b"".join([part async for part in response.stream])  # type: ignore[union-attr]
        status, headers, body = self._change(response.status_code, dict(response.headers), body)
        return httpx.Response(status, headers=headers, content=body)


def unchanged(*answer: Any) -> Any:
    return answer


def post(
    guard: Guard,
    folder: Any,
    signer: Ed25519Signer | None,
    known: Ed25519Signer,
    *paths: str,
    method: str = "POST",
    change: Any = unchanged,
    trust: Any = None,
) -> list[Any]:
    """Send a request to each path inside one call; return the answers, or the errors' codes."""
    app = application()
    store = ProofStore(folder / "proofs.sqlite")
    receiver = Receiver(URL, trust or guard.trust, store, signer=signer)
    app.add_middleware(CallerMiddleware, receiver=receiver)
    transport = AsyncCallerTransport(
        URL,
        transport=Changing(app, change),
        receipt_keys={URL: [known.public_key.openssh()]},
    )

    async def pay():
        answers: list[Any] = []
        async with httpx.AsyncClient(transport=transport) as client:
            for path in paths:
                try:
                    response = await client.request(method, f"{URL}{path}")
                    answers.append((response.status_code, response.content))
                except ProofError as error:
                    answers.append(error.code)
        return answers

    tool, agent = guard.tool(name="pay")(pay), guard.new_agent("payer")

    async def call():
        return await agent.acall(tool)

    with guard.delegate("user:alice", scope=SCOPE, audience=[URL]):
        return asyncio.run(call())


def test_a_receipt_is_verified_and_on_record_in_the_agent_s_log(sides, key):
    with sides.agent.open() as guard:
        answers = post(guard, sides.folder, key, key, "/pay", "/parts")
    assert answers == [(201, b'{"paid":"42"}'), (200, b"abc")]
    noted = sides.agent.entries("receipt")
    assert [one.status for one in noted] == [201, 200]
    assert {one.key_id for one in noted} == {key.public_key.thumbprint}
    proved = [entry.members["proof"]["sha256"] for entry in sides.agent.entries("proof")]
    assert [one.proof_sha256 for one in noted] == proved
    answer = Answer.of(proved[1], 200, [], b"abc")
    receipt.verify(noted[1].receipt, answer, [key.public_key], server=f"{URL}/")
    assert sides.agent.verify().ok


def test_an_answer_to_head_has_a_receipt_of_no_body(sides, key):
    with sides.agent.open() as guard:
        assert post(guard, sides.folder, key, key, "/pay", method="HEAD") == [(200, b"")]
    (noted,) = (entry for entry in sides.agent.entries("receipt"))
    answer = Answer.of(noted.proof_sha256, 200, JSON_TYPE, b"")
    receipt.verify(noted.receipt, answer, [key.public_key], server=f"{URL}/")


def test_a_receipt_of_another_key_does_not_count(scene, key):
    other = Ed25519Signer.from_seed(os.urandom(32))
    assert post(scene.guard, scene.folder, other, key, "/pay") == ["receipt.key"]
    assert post(scene.guard, scene.folder, key, key, "/pay")[0][0] == 201  # the twin


@pytest.mark.parametrize("path", ["/long", "/events"])
def test_an_answer_without_a_receipt_does_not_count(scene, key, path):
    assert post(scene.guard, scene.folder, key, key, path, "/pay") == [
        "receipt.missing",
        (201, b'{"paid":"42"}'),
    ]
    assert post(scene.guard, scene.folder, None, key, "/pay") == ["receipt.missing"]


def test_an_answer_that_was_changed_on_the_way_does_not_count(scene, key):
    seen: list[str] = []

    def change(status: int, headers: dict[str, str], body: bytes) -> Any:
        seen.append(headers["agentguard-receipt"])
        match len(seen):
            case 1:
                return status, headers, body.replace(b"42", b"1")
            case 2:
                return 500, headers, body
            case 3:  # the receipt of an earlier request, with the same answer
                return status, {**headers, "agentguard-receipt": seen[0]}, body
            case 4:
                return status, {**headers, "agentguard-receipt": f"{seen[-1]}A"}, body
            case 5:
                return status, {**headers, "agentguard-receipt": "no receipt"}, body
        return status, headers, body

    answers = post(scene.guard, scene.folder, key, key, *["/pay"] * 6, change=change)
    assert answers[:3] == ["receipt.mismatch"] * 3
    assert answers[3] in ("receipt.malformed", "receipt.key")
    assert answers[4:] == ["receipt.malformed", (201, b'{"paid":"42"}')]  # the twin


ORIGINAL = {"location": "/next?to=1", "content-type": "text/plain", "content-encoding": "identity"}
CHANGES: dict[str, Any] = {
    "another value": lambda header: [(header, "https://thief.example/x")],
    "one more": lambda header: [(header, ORIGINAL[header]), (header, "x")],
    "none": lambda _header: [],
    "in another case": lambda header: [(header, ORIGINAL[header].upper())],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("header", receipt.COVERED)
@pytest.mark.parametrize("there", [True, False], ids=["there", "absent"])
def test_a_covered_header_that_was_changed_on_the_way_does_not_count(
    scene, key, header, change, there
):
    """Each header is tried where the server has sent it, and where the server has sent none."""
    signed = [(name, value) for name, value in ORIGINAL.items() if there or name != header]
    others = [(name, value) for name, value in signed if name != header]
    changed = [*others, *CHANGES[change](header)]
    assert (changed == signed) is (not there and change == "none")
    verdict = [None, "receipt.mismatch"][changed != signed]
    assert verdicts(scene.guard, key, signed, signed, changed) == [None, verdict]


def test_a_header_counts_in_any_case_and_without_the_blanks_around_it(scene, key):
    spelt = [(name.title(), f" {value}\t") for name, value in ORIGINAL.items()]
    moved = [("date", "today"), *reversed([*ORIGINAL.items()])]
    signed = [*ORIGINAL.items()]
    assert verdicts(scene.guard, key, signed, spelt, moved) == [None, None]


def verdicts(guard: Guard, key: Ed25519Signer, signed: Any, *answers: Any) -> list[str | None]:
    """Return the code of the refusal of each answer, None for one that counts."""
    sent = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        proof = sha256_hex(request.headers["DPoP"].encode())
        token = mint(Answer.of(proof, 200, signed, b""), key, server=f"{URL}/", at=1)
        return httpx.Response(200, headers=[*next(sent), (receipt.HEADER, token)])

    transport = CallerTransport(
        URL, transport=httpx.MockTransport(answer), receipt_keys={URL: [key.public_key.openssh()]}
    )

    def ask() -> list[str | None]:
        codes: list[str | None] = []
        with httpx.Client(transport=transport) as client:
            for _ in answers:
                try:
                    client.get(f"{URL}/x")
                except ProofError as error:
                    codes.append(error.code)
                else:
                    codes.append(None)
        return codes

    asked: list[str | None] = in_call(guard, ask, audience=[URL])
    return asked


def test_the_receipt_of_another_server_does_not_count(key):
    answer = Answer("1" * 64, 200, "0" * 64, "2" * 64)
    token = mint(answer, key, server="https://other.example/", at=1)
    with pytest.raises(ProofError) as caught:
        receipt.verify(token, answer, [key.public_key], server=f"{URL}/")
    assert caught.value.code == "receipt.mismatch"
    verified = receipt.verify(token, answer, [key.public_key], server="https://other.example/")
    assert verified.key_id == key.public_key.thumbprint


def test_the_refusal_of_a_stranger_has_no_receipt(scene, key):
    """Nobody has verified the caller of a request that is refused, so nobody signs the answer."""
    seen: list[tuple[int, bool]] = []

    def change(status: int, headers: dict[str, str], body: bytes) -> Any:
        seen.append((status, "agentguard-receipt" in headers))
        return status, headers, body

    with guard_in_memory() as other:
        args = scene.guard, scene.folder, key, key, "/pay"
        assert post(*args, change=change, trust=other.trust) == ["receipt.missing"]
    assert post(*args, change=change)[0][0] == 201  # the twin
    assert seen == [(401, False), (201, True)]


def test_a_call_notes_receipts_of_its_own_requests_alone(scene, key):
    digests: list[str] = []

    def pay(again: bool) -> str | None:
        if not again:
            proof = prove_request("POST", f"{URL}/pay", b"")
            digests.append(sha256_hex(proof.proof.encode()))
        token = mint(Answer(digests[0], 200, "0" * 64, "0" * 64), key, server=f"{URL}/", at=1)
        try:
            note_receipt(VerifiedReceipt(token, key.public_key.thumbprint, digests[0]))
        except ProofError as error:
            return error.code
        return None

    assert in_call(scene.guard, lambda: pay(False), audience=[URL]) is None
    assert in_call(scene.guard, lambda: pay(True), audience=[URL]) == "proof.refused"


@pytest.mark.parametrize("lie", ["of another request", "of another call", "none"])
def test_a_receipt_entry_that_lies_is_found(sides, key, lie):
    """The holder of the log's key appends a receipt while the call runs."""

    def pay():
        proof = sha256_hex(prove_request("POST", f"{URL}/pay", b"").proof.encode())
        members: Any = sides.agent.entries("proof")[0].members
        digest = "f" * 64 if lie == "of another request" else proof
        subject = ReleaseSubject(
            members["invocation_id"],
            "f" * 64 if lie == "of another call" else members["invocation_sha256"],
            members["authorization"]["index"],
            members["agent"],
            members["tool"],
            None,
            frozenset(),
        )
        token = mint(Answer(digest, 200, "0" * 64, "0" * 64), key, server=f"{URL}/", at=1)
        at = sides.agent.entries("proof")[0].at
        log.append(ReceiptEntry.new(digest, token, "key", subject, at=at))

    with sides.agent.open() as guard:
        log = runtime_of(guard).current_ports().log
        in_call(guard, pay, audience=[URL])
    assert sides.agent.verify().ok is (lie == "none")


def test_a_synchronous_client_wants_receipts_too(scene, key):
    answers: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        proof = sha256_hex(request.headers["DPoP"].encode())
        signed = Answer.of(proof, 200, [], b"yes")
        token = mint(signed, key, server=f"{URL}/", at=1)
        headers = {receipt.HEADER: token} if request.url.path == "/signed" else {}
        return httpx.Response(200, headers=headers, content=b"yes")

    transport = CallerTransport(
        URL,
        transport=httpx.MockTransport(answer),
        receipt_keys={URL: [key.public_key.openssh()]},
    )

    def pay() -> None:
        with httpx.Client(transport=transport) as client:
            answers.append(client.get(f"{URL}/signed").text)
            with pytest.raises(ProofError) as caught:
                client.get(f"{URL}/unsigned")
            answers.append(caught.value.code)

    in_call(scene.guard, pay, audience=[URL])
    assert answers == ["yes", "receipt.missing"]


@pytest.mark.parametrize("audiences", [(URL, f"{URL}/v1"), (f"{URL}/v1", URL)])
def test_a_narrower_audience_with_keys_wants_receipts_whatever_the_order(scene, key, audiences):
    transport = CallerTransport(
        *audiences,
        transport=httpx.MockTransport(lambda _request: httpx.Response(200)),
        receipt_keys={f"{URL}/v1": [key.public_key.openssh()]},
    )

    def pay() -> int:
        with httpx.Client(transport=transport) as client:
            with pytest.raises(ProofError) as caught:
                client.get(f"{URL}/v1/pay")
            assert caught.value.code == "receipt.missing"
            return client.get(f"{URL}/v2/pay").status_code  # the twin

    assert in_call(scene.guard, pay, audience=audiences) == 200


@pytest.mark.parametrize(
    "keys",
    [
        {"https://other.example": ["ssh-ed25519 AAAA"]},
        {URL: []},
        {URL: "ssh-ed25519 AAAA"},
        {URL: ["ssh-ed25519 AAAA"]},
    ],
)
def test_keys_that_can_t_be_used_are_refused_at_the_start(keys):
    with pytest.raises(ConfigError):
        CallerTransport(URL, receipt_keys=keys)


async def test_a_file_that_the_server_sends_by_itself_goes_on_without_a_receipt():
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    answer = ReceiptedAnswer(send, lambda _status, _headers, _body: "unused")
    await answer({"type": "http.response.start", "status": 200, "headers": []})
    assert sent == []
    await answer({"type": "http.response.pathsend", "path": "/file"})
    assert sent == ["http.response.start", "http.response.pathsend"]


def test_a_receipt_has_neither_the_body_nor_the_query(key):
    token = mint(
        Answer.of("1" * 64, 200, [("location", "/secret")], b"secret"), key, server=f"{URL}/", at=1
    )
    claims = jws.parse(token).claims()
    assert sorted(claims) == ["bdg", "hdg", "iat", "iss", "prf", "status"]
    assert "secret" not in json.dumps(claims)


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_each_client_library_reads_an_answer_with_a_receipt(scene, key, library):
    """A real server over HTTP, whose answer is compressed and sets a cookie."""
    changed = gzip.compress(b"a longer answer " * 100)

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-encoding", b"gzip"), (b"content-type", b"text/plain")]
        headers.append((b"set-cookie", b"seen=1"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": changed})

    def application(url: str) -> Any:
        store = ProofStore(scene.folder / "served.sqlite")
        return CallerMiddleware(answer, Receiver(url, scene.guard.trust, store, signer=key))

    server = ToolServer(application)
    try:
        read = in_call(scene.guard, lambda: _read(library, server.url, key), audience=[server.url])
        other = Ed25519Signer.from_seed(os.urandom(32))
        with pytest.raises(ProofError) as caught:
            in_call(scene.guard, lambda: _read(library, server.url, other), audience=[server.url])
    finally:
        server.stop()
    assert (read, caught.value.code) == (["a longer answer " * 100, "1"], "receipt.key")


def _read(library: str, url: str, key: Ed25519Signer) -> list[str | None]:
    """Return the text of an answer, and the cookie that the client then has."""
    keys = {url: [key.public_key.openssh()]}
    if library == "requests":
        session = requests.Session()
        session.mount("http://", CallerAdapter(url, receipt_keys=keys))
        with session:
            return [session.get(f"{url}/text").text, session.cookies.get("seen")]
    with httpx.Client(transport=CallerTransport(url, receipt_keys=keys)) as client:
        with client.stream("GET", f"{url}/text") as streamed:
            raw = b"".join(streamed.iter_raw())
        answer = client.get(f"{url}/text")
        assert answer.elapsed.total_seconds() > 0
        assert gzip.decompress(raw).decode() == answer.text
        return [answer.text, client.cookies.get("seen")]
