"""The child process that evaluates a new policy once before this process loads the policy.

The native engine can die on a policy: the engine overflows the stack on a recursive function, and
takes time that doubles with each nested bracket. ``gate.py`` starts this file and reads its report:
a line with the syntax tree, then a line when the first evaluation has ended. The file imports
nothing of agentguard.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import regorus  # type: ignore[import-untyped]  # the binding has no annotations

_MAX_MEMORY = 4 * 1024**3


def main() -> None:
    """Read a policy from standard input, evaluate it, and print a JSON object in each line."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    request = json.load(sys.stdin)
    try:
        engine = regorus.Engine()
        for path, text in request["modules"]:
            engine.add_policy(path, text)
        engine.add_data_json(request["data"])
        runtime = json.loads(regorus.Engine().eval_query_as_json("opa.runtime().builtins"))
        builtins = runtime["result"][0]["expressions"][0]["value"]
        _report(builtins=builtins)
        # A line break in the engine's JSON only separates members.
        tree = engine.get_ast_as_json().replace("\n", "")
        _write(f'{{"tree":{tree}}}')
        engine.set_input_json(request["input"])
        engine.eval_query_as_json(request["query"])
        _report(evaluated=True)
    except BaseException as error:  # noqa: BLE001  a panic is no Exception; the parent refuses
        _report(error=str(error))


def _report(**members: Any) -> None:
    _write(json.dumps(members))


def _write(line: str) -> None:
    # The first line break ends what a module of the site may have printed.
    sys.stdout.buffer.write(b"\n" + line.encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
