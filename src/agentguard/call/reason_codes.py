"""The reason codes: what each means, who acts on a refusal with it, and what that person does.

The columns decide two things. A refusal that a developer or an operator has to mend is logged at
WARNING with the remedy (``guard/denial_log.py``), and a model that made the call is told one
neutral sentence (``Decision.model_reason``). A refusal that is the agent's matter tells the model
its reason. ``scripts/reason-codes`` makes the page of the reason codes from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

Party = Literal["agent", "developer", "operator"]
"""Who acts on a refusal: the model and its user, the application's developer, or its operator."""

# A row is a code, who acts, the meaning and the remedy. A row of a noun alone has no meaning: codes
# that begin so, and name neither who acts nor a remedy, have those of the noun. Nobody is named for
# an error that is no refusal of its own.
_TABLE: Final = """
agent | | | guard each agent and crew once, with tools of the framework's own kind
agent.guarded | | The agent, or the crew, is guarded already, by another guard (CrewAI). |
agent.mismatch | developer | A tool that is guarded for another agent than the sub-agent that runs. | guard the tool for the agent that runs the tool
agent.refused | | A client of a guard server may not be this agent. | name the agent in the client's agents in [clients], at the server
agent.unguardable | | An agent runs its tools in ways of its own (CrewAI). |
agent.unguarded | developer | Somebody in a guarded crew, or the coworker to whom work is handed on, has no identity (CrewAI). | name the coworker in [agents], so that guard_crew guards it
agent.unknown | developer | The configuration has no agent of this name. | add the agent to [agents], or correct its name
agentguard | | | read the message
agentguard.error | | An error without a code of its own. |
anchor | operator | | run agentguard doctor, which checks the state, the keys and the log
anchor.damaged | | The anchor's checkpoint does not verify, or its record can't be read. |
anchor.inside | | The anchor lies inside the state that it should vouch for. |
anchor.unreadable | | The anchor can't be read. |
anchor.unwritable | | The anchor can't be written. |
approval | | | have somebody answer whom the requirement names: agentguard approvals show REQUEST names them
approval.altered | agent | The request was changed where it lies, and is not the one in the log. The call, made once more after this refusal, asks anew. |
approval.consumed | agent | The request does not wait any more: a call has used it, it was withdrawn or rejected, it has expired, or an adoption made it void. |
approval.expired | agent | The time in which the call could be approved and run is over. |
approval.failed | | The demo's approver could not answer. | read the message of the demo's approver
approval.insufficient | agent | The policy asks, by now, for more than the answers that are there. |
approval.limit | operator | Too many requests of the agent, or for the principal, wait already. | have requests answered (agentguard approvals list), or raise the limits in [approvals]
approval.malformed | | Not a request for an approval, or not an answer to one. | send the answer as agentguard approvals approve writes it
approval.mismatch | agent | The call is not the one that was shown; or an answer is to another request, or not by whom it says. |
approval.not_yet_valid | | An approval is dated later than now. | set the clock of the approver's machine
approval.pending | agent | The call waits for a person (`ApprovalPending`). |
approval.refused | | An approval would not count for the request. |
approval.rejected | agent | Somebody on the roster has rejected the call. |
approval.required | agent | The policy asks for an approval. |
approval.too_large | agent | The request would be too long to be shown to a person. |
approval.unavailable | developer | The policy asks for an approval that nobody can give: the configuration names nobody, nobody of the role, or too few people beside the requester. | name people in [approvers], with the roles that the policy asks for, or set application = true and application_roles in [approvals]
approval.unknown | | An answer is signed with a key that is not on the roster; or the function of `[approvals] roles` does not know the principal who answers through the application. | add the approver to [approvers], or the key to the approver's keys
approval.unsigned | | An answer is not signed, and the application's word does not count, or was not given by `guard.approvals.vouch`. | sign the answer, or set [approvals] application = true and answer with guard.approvals.vouch
arguments.changed | agent | The arguments were changed between the decision and the run. |
arguments.headers | agent | A header of an HTTP request to an MCP gateway says something else than the call's arguments. |
arguments.invalid | agent | The arguments do not fit the tool, or can't be read. |
arguments.resource | agent | The tool's resource can't be filled from the arguments, or is too long. |
arguments.rounds | operator | The call of an MCP tool brings `requestState` or `inputResponses`, and `rounds` does not name the tool. | name the tool in rounds of [mcp.NAME], or of guard_server, once the policy decides on input.args["$mcp"]
arguments.too_large | agent | The arguments take more than 256 KiB. |
arguments.unencodable | agent | An argument has no canonical form. |
arguments.unrepeatable | developer | A schema makes an argument anew with each call (CrewAI). | let the tool's schema have no default factory whose value changes with each call
base64 | | | take the text from its source again: a program has changed it on the way
base64.malformed | | Not base64 or base64url in its one canonical form. |
call | | | take the call's id or index from agentguard audit list
call.ambiguous | | More than one call, or more than one trace, has an id that begins so. |
call.duplicate | agent | Two calls of one message have the same id (LangChain). |
call.interrupted | agent | The call was cancelled or cut short before it was decided. |
call.settled | | A call that is to be resolved has an outcome, is resolved, or was denied. | nothing: the log knows what became of the call
call.unknown | | No call of this id, index or name is in the log. |
calls.exceeded | agent | All calls that the delegation allows are made, or an adoption made those that were left void. |
calls.rate | agent | The MCP gateway has made as many calls of the server in this minute as it may. |
calls.simultaneous | agent | As many calls of the MCP server are under way as the gateway may make. |
chain | | | do not trust the chain, and ask whoever sent it for a new one
chain.credential | | A credential is missing in a chain of delegation, or is not needed. |
chain.malformed | | Not a chain of delegation. |
checkpoint | | | compare it with the log that it belongs to
checkpoint.origin | | A checkpoint is of another log. |
clock.failed | operator | The clock can't be read. | repair the machine's clock
clock.skew | operator | The clock stands more than 60 s behind the newest entry of the log. | set the machine's clock, which is behind the log's newest entry
command | | | install the distribution that the message names
command.missing | | A command needs a distribution that is not installed. |
config | | | correct the key that the message names, and run agentguard doctor
config.exposed | | Others can write the configuration or the policy, or a folder above it. | take the right to write away from others: chmod go-w, on the file or folder that the message names
config.extra_missing | | An optional extra is not installed. | install the extra that the message names
config.invalid | | A mistake in the configuration, or in what was passed to the API. |
config.missing | | There is no configuration. | run agentguard init, go to the project's folder, or name the file with --config, or the state where a command has --state
credential | operator | | run agentguard doctor, which checks the state, the keys and the log
credential.expired | | The credential has run out. |
credential.failed | | No credential for the agent can be had. |
credential.issuer | | The credential is another trust domain's. |
credential.lifetime | | The credential lives longer than an hour. |
credential.malformed | | Not a credential. |
credential.not_yet_valid | | The credential is not valid yet. |
credential.subject | | The credential's subject does not name its key. |
crew | | | read the stream in the block that began the run, and make a crew for each run
crew.busy | | A crew is kicked off that is being kicked off already (CrewAI). |
crew.elsewhere | | A stream is read outside the block that kicked it off (CrewAI). |
decode | | | take the bytes from their source again
decode.malformed | | Bytes are not what their format says. |
delegation | | | lend with guard.delegate, no more than the principal's roles allow
delegation.delegatee | developer | The configuration's `[delegation]` does not let this agent hand work on to that one. | add the agent to the list in [delegation], if work may be handed on to it
delegation.depth | agent | The chain of delegation may have no further hop. |
delegation.ended | developer | The block or call that the delegation was in force in is over. | let the block of guard.delegate(...) last until all work in it is done; give what outlives the block or the call (a task, a generator) a delegation with agent.under(delegation)
delegation.expired | agent | The delegation has expired. |
delegation.failed | developer | The delegation can't be had, or not be handed on to the agent. | correct the function that returns the delegation of a call
delegation.generator | | A delegation can't be bound to a generator, nor entered in one. | write delegation.iterate(...) around the generator
delegation.holder | developer | Nobody in this process can hand the delegation on. | make the delegation with guard.delegate in this process
delegation.logged_out | agent | The user has logged out at the provider since the log-in on which the delegation rests. |
delegation.mismatch | developer | The approval was asked for another principal, or for other agents in the chain. | resume the run under the delegation of the principal who began it
delegation.missing | developer | The agent acts only under a delegation, and none is in force. | make the call inside a block of guard.delegate(...), or with agent.under(delegation); an agent that acts by itself has authority = "own" in its table of [agents]
delegation.refused | | What is to be delegated is malformed, or more than there is. |
delegation.revoked | operator | The delegation, or something that it goes back to, was revoked. | nobody can undo a revocation: let the principal lend again, or give the agent another name
delegation.surrendered | agent | The agent, or an agent before it in the chain, has given the delegation up (`/revoke`). |
delegation.unknown | | The log has no entry of the delegation under which the call is made. |
delegation.unstorable | | Only what `Guard.delegate` made can be stored. |
directory | | | name an empty folder that you can write
directory.taken | | The demo's directory is not empty. |
directory.unusable | | The demo's directory can't be made. |
domain.frozen | operator | All calls are frozen (`agentguard freeze`). | run agentguard thaw once the reason of the freeze is over
dsse | | | take the envelope from its source again
dsse.malformed | | Not a DSSE envelope. |
dsse.type | | An envelope's payload is of another type. |
encode | | | pass values that JSON has, dates, decimals or bytes
encode.unencodable | | A value has no canonical form. |
engine | operator | | check that the policy server runs, and that [policy] url has its address
engine.credential | operator | The token for the policy server can't be read. | set token_file or token_variable in [policy]
engine.disconnected | operator | The policy server hung up while it was asked. | read the policy server's log, which may tell of a restart; if it does not, check that [policy] url has the server's address
engine.failed | operator | The policy server answered with an error's status, or can't be asked. | check that [policy] url has the address of an OPA server, and read that server's log
engine.malformed | operator | The policy server's answer is not of the form that is read. | check that [policy] url has the address of an OPA server, and read that server's log
engine.timeout | operator | The policy server did not answer in time. | look at the policy server's load, or raise [policy] timeout
engine.tls | operator | No trusted connection to the policy server can be made. | let [policy] ca name the authority behind the server's certificate, and [policy] certificate one that the server trusts; [policy] url has the certificate's host name
engine.too_large | operator | The policy server's answer takes more than 256 KiB. | take rules that no decision needs out of the package that [policy] query names: the server answers with the whole package
engine.unauthorized | operator | The policy server does not let this guard ask it: `token_file`, `token_variable` or `certificate` in `[policy]` is to be set, or to be another. | set token_file, token_variable or certificate in [policy]
engine.unreachable | operator | The policy server can't be reached. | start the policy server, or correct [policy] url
entropy.failed | operator | No random bytes can be had. | repair the machine's source of random bytes
entry | | | run agentguard audit verify, and restore the newest backup where an entry is damaged
entry.malformed | | Not an entry of the log. |
entry.too_large | | An entry takes more than 256 KiB. | pass less in the call: a reference in the place of the content
evidence | | | do not trust the file, and ask whoever sent it to run agentguard evidence make again
evidence.incomplete | | Evidence lacks something that its call needs. |
evidence.malformed | | Not a file with evidence, or not in its canonical form. |
evidence.mismatch | | The parts of evidence do not belong together. |
evidence.superfluous | | Evidence holds something that its call does not need. |
facts.conflict | developer | A fact has the name of something else in the policy's input. | give the fact another name
facts.failed | developer | The look-up of facts raised an exception. | correct the function that looks up facts; the log has the exception's traceback
facts.invalid | developer | The look-up of facts returned no mapping of names to JSON values. | let the function of facts return a dict of JSON values
facts.too_large | developer | With the facts, the policy's input takes more than 4 MiB. | let the function of facts return what the policy reads alone
facts.undeclared | developer | The look-up of facts returned a name that the tool does not declare. | name the fact in gives, or in the type that the function of facts returns
forge | | | read the message: the demo's repository is told something impossible
forge.refused | | The demo's repository refuses. |
frame | | | use one version of agentguard on both sides of the socket
frame.malformed | | What a client and a guard server send each other has another form. Calls are denied with this. |
frame.sender | | A process of another user has sent a message on a client's connection. |
frame.too_large | | A message to a guard server is longer than the limit. Calls are denied with this. | pass less in the call: a reference in the place of the content
framework | | | install a version of the framework that the message names
framework.unsupported | | An adapter does not run on the framework's version that is there. |
git | | | install git
git.missing | | The demo needs git. |
hop | | | do not trust the chain, and ask whoever sent it for a new one
hop.audience | | A hop's audience is wider than that of the one before. |
hop.calls | | A hop allows more calls than the one before. |
hop.depth | | A chain of delegation is deeper than it may be. |
hop.expired | | A hop of a chain has expired. | lend again: guard.delegate
hop.expiry | | A hop lives longer than the one before, or is older. |
hop.issuer | | A hop is not by the one to whom the one before it went. |
hop.key | | A hop is signed with another key than it must be. |
hop.malformed | | Not a hop grant. |
hop.name | | A hop goes to somebody who is no agent named by its key. |
hop.not_yet_valid | | A hop of a chain is not valid yet. | set the clock of this machine, or of the one that signed
hop.parent | | A hop does not name the one before it. |
hop.repeated | | Two hops of a chain have one id. |
hop.scope | | A hop grants more than the one before. |
hop.subject | | A hop is for another principal. |
hop.task | | A hop is for another task. |
invalid_scope | developer | More scope is asked for than there is (RFC 6749, 5.2). | let the scope of a sub-agent or a block be a part of the scope that is in force
issuer.keys | operator | An issuer's key set has another form, holds a private key, or has no key for tokens. Calls of clients with tokens are denied with this. | correct the key set of the issuer; the server's log says what it lacks
issuer.unreachable | operator | An issuer's keys can't be had, and the last ones are too old. Calls of clients with tokens are denied with this. | start the issuer, or correct its jwks_url or jwks_file; the server's log says which
journal | | | run agentguard audit verify, and restore the newest backup
journal.cut_short | operator | An earlier attempt of the call was cut short: nobody knows if it ran. | find out whether the tool ran
journal.in_doubt | operator | An earlier attempt of the call began, and its outcome is not on record. | find out whether the tool ran, and record the answer with agentguard resolve
journal.malformed | | Not an entry of the journal. |
journal.missing | operator | The log says that the call has run already, and its page in the journal is gone. | run agentguard doctor, which checks the state, the keys and the log
journal.observed | agent | The call has run while the policy was only observed, and nobody has approved it. |
journal.unreplayable | agent | The call has run already, and its result can't be handed out again. |
json | | | correct the JSON at its source
json.depth | | JSON nested more than 64 levels deep. |
json.duplicate_key | | A JSON object names a key twice. |
json.malformed | | Not JSON. |
json.not_canonical | | JSON in another form than its canonical one. |
json.not_object | | JSON, but no object. |
json.number | | A JSON number outside a double's range. |
json.size | | JSON of more than 256 KiB; evidence of more than 16 MiB. |
json.surrogate | | JSON text with a lone surrogate. |
json.unencodable | | A value is no JSON. |
json.utf8 | | JSON that is not UTF-8, or begins with a byte order mark. |
jwks | | | have the issuer publish its public keys alone, in the form of RFC 7517
jwks.malformed | | Not a set of public keys (JWKS). |
jwks.private | | A key set holds a private or secret key. | treat the key as stolen: have the issuer sign with a new one, and publish public keys alone
jws | | | do not trust the token, and ask whoever sent it for a new one
jws.algorithm | | A token is not signed with Ed25519. |
jws.header | | A token's header has a member that is refused. |
jws.malformed | | Not a compact JWS. |
jws.size | | A token of more than 256 KiB. |
jws.type | | A token is of another type. |
jwt | | | ask the issuer for a new token, with the audience and the algorithm that [issuers.NAME] names
jwt.actor | | A user's token says who may act (`act`, `may_act`), and names another party. | pass the user's own token, or have the issuer name the trust domain or the agent in may_act
jwt.algorithm | | An issuer's token has an `alg` that the configuration does not allow. |
jwt.audience | | An issuer's token is for another audience. |
jwt.bound | | An issuer's token counts only with the proof of a key (`cnf`). |
jwt.expired | | An issuer's token has expired. | have the token replaced before its end, and set the clocks of both machines
jwt.header | | An issuer's token has an extension that changes what is signed. |
jwt.issuer | | A token is of no issuer in the configuration. | compare the token's iss with issuer in [issuers.NAME]: each letter and slash counts
jwt.key | | An issuer has no key with the `kid` of its token. | compare the keys at jwks_file or jwks_url with those that the issuer signs with
jwt.lifetime | | An issuer's token has no `exp`. |
jwt.malformed | | Not a token of an issuer, or a claim of another type. |
jwt.not_yet_valid | | An issuer's token is not valid yet. | set the clock of this machine, or of the issuer
jwt.signature | | The signature of an issuer's token is not one of the issuer's keys. |
jwt.subject | | An issuer's token lacks the claim that names the subject. | name the claim with the subject in [issuers.NAME] subject_claim
jwt.type | | An issuer's token has a `typ` that the configuration does not allow. | send an access token or a token of the workload; types in [issuers.NAME] names other types
key | operator | | run agentguard doctor, which checks the state, the keys and the log
key.compromised | | A key was compromised by then. |
key.current | | A key in force is not revoked: rotate it. |
key.expired | | A key was not valid then. |
key.exposed | | Others can read or write a key, or what protects it. |
key.malformed | | Not an Ed25519 public key. |
key.mismatch | | A key of the state is not the one in force in its trust document. |
key.passphrase | | No passphrase, or a wrong one. |
key.private | | A private key is not shown, copied or pickled. |
key.unencrypted | | A private key rests without a passphrase. |
key.unknown | | A key is not in the trust document. |
key.unreadable | | A key file can't be read, or asks for more than 256 rounds of bcrypt. |
key.unusable | | A key can't be used. |
key.weak | | A public key of small order. |
merkle | | | run agentguard audit verify, and restore the newest backup
merkle.malformed | | Not a compact range of a Merkle tree. |
middleware | | | put GuardMiddleware last in the list of middleware
middleware.order | | A middleware inside of GuardMiddleware puts an unguarded tool in the place of the guarded one, or answers past it: put GuardMiddleware last (LangChain). |
model | | | correct --model, or the key of its provider
model.failed | | The demo's model failed. |
model.unusable | | The demo's model can't be made. |
node.cached | developer | LangGraph caches the node around the call (`cache_policy`), and would hand its result to whoever comes next. The run ends with a ConfigError of the same code. | take cache_policy off the node that calls the tool
note | | | take the checkpoint from its source again
note.malformed | | Not a signed note with a checkpoint. |
obligation.unknown | developer | The policy asks for an obligation that this guard can't meet. | let the policy ask for no obligation but redact
owner.failed | developer | The application's function that names an agent's owner failed. | correct the function that owners names; the log has the traceback
pins | | | write the pins anew with agentguard mcp pin --update, or restore the file
pins.malformed | | Not the pins of an MCP server, or tools that can't be pinned. |
policy | | | run agentguard policy check, which names the line and what to write
policy.denied | agent | The policy denies the call, or has no rule that allows it. |
policy.error | developer | The evaluation of the policy failed. | run agentguard policy check, and agentguard policy eval with the input of the refused call
policy.invalid | | The policy can't be loaded, could fail open, or reads a name that no input has. |
policy.malformed | developer | The policy's answer is not of the form that is read. | run agentguard policy check, and agentguard policy eval with the input of the refused call
policy.panic | developer | The policy engine's native code panicked. | run agentguard policy check, and agentguard policy eval with the input of the refused call
policy.undecided | developer | Cedar decides nothing, as for a call that the schema does not know. | add the tool to the Cedar schema
policy.undefined | developer | The policy's query has no value. | let the policy's package be the query of [policy]
principal | | | write the principal's name as in user:alice
principal.assurance | | A principal has to come with a token of an issuer, or comes with another's token. | pass the principal's own token: guard.delegate(subject_token=...)
principal.failed | developer | The application's function that names a principal's roles failed. | correct the function that principals names; the log has the traceback
principal.malformed | | Not the one spelling of a user's or service's name, as in user:alice. |
principal.refused | | A client of a guard server may not vouch for this principal. | begin a new delegation with the user's token, or name the principal in the client's vouches_for in [clients], at the server
principal.unknown | | `[principals]` does not list who is to lend. | add the principal to [principals] with roles, or correct the name
proof | | | do not trust what the proof is for, and ask for it again
proof.audience | | The proof of a request is for another URL; or a guard is to prove a request to a URL that the delegation does not name. | name the server's URL in guard.delegate(audience=[...]), in the client's transport and in Receiver(url)
proof.chain_unknown | | A receiver has not got the chain that an access token names. | send the chain to /.well-known/agentguard/chains/DIGEST, as the transports do, and repeat the request
proof.expired | | The proof of a request has expired, or is from another time. | make the request again, with a new proof, and set the clocks of both machines
proof.failed | | A guard can't prove a request, because a part of the guard fails. | read the message, and the log of the guard or the guard server
proof.headers | | The headers of a request take more than 32 KiB. | send shorter headers
proof.invalid | | A Merkle proof does not hold. |
proof.issuer | | The access token of a request is of a trust domain that is not trusted. | give the receiver the trust document of the domain: agentguard trust export
proof.key | | The access token of a request is bound to another key than the one that proves. | take the access token, the credential and the proof from one proof of the guard
proof.malformed | | Not a proof of inclusion (C2SP tlog-proof), or not the proof of a request; or the request has a header twice, or a URL with two readings. | take the proof from its source again, and send each header once
proof.missing | | A request has no access token, or no proof. | send the request from a guarded tool, with a transport of agentguard.proof
proof.refused | | A guard proves no request outside of a running call, nor under a revoked delegation, nor without a delegation. | make the request inside a guarded call under a delegation, before the tool returns
proof.request | | The proof is for another method, path, query or body than the request has. | find out who changes requests on the way; a proxy must not rewrite paths, queries or bodies
proof.scope | | The caller of a request lacks a scope that the endpoint needs. | lend the scope that the endpoint needs: guard.delegate(scope=[...])
proof.token | | The proof of a request is for another access token, or another credential. | take the access token, the credential and the proof from one proof of the guard
proof.too_large | | A body, a chain or an access token is longer than a receiver takes. | send less, raise max_body of CallerMiddleware, or delegate with fewer scopes
proof.unavailable | | The receiver's store of used proofs, the revocations or the clock can't be used or answer with another type, or the store is full. The request is refused. | look at the file of the ProofStore and its disk; raise max_proofs where the store is full
proof.unrecorded | | The receiver's log can't be written, or does not answer None. The request is refused, and its proof is used up. | look at the disk and the state of the receiver's log (agentguard doctor), and make the request again
proof.used | | The proof of a request was used before. | make the request again, with a new proof; a proof that comes twice may be stolen
receipt | | | find out who changes answers on the way, and ask the server's operator which requests it has got
receipt.key | | The receipt of an answer is signed by none of the server's keys. | take the server's public key from its operator, and name it in the transport's receipt_keys
receipt.malformed | | Not a receipt of a server's answer. |
receipt.mismatch | | The receipt is of another server, of another request or of another answer: its status, body, Location, Content-Type or Content-Encoding. |
receipt.missing | | A server whose answers need a receipt has sent an answer without one. | give the receiver a signer, or leave the server out of the transport's receipt_keys
receipt.redirect | | A redirect leads out of a server that has to sign its answers, or from elsewhere to such a server. The request is not sent. |
redaction | | | write a JSON Pointer to an argument or to the result, as in /args/note
redaction.malformed | | Not a JSON Pointer to what can be redacted of a call. |
request | | | take the request's id from agentguard approvals list
request.altered | | The request was changed where it lies, and is not the one in the log. | make the call again: it asks anew; find out who can write the state
request.ambiguous | | More than one request has an id that begins so. |
request.ended | | The request does not wait any more: it was approved, rejected or withdrawn, or has expired. The message says by whom, and what became of the call. | nothing: the message says what became of the call
request.exists | | The log has a request of this id already. |
request.unknown | | No request of this id waits. |
revocation | | | take the name from agentguard agents list or audit show
revocation.ambiguous | | The name means several things that could be revoked. |
revocation.name | | Nothing that could be revoked has such a name. |
revocation.unknown | | Nobody in the log or the configuration has the name to be revoked. |
roles.failed | developer | The function of `[approvals] roles` raised an exception, or returned no list of texts, so the answer does not count. | correct the function that [approvals] roles names; the log has the traceback
roster | | | correct [approvers] as the message says
roster.malformed | | Not a roster of approvers. |
scope | | | name scopes as in files:read, without spaces
scope.exceeded | agent | The tool requires a scope that the agent does not have. |
scope.malformed | | Not a scope, or none is named. |
secret.exposed | developer | An argument holds a secret that was released to the call around this one. | pass no secret on to another tool: name that tool in [secrets.NAME] tools, and let it call agentguard.secret itself
secret.failed | | The secret can't be had from its source, or the log can't record the release. | put the secret where [secrets.NAME] says, with rights for this user alone; read the message for what failed
secret.refused | | The configuration does not release the secret to this tool or under this scope, the authority is revoked, or the call has ended. | name the tool in [secrets.NAME] tools, or make the call under a delegation with the scope
secret.unknown | | The configuration has no secret of this name. | add [secrets.NAME] to agentguard.toml, or correct the name
server | operator | | run agentguard server status where the guard server runs
server.address | operator | A guard server can't listen at its address: another server or a file is there. | stop the other server, or name another url in [server] (another port in [server] health)
server.busy | operator | A guard server has as many clients, connections or calls as its limits allow. | raise the limits of [server], or find out what makes so many calls
server.draining | operator | A guard server is about to end. | wait until the guard server is there again
server.exposed | operator | The kernel lets other processes of the same user read the server's memory. | start agentguard serve where the kernel has prctl(PR_SET_DUMPABLE), as Linux has
server.failed | operator | A guard server failed, or its answer can't be read. | look into the log of the guard server
server.imposter | operator | The process at the guard server's socket runs under a user who may not be the server's. | find out who serves the socket, and keep it in a folder that only the server's user writes
server.inherited | operator | A program has inherited no connection to a guard server from `agentguard run`. | start the program with agentguard run, and pass the descriptor on to a program that it starts (pass_fds)
server.launch | operator | `agentguard run` can't start a program, or not under this user. | use agentguard run as the server's own user, or as root with --user, for a program that the user can run
server.protocol | operator | Client and guard server speak different versions of the protocol. | install one version of agentguard for server and client
server.reload | operator | A running guard server can't load a change of the configuration: only a new start can. | start the server anew, or take the change back
server.remote | operator | The operation needs the log, which is in a guard server, or is for the server's own user. | run the command where the guard server runs, as the server's user and in its folder
server.restarted | operator | A guard server has forgotten a client: it was started anew. The client begins anew by itself. | nothing, unless it comes often: read the guard server's log
server.stranger | operator | The user of a process, a certificate's name or a token's subject is no client of a guard server. | add the user, the SPIFFE ID or the subject to [clients] in the server's agentguard.toml, and run agentguard server reload
server.token | operator | A client's token can't be had, or a guard server refuses it. | see why the client's token does not count; the server's log and the message say so, and docs/how-to/workload-tokens.md has the set-ups
server.unknown | operator | A guard server has no such agent, tool or call of this client. | make the call again: the server was started anew, or has forgotten the client
server.unreachable | operator | A guard server can't be reached. | start the guard server (agentguard serve), and then the programs of agentguard run again
service | | | correct the URL of the token service
service.malformed | | What answers a client of a token service is no token service. |
service.refused | | A token service refuses a request; the message has the error of OAuth (RFC 6749, 5.2). | read the error in the message: docs/how-to/token-service.md has what each error means
service.unreachable | | A token service can't be reached, or can't answer now. | start the token service, or read its log
signature | | | do not trust what was signed, and compare its key with the trust document
signature.failed | operator | The agent's signer failed; the refusal is logged without a signature. | run agentguard doctor, which checks the state, the keys and the log
signature.invalid | | A signature does not hold. |
signature.missing | | No signature is by the key in question. |
site.unencodable | developer | A name of the call's thread, turn or task can't be written down. | give the thread, the turn and the task names that are text
statement | | | do not trust the statement, and ask whoever sent it for a new one
statement.malformed | | Not a statement of this kind in canonical form. |
statement.mismatch | | A statement does not agree with what it names, or with what is kept beside it. |
storage | operator | | run agentguard doctor, which checks the state, the keys and the log
storage.busy | developer | A call, a flush or a close comes from a signal handler, an object's end or a trace function that has interrupted its own thread amid work of the guard. | use no guard in a signal handler, in __del__ or in a trace function
storage.closed | developer | The log was closed, or this process is a fork of its writer. | open the guard again, and close the guard only once all calls are done
storage.copied | | The state is a copy, and its log goes on in another one. |
storage.corrupt | | The log's file is damaged. |
storage.exists | | Something is there already, and is not overwritten. |
storage.failed | | The log can't be read or written; so denied calls are not on record. |
storage.full | operator | The disk is full, or lacks the room that is kept for freezes and revocations, or too much waits to be written. | free space on the disk
storage.linked | | A symbolic link in the state leads elsewhere. |
storage.locked | operator | Another process holds the log's file, or a lock of the state for 30 s, or reads what was erased. | end the process that holds the lock; the message names the lock's file
storage.missing | | There is no state or log. |
storage.readonly | operator | The state, or another file, can't be read or written. | give the process the right to write the state
storage.remote | operator | The state, or the file of used proofs, is on a file system that other machines may write as well: NFS, SMB, 9P, virtiofs, FUSE. | keep it on a local disk (set state in agentguard.toml); share a state by a guard server
storage.rolled_back | | The log is behind its anchor (`agentguard adopt`), or a part of it is missing. |
storage.served | operator | A guard server has the state, or the state is being adopted, and a program opens it with a guard of its own. | put [server] with the server's url into the configuration, or wait for the adoption
storage.unknown | | Whether an entry was written is not known yet; its tool does not run. |
storage.unvouched | | The newest entries are signed by a key that is compromised or was replaced before, and no anchor has seen them; or the log's key in this process was declared compromised. |
storage.used | operator | A guard server finds a state that another server or other programs use. | stop the programs that use the state, and start the server again
storage.version | | The log is of a format that this version does not know. |
subagent.parallel | agent | Sub-agents work one at a time here (`parallel_subagents=False`). |
system | | | read the message of the operating system
system.failed | | The operating system refused something on the command line. |
terminal | | | run the command in a terminal, or with the option that the message names
terminal.missing | | Nobody is at a terminal who could be asked. |
test | | | write a table of cases beside the policy: authz_test.toml
test.none | | There is no test of the policy, or none could be run. |
token | | | ask for a new token, for this receiver
token.audience | | An access token is for somebody else. |
token.expired | | An access token has expired. |
token.inactive | | A token service says that an access token does not count now. | ask for a new token; the token service's log says what was revoked or has ended
token.lifetime | | An access token lives longer than five minutes. |
token.malformed | | Not an access token. |
token.mismatch | | A claim of an access token is not what its chain says. |
token.not_yet_valid | | An access token is not valid yet. | set the clock of this machine, or of the issuer
tool | | | pass the tool as its framework makes it, once for each agent
tool.async | | A coroutine function was given to `call`: use `acall`. Or a sync tool returned what nobody awaits. | call the tool with acall
tool.changed | developer | The tool has another origin or schema than `[tools.NAME]` pins, another name than when it was guarded, or another description than at the agent's first call through a guard server, or than the pins of its MCP server have. | find out what changed in the tool; if the change is meant, correct [tools.NAME], or run agentguard server accept AGENT TOOL where a guard server runs, or agentguard mcp pin for a tool of an MCP server
tool.error | | The MCP server has answered a call with an error of JSON-RPC, or has refused the call by an HTTP status. The call may have run. | read the server's message, and the server's own log
tool.failed | | The MCP gateway has met an error of its own; its log has the traceback. | read the log of the gateway, which is its standard error
tool.generator | | A generator function can't be guarded. | write a function that returns a list, and guard that
tool.guarded | | The tool is guarded for another agent already. |
tool.in_doubt | | The same call has just ended at the MCP gateway, and nobody knows whether the tool ran. The gateway did not make the call again. | find out whether the tool ran, before you make the call again, at the earliest after five seconds
tool.invalid | | Not a tool that can be guarded. |
tool.lost | | The MCP server has ended, or has broken the protocol, before it answered a call, or goes on with the call as a task. The call may have run. | find out whether the tool ran, before you make the call again; read the MCP server's own log
tool.timeout | | The MCP server has not answered a call in time. The call may have run. | find out whether the tool ran, before you make the call again; raise timeout in [mcp.NAME] if the tool needs more time
tool.uncheckable | developer | The schema of an MCP tool can't be used to check arguments: it is none of its draft, names an unknown one, refers to another document, is too large, or takes too long. The tool is in no list. | the program's log says what is wrong with the schema of the tool: mend the MCP server
tool.unconfigured | developer | The tool has no table `[tools.NAME]`, and `[tools] unlisted` is `"deny"`. An MCP gateway and a guarded MCP server leave such a tool out of their lists. | write the table [tools.NAME] that the message names, or rename the one that it means
tool.unguardable | | A tool has a way in that can't be gated, or arguments that can't be told. |
tool.unguarded | | A guarded tool was called past any agent. | call the tool through its agent: agent.call(tool, ...)
tool.unknown | agent | The MCP server behind the gateway has no such tool for this client. |
tool.unlisted | operator | The MCP server behind the gateway does not say which tools it has. | see why the MCP server behind the gateway does not answer tools/list
tool.unpinned | developer | The tool of an MCP server is not in the file of the server's pins. | look at the tool with agentguard mcp diff, and pin the tool with agentguard mcp pin
tool.unreachable | | The MCP server had ended before the call, or could not be reached. The call did not run. | start the client's connection to the gateway anew; read the MCP server's own log
trace | | | export the trace with scripts/jaeger-export again
trace.malformed | | Not what Jaeger's query API answers, or a checkpoint in it is none. |
trust | operator | | run agentguard doctor, which checks the state, the keys and the log
trust.changed | | The state's trust document is not the one kept with the anchors, or its log not the one that they know. |
trust.malformed | | Not a trust document. |
"""  # noqa: E501  a row is one line


