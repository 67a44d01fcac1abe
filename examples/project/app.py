"""Three LangChain tools behind the guard of this folder's ``agentguard.toml``; see README.md.

The calls are those of a model, as LangChain hands them to a tool; no model is needed to see them
decided. ``create_agent(model, tools)`` takes the same list.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from langchain_core.tools import tool

from agentguard.paths import Folder
from agentguard_langchain import guard_tools

HERE = Folder(Path(__file__).parent)  # which no tool leaves


@tool
def read_note(path: str) -> str:
    """Read a note."""
    return HERE.read_text(path).strip()


@tool
async def count_words(path: str) -> str:
    """Count the words of a note."""
    text = await asyncio.to_thread(HERE.read_text, path)
    return f"{len(text.split())} words"


@tool
def delete_note(path: str) -> str:
    """Delete a note."""
    HERE.resolve(path).unlink()
    return f"deleted {path}"


CALLS = (
    ("read_note", "notes/monday.md"),
    ("count_words", "notes/monday.md"),
    ("read_note", "../secret.md"),
    ("delete_note", "notes/monday.md"),
)


async def main() -> None:
    """Make each call and print what the model would be answered."""
    guarded = guard_tools([read_note, count_words, delete_note], "assistant")  # the one line
    by_name = {one.name: one for one in guarded}
    for number, (name, path) in enumerate(CALLS, start=1):
        call = {"type": "tool_call", "id": f"call-{number}", "name": name, "args": {"path": path}}
        answer = await by_name[name].ainvoke(call)
        print(f"{name}({path}): {answer.content}")


if __name__ == "__main__":
    asyncio.run(main())
