"""``agentguard doctor`` in the configuration of a guard server, and in that of a client."""

from __future__ import annotations

import json
import os

import pytest
from served_place import founded_place
from token_issuer import TokenIssuer

OTHER = 64_002
LISTENER = (
    "[server.tls]\nlisten = '127.0.0.1:7443'\ncertificate = 's.pem'\nkey = 's.key'\nca = 'ca.pem'\n"
)
"""A user without an account, who is neither root nor the user of these tests."""


def checks(place, folder=None) -> dict[str, tuple[str, str]]:
    """Return what doctor finds, by the subject."""
    command = ("-m", "agentguard.cli", "doctor", "--json")
    printed = place.programs.run(*command, cwd=folder or place.folder).stdout
    return {
        found["check"]: (found["status"], found["what"]) for found in json.loads(printed)["checks"]
    }


def add(place, text: str) -> None:
    path = place.folder / "agentguard.toml"
    path.write_text(f"{path.read_text('utf-8')}\n{text}", "utf-8")


def test_an_edit_that_the_server_has_not_loaded_is_a_warning(founded):
    add(founded, f"[clients.reviewer]\nuid = {OTHER}\nagents = ['clerk']")
    founded.start()
    assert checks(founded)["server"][0] == "ok"
    add(founded, "vouches_for = ['user:alice']")
    status, what = checks(founded)["server"]
    assert (status, "of the configuration: run agentguard server reload" in what) == ("warn", True)
    policy = founded.folder / "authz.rego"
    policy.write_text(policy.read_text("utf-8") + "\n# more\n", "utf-8")
    assert "of the configuration and of the policy:" in checks(founded)["server"][1]
    assert command(founded, founded.folder, "server", "reload").returncode == 0
    assert checks(founded)["server"][0] == "ok"


@pytest.fixture
def client(founded):
    """The folder of a client's program, whose configuration has one table."""
    folder = founded.folder / "client"
    folder.mkdir()
    (folder / "agentguard.toml").write_text('[server]\nurl = "unix:../s"\n', "utf-8")
    return folder


def test_a_server_without_clients_of_their_own_is_for_trying_out(founded):
    status, what = checks(founded)["server"]
    assert (status, "agentguard serve" in what) == ("warn", True)  # before the start
    founded.start()
    status, what = checks(founded)["server"]
    assert status == "warn"
    assert "same-user" in what
    assert "[clients]" in what


def test_the_servers_own_user_looks_after_it(founded):
    add(founded, f"[clients.reviewer]\nuid = {OTHER}\nagents = ['clerk']")
    founded.start()
    found = checks(founded)
    assert found["server"][0] == "ok"
    assert "looks after the server" in found["server"][1]
    assert found["client reviewer"][0] == "ok"
    assert str(OTHER) in found["client reviewer"][1]
    assert found["state"][0] == "ok"  # and the rest of the checks are there


def test_a_client_checks_the_server_alone(founded, client):
    status, what = checks(founded, client)["server"]
    assert (status, "server.unreachable" in what or "can't be reached" in what) == ("fail", True)
    founded.start()
    found = checks(founded, client)
    assert found["server"][0] == "warn"  # same-user
    assert not {"policy", "state", "keys", "passphrase", "log"} & found.keys()


def test_a_client_checks_its_gateways_by_what_its_own_configuration_has(founded, client):
    gateway = '[mcp.files]\ncommand = ["true"]\nagent = "clerk"\nsecrets = { TOKEN = "TOKEN" }\n'
    path = client / "agentguard.toml"
    path.write_text(f"{path.read_text('utf-8')}{gateway}", "utf-8")
    founded.start()
    found = checks(founded, client)  # the agents and the secrets are the server's
    what = "no tool is pinned: run agentguard mcp pin --name files"
    assert found["mcp files"] == ("warn", what)
    (client / "mcp-pins").mkdir()
    (client / "mcp-pins" / "files.json").write_text("{}", "utf-8")
    assert checks(founded, client)["mcp files"][0] == "fail"


@pytest.fixture
def settled(founded, programs):
    """A folder that has a policy and a state from the time before it became a client's."""
    with founded_place(programs) as other:
        path = other.folder / "agentguard.toml"
        url = f"unix:{founded.folder}/s"
        path.write_text(path.read_text("utf-8").replace("unix:s", url), "utf-8")
        yield other