class ReasonCode(NamedTuple):
    """A code's meaning, who acts (None where no call is refused for this reason), and how.

    ``remedy`` says what that person does next; empty for an agent.
    """

    meaning: str
    party: Party | None
    remedy: str


def _rows() -> dict[str, ReasonCode]:
    parties: dict[str, Party | None] = {"": None, **{party: party for party in get_args(Party)}}
    rows: dict[str, ReasonCode] = {}
    for line in _TABLE.strip().splitlines():
        code, who, meaning, remedy = (cell.strip() for cell in (*line.split("|"), "", "")[:4])
        party = parties[who]
        if not who and not remedy and (noun := rows.get(code.partition(".")[0])) is not None:
            party, remedy = noun.party, noun.remedy
        rows[code] = ReasonCode(meaning, party, remedy)
    return rows


_ROWS: Final = _rows()

CODES: Final[Mapping[str, ReasonCode]] = {c: row for c, row in _ROWS.items() if row.meaning}
"""The codes of refusals and of errors."""

NOUNS: Final[Mapping[str, ReasonCode]] = {
    noun: row for noun, row in _ROWS.items() if row.party and not row.meaning
}
"""The nouns of reason codes that are no keys of ``CODES``: a call is also refused with an error."""

UNKNOWN: Final = ReasonCode("", "developer", "look the code up in the page of the reason codes")
"""For each other code, so that no model reads a sentence that was not written for models."""


def responsibility_for(code: str) -> ReasonCode:
    """Return who acts on a refusal with this reason code, which may be that of any error."""
    row = CODES.get(code) or NOUNS.get(code.partition(".")[0], UNKNOWN)
    return row if row.party is not None else row._replace(party="developer")
