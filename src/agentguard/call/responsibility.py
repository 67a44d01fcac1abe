"""Who acts on a refusal, by reason code, and what that person does next.

The table decides two things. A refusal that a developer or an operator has to mend is logged at
WARNING with the remedy (``guard/denial_log.py``), and a model that made the call is told one
neutral sentence (``Decision.model_reason``). A refusal that is the agent's matter tells the model
its reason. ``scripts/reason-codes`` shows the table on the page of the reason codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Party = Literal["agent", "developer", "operator"]
"""Who acts on a refusal: the model and its user, the application's developer, or its operator."""


class Responsibility(NamedTuple):
    """Who acts on a reason code. ``remedy`` says what that person does next; empty for an agent."""

    party: Party
    remedy: str = ""


_AGENT: Final = Responsibility("agent")


def _developer(remedy: str) -> Responsibility:
    return Responsibility("developer", remedy)


def _operator(remedy: str) -> Responsibility:
    return Responsibility("operator", remedy)


_DELEGATE: Final = (
    "make the call inside a block of guard.delegate(...), or with agent.under(delegation); an "
    'agent that acts by itself has authority = "own" in its table of [agents]'
)
_TEST_POLICY: Final = (
    "run agentguard policy check, and agentguard policy eval with the input of the refused call"
)
_FACTS: Final = "correct the function that looks up facts; the log has the exception's traceback"
_OUTCOME: Final = "find out whether the tool ran, and record the answer with agentguard resolve"
_ENGINE: Final = "check that the policy server runs, and that [policy] url has its address"
_NOT_OPA: Final = (
    "check that [policy] url has the address of an OPA server, and read that server's log"
)
_STATE: Final = "run agentguard doctor, which checks the state, the keys and the log"
THAW: Final = "run agentguard thaw once the reason of the freeze is over"
"""What the command line adds to the reason of a freeze."""

