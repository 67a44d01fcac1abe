"""A web application whose agent works for the user of each request, and waits for managers.

README.md has the commands. A chat is a run of LangGraph: its answer is streamed as server-sent
events. A refund that waits is shown to managers, who answer here; the run then goes on, also after
a restart of the server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from helpdesk import build
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from people import authenticate
from pydantic import BaseModel, Field

from agentguard import ApprovalRequest, Guard
from agentguard.errors import AgentguardError

HERE = Path(__file__).parent
SCOPE = ["orders:read", "refunds:create"]
STATUS = {"request.unknown": 404, "request.ended": 409}
"""The status of an answer that does not count, by the error's code; 403 for every other code."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the guard and the checkpoints while the server runs; go on with what was answered."""
    async with (
        Guard.open(HERE / "agentguard.toml") as guard,
        AsyncSqliteSaver.from_conn_string(str(HERE / "chats.db")) as saver,
    ):
        app.state.guard, app.state.graph = guard, build(guard, saver)
        app.state.resumed, app.state.turns = set(), WeakValueDictionary()
        await sweep(app)
        yield


app = FastAPI(lifespan=lifespan)


def user(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Return the principal of a request, whom the application has authenticated."""
    principal = authenticate(token.credentials)
    if principal is None:
        raise HTTPException(401, "unknown token")
    return principal


User = Annotated[str, Depends(user)]


class Message(BaseModel):
    """What a user writes."""

    text: str


class Verdict(BaseModel):
    """What a manager answers."""

    verdict: Literal["approve", "reject"]
    note: str = Field("", max_length=1024)


# --- chats ---------------------------------------------------------------------------------------


@app.post("/chats/{chat}")
async def write(
    chat: str, message: Message, principal: User, request: Request
) -> StreamingResponse:
    """Stream the agent's answer to a message."""
    new = {"messages": [{"role": "user", "content": message.text}]}
    return StreamingResponse(
        events(request.app, chat, principal, new), media_type="text/event-stream"
    )


@app.post("/chats/{chat}/continue")
async def go_on(chat: str, principal: User, request: Request) -> StreamingResponse:
    """Go on with a run that waited; stream the rest of the answer."""
    state = await request.app.state.graph.aget_state(thread(principal, chat))
    if not state.values:  # before the stream begins, which has no other status than 200
        raise HTTPException(404, f"there is no chat {chat}: write to it first")
    return StreamingResponse(
        events(request.app, chat, principal, None), media_type="text/event-stream"
    )


@app.get("/chats/{chat}")
async def read(chat: str, principal: User, request: Request) -> list[str]:
    """Return the messages of a chat."""
    state = await request.app.state.graph.aget_state(thread(principal, chat))
    return [message.text for message in state.values.get("messages", []) if message.text]


def thread(principal: str, chat: str) -> Any:
    """Return the thread of a user's chat: no user reaches the chat of another user."""
    return {"configurable": {"thread_id": f"{principal}/{chat}"}}


def turn(app: FastAPI, thread_id: str) -> asyncio.Lock:
    """Return the lock of a thread: two runs of one thread at once would overwrite each other.

    Several processes of one application need a lock that they share, as in their database.
    """
    lock: asyncio.Lock = app.state.turns.setdefault(thread_id, asyncio.Lock())
    return lock


async def events(app: FastAPI, chat: str, principal: str, new: Any) -> AsyncIterator[str]:
    """Yield the events of a run, which acts for ``principal`` with what this request lends.

    The stream ends with ``done``, or with ``error`` where the guard refuses the run.
    """
    guard: Guard = app.state.guard
    config = thread(principal, chat)
    try:
        delegation = await asyncio.to_thread(
            guard.delegate, principal, scope=SCOPE, via="service:helpdesk", task_id=chat
        )
        async with turn(app, config["configurable"]["thread_id"]):
            run = app.state.graph.astream(new, config, stream_mode=["messages", "updates"])
            async for mode, chunk in delegation.iterate(run):
                for kind, text in told(mode, chunk):
                    yield event(kind, text)
    except AgentguardError as error:  # the status was sent: an exception would cut the stream off
        yield event("error", f"{error} [{error.code}]")
    else:
        yield event("done", "")


def told(mode: str, chunk: Any) -> Iterator[tuple[str, str]]:
    """Yield what a user is told of a chunk of a run, each with its kind."""
    if mode == "messages":
        message, _about = chunk
        if message.text:
            yield "tool" if message.type == "tool" else "text", message.text
    elif "__interrupt__" in chunk:
        for waiting in chunk["__interrupt__"]:
            for shown in waiting.value["agentguard"]:
                yield "waiting", shown["reason"]


def event(kind: str, text: str) -> str:
    """Return a server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(text)}\n\n"


# --- approvals -----------------------------------------------------------------------------------


@app.get("/approvals")
async def waiting(principal: User, request: Request) -> list[dict[str, Any]]:
    """Return the calls that wait for this user: nobody else sees another user's arguments."""
    guard: Guard = request.app.state.guard
    pending = await asyncio.to_thread(guard.approvals.pending)
    return [
        described(one)
        for one in pending
        if await asyncio.to_thread(may_approve, guard, one, principal)
    ]


def may_approve(guard: Guard, request: ApprovalRequest, principal: str) -> bool:
    """Return whether an approval by this user would count."""
    try:
        guard.approvals.check(request, "approve", principal=principal)
    except AgentguardError:
        return False
    return True


def described(request: ApprovalRequest) -> dict[str, Any]:
    """Return what a manager has to see before the answer."""
    return {
        "id": request.request_id,
        "tool": request.tool,
        "arguments": request.args,
        "reason": request.reason,
        "for": request.principal,
        "thread": request.thread,
    }


@app.post("/approvals/{request_id}")
async def answer(request_id: str, said: Verdict, principal: User, request: Request) -> str:
    """Record the answer of the authenticated user, and go on with the run that waited."""
    inbox = request.app.state.guard.approvals
    try:
        asked = await asyncio.to_thread(inbox.find, request_id)
        if asked.request_id != request_id:  # find takes the beginning of an id, for people who type
            raise HTTPException(404, "write the whole id of the request")
        await asyncio.to_thread(
            inbox.vouch, asked, said.verdict, principal=principal, note=said.note
        )
    except AgentguardError as error:  # the request stays open, or the error says what became of it
        raise HTTPException(STATUS.get(error.code, 403), f"{error} [{error.code}]") from error
    begin(request.app, asked.thread)
    return f"{said.verdict} by {principal}"


async def sweep(app: FastAPI) -> None:
    """Go on with each run whose request is answered, and whose call was not made again yet.

    The server was killed between the click and the run, or somebody has answered on the command
    line while no server ran. A run that has gone on already does nothing more.
    """
    inbox = app.state.guard.approvals
    for asked in await asyncio.to_thread(inbox.pending):
        if not await asyncio.to_thread(inbox.is_waiting, asked):
            begin(app, asked.thread)


def begin(app: FastAPI, thread_id: str | None) -> None:
    """Go on with a run beside the requests that the server answers.

    A call outside of a run, of another program with this state, has no thread to go on with.
    """
    if thread_id is None:
        return
    task = asyncio.create_task(resume(app, thread_id))
    app.state.resumed.add(task)  # the event loop itself keeps no task alive
    task.add_done_callback(app.state.resumed.discard)


async def resume(app: FastAPI, thread_id: str) -> None:
    """Go on with a run for the user for whom it was begun: the guard has kept the delegation."""
    async with turn(app, thread_id):
        await app.state.graph.ainvoke(None, {"configurable": {"thread_id": thread_id}})