def command(place, folder, *words: str):
    return place.programs.run("-m", "agentguard.cli", *words, cwd=folder)


def test_a_clients_state_from_before_the_server_does_not_count(founded, settled):
    assert checks(founded, settled.folder)["state"][0] == "ok"  # nobody says who serves
    founded.start()
    found = checks(founded, settled.folder)
    assert "do not" in found["client"][1]
    assert found["socket"][0] == "ok"
    assert not {"policy", "state", "keys", "passphrase", "log"} & found.keys()
    reading = (("audit", "list"), ("agents", "list"), ("keys", "list"))
    for words in (*reading, ("freeze", "--note", "x")):
        refused = command(founded, settled.folder, *words)
        assert refused.returncode == 2
        assert "server.remote" in refused.stderr
        assert "where the server runs" in " ".join(refused.stderr.split())
    for words in reading:  # the twin: the server's own folder
        assert command(founded, founded.folder, *words).returncode == 0
    assert command(founded, settled.folder, "audit", "list", "--state", "state").returncode == 0


def test_a_folder_of_a_client_has_no_log(founded, client):
    founded.start()
    for words in (("audit", "list"), ("audit", "verify")):
        refused = command(founded, client, *words)
        assert refused.returncode == 2
        assert "server.remote" in refused.stderr
    assert command(founded, client, "server", "status").returncode == 0  # the server's own user


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to other users")
def test_a_socket_of_another_user_is_that_of_another_state(founded, settled):
    os.chown(founded.folder, OTHER, OTHER)  # and no server answers
    found = checks(founded, settled.folder)
    assert found["socket"][0] == "ok"
    assert "state" not in found
    assert "server.remote" in command(founded, settled.folder, "audit", "list").stderr
    os.chown(founded.folder, 0, 0)
    assert command(founded, settled.folder, "audit", "list").returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start programs under other users")
def test_a_stranger_hears_that_the_server_refuses(founded, client):
    add(founded, f"[clients.reviewer]\nuid = {OTHER}")
    founded.start()
    founded.folder.chmod(0o755)
    for user, status, says in (
        (OTHER, "ok", "client reviewer, separate-user"),
        (OTHER + 1, "fail", "is no client"),
    ):
        found = founded.programs.run(
            "-c",
            f"import os; os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
            "from agentguard.cli.commands import main; main()",
            "doctor",
            "--json",
            cwd=client,
        )
        (server,) = (one for one in json.loads(found.stdout)["checks"] if one["check"] == "server")
        assert server["status"] == status
        assert says in server["what"]


@pytest.mark.parametrize(("mode", "status"), [(0o755, "ok"), (0o777, "fail"), (0o1777, "fail")])
def test_the_folder_of_the_socket_is_the_servers(founded, client, mode, status):
    run = founded.folder / "run"
    run.mkdir()
    run.chmod(mode)
    path = founded.folder / "agentguard.toml"
    path.write_text(path.read_text("utf-8").replace("unix:s", "unix:run/s"), "utf-8")
    assert checks(founded)["socket"][0] == status
    if mode != 0o1777:
        (client / "agentguard.toml").write_text('[server]\nurl = "unix:../run/s"\n', "utf-8")
        assert checks(founded, client)["socket"][0] == status


def test_a_secret_that_a_client_can_read_is_found(founded):
    add(founded, f"[clients.reviewer]\nuid = {OTHER}")
    founded.folder.chmod(0o711)
    assert checks(founded)["client reviewer"][0] == "ok"
    (founded.folder / "passphrase").chmod(0o644)
    status, what = checks(founded)["client reviewer"]
    assert status == "fail"
    assert "passphrase" in what
    (founded.folder).chmod(0o700)  # nobody gets to the file
    assert checks(founded)["client reviewer"][0] == "ok"


def test_a_client_that_is_the_servers_own_user_is_no_wall(founded):
    add(founded, f"[clients.reviewer]\nuid = {os.getuid()}")
    status, what = checks(founded)["client reviewer"]
    assert status == "warn"
    assert "same-user" in what