CODES: Final[Mapping[str, Responsibility]] = {
    "agent.mismatch": _developer("guard the tool for the agent that runs the tool"),
    "agent.unguarded": _developer("name the coworker in [agents], so that guard_crew guards it"),
    "agent.unknown": _developer("add the agent to [agents], or correct its name"),
    "approval.altered": _AGENT,
    "approval.consumed": _AGENT,
    "approval.expired": _AGENT,
    "approval.insufficient": _AGENT,
    "approval.limit": _operator(
        "have requests answered (agentguard approvals list), or raise the limits in [approvals]"
    ),
    "approval.mismatch": _AGENT,
    "approval.pending": _AGENT,
    "approval.rejected": _AGENT,
    "approval.required": _AGENT,
    "approval.too_large": _AGENT,
    "approval.unavailable": _developer(
        "name people in [approvers], with the roles that the policy asks for, or set application = "
        "true and application_roles in [approvals]"
    ),
    "arguments.changed": _AGENT,
    "arguments.headers": _AGENT,
    "arguments.invalid": _AGENT,
    "arguments.resource": _AGENT,
    "arguments.rounds": _operator(
        "name the tool in rounds of [mcp.NAME], or of guard_server, once the policy decides on "
        'input.args["$mcp"]'
    ),
    "arguments.too_large": _AGENT,
    "arguments.unencodable": _AGENT,
    "arguments.unrepeatable": _developer(
        "let the tool's schema have no default factory whose value changes with each call"
    ),
    "call.duplicate": _AGENT,
    "call.interrupted": _AGENT,
    "calls.exceeded": _AGENT,
    "calls.rate": _AGENT,
    "calls.simultaneous": _AGENT,
    "clock.failed": _operator("repair the machine's clock"),
    "clock.skew": _operator("set the machine's clock, which is behind the log's newest entry"),
    "credential.failed": _operator(_STATE),
    "delegation.delegatee": _developer(
        "add the agent to the list in [delegation], if work may be handed on to it"
    ),
    "delegation.depth": _AGENT,
    "delegation.ended": _developer(
        "let the block of guard.delegate(...) last until all work in it is done; give what "
        "outlives the block or the call (a task, a generator) a delegation with "
        "agent.under(delegation)"
    ),
    "delegation.expired": _AGENT,
    "delegation.failed": _developer("correct the function that returns the delegation of a call"),
    "delegation.holder": _developer("make the delegation with guard.delegate in this process"),
    "delegation.mismatch": _developer(
        "resume the run under the delegation of the principal who began it"
    ),
    "delegation.missing": _developer(_DELEGATE),
    "delegation.logged_out": _AGENT,
    "delegation.revoked": _operator(
        "nobody can undo a revocation: let the principal lend again, or give the agent another name"
    ),
    "delegation.surrendered": _AGENT,
    "domain.frozen": _operator(THAW),
    "engine.credential": _operator("set token_file or token_variable in [policy]"),
    "engine.disconnected": _operator(
        "read the policy server's log, which may tell of a restart; if it does not, check that "
        "[policy] url has the server's address"
    ),
    "engine.failed": _operator(_NOT_OPA),
    "engine.malformed": _operator(_NOT_OPA),
    "engine.timeout": _operator("look at the policy server's load, or raise [policy] timeout"),
    "engine.tls": _operator(
        "let [policy] ca name the authority behind the server's certificate, and [policy] "
        "certificate one that the server trusts; [policy] url has the certificate's host name"
    ),
    "engine.too_large": _operator(
        "take rules that no decision needs out of the package that [policy] query names: the "
        "server answers with the whole package"
    ),
    "engine.unauthorized": _operator("set token_file, token_variable or certificate in [policy]"),
    "engine.unreachable": _operator("start the policy server, or correct [policy] url"),
    "entropy.failed": _operator("repair the machine's source of random bytes"),
    "facts.conflict": _developer("give the fact another name"),
    "facts.failed": _developer(_FACTS),
    "facts.invalid": _developer("let the function of facts return a dict of JSON values"),
    "facts.undeclared": _developer(
        "name the fact in gives, or in the type that the function of facts returns"
    ),
    "facts.too_large": _developer("let the function of facts return what the policy reads alone"),
    "invalid_scope": _developer(
        "let the scope of a sub-agent or a block be a part of the scope that is in force"
    ),
    "issuer.keys": _operator(
        "correct the key set of the issuer; the server's log says what it lacks"
    ),
    "issuer.unreachable": _operator(
        "start the issuer, or correct its jwks_url or jwks_file; the server's log says which"
    ),
    "journal.cut_short": _operator("find out whether the tool ran"),
    "journal.in_doubt": _operator(_OUTCOME),
    "journal.missing": _operator(_STATE),
    "journal.observed": _AGENT,
    "journal.unreplayable": _AGENT,
    "node.cached": _developer("take cache_policy off the node that calls the tool"),
    "obligation.unknown": _developer("let the policy ask for no obligation but redact"),
    "owner.failed": _developer("correct the function that owners names; the log has the traceback"),
    "policy.denied": _AGENT,
    "policy.error": _developer(_TEST_POLICY),
    "policy.malformed": _developer(_TEST_POLICY),
    "policy.panic": _developer(_TEST_POLICY),
    "policy.undecided": _developer("add the tool to the Cedar schema"),
    "policy.undefined": _developer("let the policy's package be the query of [policy]"),
    "principal.failed": _developer(
        "correct the function that principals names; the log has the traceback"
    ),
    "roles.failed": _developer(
        "correct the function that [approvals] roles names; the log has the traceback"
    ),
    "scope.exceeded": _AGENT,
    "secret.exposed": _developer(
        "pass no secret on to another tool: name that tool in [secrets.NAME] tools, and let it "
        "call agentguard.secret itself"
    ),
    "server.address": _operator(
        "stop the other server, or name another url in [server] (another port in [server] health)"
    ),
    "server.busy": _operator("raise the limits of [server], or find out what makes so many calls"),
    "server.draining": _operator("wait until the guard server is there again"),
    "server.exposed": _operator(
        "start agentguard serve where the kernel has prctl(PR_SET_DUMPABLE), as Linux has"
    ),
    "server.failed": _operator("look into the log of the guard server"),
    "server.imposter": _operator(
        "find out who serves the socket, and keep it in a folder that only the server's user writes"
    ),
    "server.inherited": _operator(
        "start the program with agentguard run, and pass the descriptor on to a program that it "
        "starts (pass_fds)"
    ),
    "server.launch": _operator(
        "use agentguard run as the server's own user, or as root with --user, for a program that "
        "the user can run"
    ),
    "server.protocol": _operator("install one version of agentguard for server and client"),
    "server.reload": _operator("start the server anew, or take the change back"),
    "server.remote": _operator(
        "run the command where the guard server runs, as the server's user and in its folder"
    ),
    "server.restarted": _operator("nothing, unless it comes often: read the guard server's log"),
    "server.stranger": _operator(
        "add the user, the SPIFFE ID or the subject to [clients] in the server's agentguard.toml, "
        "and run agentguard server reload"
    ),
    "server.unknown": _operator(
        "make the call again: the server was started anew, or has forgotten the client"
    ),
    "server.unreachable": _operator(
        "start the guard server (agentguard serve), and then the programs of agentguard run again"
    ),
    "server.token": _operator(
        "see why the client's token does not count; the server's log and the message say so, and "
        "docs/how-to/workload-tokens.md has the set-ups"
    ),
    "signature.failed": _operator(_STATE),
    "site.unencodable": _developer("give the thread, the turn and the task names that are text"),
    "storage.busy": _developer(
        "use no guard in a signal handler, in __del__ or in a trace function"
    ),
    "storage.closed": _developer(
        "open the guard again, and close the guard only once all calls are done"
    ),
    "storage.full": _operator("free space on the disk"),
    "storage.locked": _operator(
        "end the process that holds the lock; the message names the lock's file"
    ),
    "storage.readonly": _operator("give the process the right to write the state"),
    "storage.served": _operator("put [server] with the server's url into the configuration"),
    "storage.used": _operator("stop the programs that use the state, and start the server again"),
    "subagent.parallel": _AGENT,
    "tool.changed": _developer(
        "find out what changed in the tool; if the change is meant, correct [tools.NAME], or run "
        "agentguard server accept AGENT TOOL where a guard server runs, or agentguard mcp pin for "
        "a tool of an MCP server"
    ),
    "tool.uncheckable": _developer(
        "the program's log says what is wrong with the schema of the tool: mend the MCP server"
    ),
    "tool.unconfigured": _developer(
        "write the table [tools.NAME] that the message names, or rename the one that it means"
    ),
    "tool.unknown": _AGENT,
    "tool.unlisted": _operator(
        "see why the MCP server behind the gateway does not answer tools/list"
    ),
    "tool.unpinned": _developer(
        "look at the tool with agentguard mcp diff, and pin the tool with agentguard mcp pin"
    ),
}
"""The reason codes of refusals."""

NOUNS: Final[Mapping[str, Responsibility]] = {
    "anchor": _operator(_STATE),
    "credential": _operator(_STATE),
    "engine": _operator(_ENGINE),
    "key": _operator(_STATE),
    "server": _operator("run agentguard server status where the guard server runs"),
    "storage": _operator(_STATE),
    "trust": _operator(_STATE),
}
"""The nouns of reason codes that are no keys of ``CODES``: a call is also refused with an error."""

UNKNOWN: Final = _developer("look the reason code up in the page of the reason codes")
"""For each other code, so that no model reads a sentence that was not written for models."""


def responsibility_for(code: str) -> Responsibility:
    """Return who acts on a refusal with this reason code."""
    return CODES.get(code) or NOUNS.get(code.partition(".")[0], UNKNOWN)