def test_the_keys_of_issuers_are_looked_for_in_files_alone(founded):
    issuer = TokenIssuer()
    add(
        founded,
        f"{LISTENER}[issuers.cluster]\nissuer = 'https://issuer.example'\njwks_file = 'keys.json'\n"
        "audience = ['agentguard']\nalgorithms = ['ES256']\n"
        "[issuers.sso]\nissuer = 'https://sso.example'\njwks_url = 'https://sso.invalid/jwks'\n"
        "audience = ['agentguard']\nalgorithms = ['RS256']\n"
        "[issuers.people]\nissuer = 'https://id.example'\njwks_url = 'https://id.invalid/jwks'\n"
        "audience = ['agentguard']\nalgorithms = ['RS256']\nusers.claim = 'email'\n"
        "[clients.billing]\nissuer = 'cluster'\nsubject = 'billing'\nagents = ['clerk']",
    )
    found = checks(founded)
    assert found["issuer cluster"][0] == "fail"
    assert found["issuer sso"] == (
        "warn",
        "no client in [clients] names it, and it has no users: none of its tokens counts",
    )
    assert found["issuer people"][0] == "ok"
    assert found["client billing"][1].endswith("known by tokens of cluster for billing")
    (founded.folder / "keys.json").write_bytes(issuer.jwks())
    status, what = checks(founded)["issuer cluster"]
    assert status == "ok"
    assert what.endswith("keys.json has 1 key of https://issuer.example")


def test_a_client_for_which_a_user_could_be_taken_is_named(founded):
    keys = "jwks_url = 'https://sso.invalid/jwks'\naudience = ['a']\nalgorithms = ['RS256']\n"
    client = "agents = ['clerk']\nissuer = 'sso'\n"
    add(
        founded,
        f"{LISTENER}[issuers.sso]\nissuer = 'https://sso.example'\n{keys}subject_claim = 'azp'\n"
        f"[issuers.cluster]\nissuer = 'https://cluster.example'\n{keys}"
        f"[clients.web]\n{client}subject = 'web'\n"
        f"[clients.job]\n{client}subject = 'job'\nclaims = {{ client_id = 'job' }}\n"
        "[clients.pod]\nagents = ['clerk']\nissuer = 'cluster'\nsubject = 'pod'",
    )
    found = checks(founded)
    status, what = found["claims of web"]
    assert status == "warn"
    assert "a user's token may have the same azp" in what
    assert not {"claims of job", "claims of pod"} & found.keys()  # the twins


@pytest.mark.parametrize(
    ("agents", "says"),
    [("clerc", "did you mean clerk?"), ("cl*", None), ("clerk", None), ("x*", "'x*'")],
)
def test_a_client_may_be_agents_that_there_are(founded, agents, says):
    add(founded, f"[clients.reviewer]\nuid = {OTHER}\nagents = ['{agents}']")
    status, what = checks(founded).get("clients", ("ok", ""))
    assert status == ("ok" if says is None else "warn")
    assert says is None or says in what
    founded.start()
    assert ("[clients.reviewer]" in founded.said()) == (says is not None)


def test_a_client_on_another_machine_has_no_files_here(founded):
    add(founded, "[clients.web]\nspiffe = 'spiffe://acme.example/web-1'\nagents = ['clerk']")
    status, what = checks(founded)["client web"]
    assert status == "warn"
    assert "add [server.tls]" in what
    add(founded, LISTENER)
    status, what = checks(founded)["client web"]
    assert status == "ok"
    assert "spiffe://acme.example/web-1" in what


def test_a_client_with_tokens_can_use_the_token_service_without_a_port_of_the_server(founded):
    issuer = """[issuers.acme]
issuer = "https://login.example"
jwks_file = "jwks.json"
audience = ["workloads"]
algorithms = ["RS256"]
"""
    web = "[clients.web]\nissuer = 'acme'\nsubject = 'web-1'\nagents = ['clerk']"
    add(founded, f"{issuer}\n{web}")
    status, what = checks(founded)["client web"]
    assert status == "warn"
    assert "add [server.tls]" in what
    service = "[service]\nissuer = 'https://agents.example'\nlisten = '127.0.0.1:1'"
    add(founded, f"{service}\naudiences = ['https://pay.example']")
    status, what = checks(founded)["client web"]
    assert status == "ok"
    assert "can use the token service alone" in what
