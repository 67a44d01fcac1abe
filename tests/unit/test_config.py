"""agentguard.toml: what it may say, and that each mistake names the file, the key and a way out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import ConfigError, Decision, Guard, PolicyError
from agentguard.adapters import ToolSpec
from agentguard.domain import config
from agentguard.domain.config.agents import PrincipalConfig
from agentguard.domain.config.engine_loader import configured_engine
from agentguard.domain.config.policy import PolicyConfig

POLICY = '[policy]\npath = "p"\n'
WHOLE = """
trust_domain = "acme.example"
state = "here"
anchor = "there"

[keys]
passphrase_file = "secret"

[policy]
engine = "function"
path = "m:f"
query = "data.x"
mode = "enforce"

[agents.code-reviewer]
type = "code-agent"
owner = "user:carol"
version = "1.2"
authority = "own"
max_scope = ["repo:read", "pr:write"]

[agents.plain]

[tools.open_pr]
requires = ["pr:write"]
resource = "repo:{repo}"
attributes = { branch = "branch" }
facts = { look_up = "os.path:basename", gives = ["name"] }
"""


@pytest.fixture
def written(tmp_path):
    """Write an agentguard.toml and return its path."""

    def write(text):
        path = tmp_path / "agentguard.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_everything_that_can_be_said(written, tmp_path):
    settings = config.load(written(WHOLE))
    assert settings.trust_domain == "acme.example"
    assert settings.state == tmp_path / "here"
    assert settings.anchor == tmp_path / "there"
    assert settings.keys.passphrase_file == tmp_path / "secret"
    assert settings.policy == PolicyConfig("function", "m:f", "data.x")
    reviewer = settings.agents["code-reviewer"]
    assert reviewer.profile.owner == "user:carol"
    assert reviewer.authority == "own"
    assert reviewer.max_scope == frozenset({"repo:read", "pr:write"})
    spec = settings.tools.tables["open_pr"].over(ToolSpec("open_pr", "", {}, "m:f"))
    assert spec.requires == ("pr:write",)
    assert spec.resource == "repo:{repo}"
    assert spec.attributes == {"branch": "branch"}
    assert spec.facts is os.path.basename
    assert b'"trust_domain":"acme.example"' in settings.encoded


def test_what_is_not_said(written, tmp_path):
    settings = config.load(written(POLICY + "[agents.plain]\n"))
    assert settings.state == tmp_path / ".agentguard"
    assert settings.anchor == Path("~/.local/state/agentguard").expanduser()
    assert settings.keys.passphrase_file is None
    assert settings.policy == PolicyConfig("rego", "p", "data.agent.authz")
    plain = settings.agents["plain"]
    assert plain.authority == "delegated"  # losing a context never widens authority
    assert plain.max_scope == frozenset()


ROLES = """
[roles.reader]
scope = ["repo:read"]

[roles.developer]
scope = ["repo:read", "pr:write"]

[roles.nobody]

[agents.fixer]
roles = ["reader"]
max_scope = ["lint:run"]

[agents.plain]

[principals."user:alice"]
roles = ["developer", "reader", "reader"]

[principals."service:ci"]
"""


def test_roles_are_named_sets_of_scope(written):
    settings = config.load(written(POLICY + ROLES))
    fixer = settings.agents["fixer"]
    assert fixer.roles == ("reader",)
    assert fixer.max_scope == frozenset({"lint:run"})
    assert fixer.scope == frozenset({"lint:run", "repo:read"})
    assert settings.agents["plain"].scope == frozenset()
    principals = settings.principal_tables
    alice = principals["user:alice"]
    assert alice.roles == ("developer", "reader")
    assert alice.scope == frozenset({"repo:read", "pr:write"})
    assert principals["service:ci"] == PrincipalConfig((), frozenset())


def test_without_principals_anybody_lends_what_the_program_says(written):
    assert config.load(written(POLICY)).principals is None
    assert config.load(written(POLICY + "[principals]\n")).principals is not None  # nobody does


def test_a_role_is_the_same_for_whoever_has_it(written):
    """Access is managed by the role: to change it changes everybody's."""
    before = config.load(written(POLICY + ROLES))
    after = config.load(written(POLICY + ROLES.replace('"pr:write"', '"pr:merge"')))
    for settings, expected in ((before, "pr:write"), (after, "pr:merge")):
        assert expected in settings.principal_tables["user:alice"].scope


def test_an_empty_anchor_means_none(written):
    assert config.load(written('anchor = ""\n' + POLICY)).anchor is None


def test_a_tool_table_that_says_nothing_changes_nothing():
    spec = ToolSpec("t", "", {}, "m:t", ("x",), "r:{a}", MappingProxyType({"a": "a"}))
    assert config.ToolConfig().over(spec) == spec


@pytest.mark.parametrize("scopes", ['[""]', '["a", ""]', "[]"])
def test_a_list_that_asks_for_no_scope_is_refused(written, scopes):
    with pytest.raises(ConfigError, match=r"requires: .* names a scope, or no such key"):
        config.load(written(POLICY + f"[tools.t]\nrequires = {scopes}\n"))


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("", "policy", "a table [policy] with a path"),
        ("[policy]\n", "policy.path", "a string, found none"),
        (
            '[policy]\nurl = "http://o"\n',
            "policy.engine",
            "'opa', because the table has a url and no path",
        ),
        (POLICY + "[telemetry]\nendpoint = 4318\n", "telemetry.endpoint", "a string, got 4318"),
        ('[policy]\npath = "a\\u0000"\n', "policy.path", "a string without U+0000"),
        ("[policy]\npath = 5\n", "policy.path", "a string"),
        (
            '[policy]\npath = "p"\nengine = "oPa"\n',
            "policy.engine",
            "'rego' or 'opa' or 'cedar' or 'function'",
        ),
        ('[policy]\npath = "p"\nengine = 1\n', "policy.engine", "'rego' or 'opa'"),
        ('[policy]\npath = "p"\nmode = "audit"\n', "policy.mode", "'enforce' or 'observe'"),
        ('[policy]\npath = "p"\nquerry = "x"\n', "policy.querry", "unknown key"),
        ("policy = 5\n", "policy", "a table"),
        ('trust_domain = "Acme"\n' + POLICY, "trust_domain", "a domain name"),
        ('trust_domain = "a b"\n' + POLICY, "trust_domain", "a domain name"),
        ('trust_domain = "acme.example/x"\n' + POLICY, "trust_domain", "a domain name"),
        ('trust_domain = ""\n' + POLICY, "trust_domain", "not empty"),
        ("trust_domain = 5\n" + POLICY, "trust_domain", "a string"),
        ("state = []\n" + POLICY, "state", "a string"),
        ('state = "a\\u0000b"\n' + POLICY, "state", "U+0000"),
        ("anchor = false\n" + POLICY, "anchor", "a string"),
        ("keys = 5\n" + POLICY, "keys", "a table"),
        (POLICY + '[keys]\npassphrase = "x"\n', "keys.passphrase", "unknown key"),
        (POLICY + "[keys]\npassphrase_file = 5\n", "keys.passphrase_file", "a string"),
        ("agents = 5\n" + POLICY, "agents", "a table"),
        (POLICY + "[agents]\na = 5\n", "agents.a", "a table"),
        (POLICY + '[agents."Bad Name"]\n', "agents.Bad Name", "no agent name"),
        (POLICY + "[agents.a]\nauthority = 5\n", "agents.a.authority", "'own' or"),
        (POLICY + '[agents.a]\nauthority = "all"\n', "agents.a.authority", "'own' or 'delegated'"),
        (POLICY + '[agents.a]\nmax_scope = "x"\n', "agents.a.max_scope", "a list of strings"),
        (POLICY + "[agents.a]\nmax_scope = [1]\n", "agents.a.max_scope", "a list of strings"),
        (POLICY + '[agents.a]\nmaxscope = ["x"]\n', "agents.a.maxscope", "unknown key"),
        (POLICY + "[agents.a]\ntype = 5\n", "agents.a.type", "a string"),
        (POLICY + "[tools]\nt = 5\n", "tools.t", "a table"),
        (POLICY + '[tools.t]\nrequires = "x"\n', "tools.t.requires", "a list of strings"),
        (POLICY + "[tools.t]\nresource = 5\n", "tools.t.resource", "a string"),
        (POLICY + '[tools.t]\nattributes = "x"\n', "tools.t.attributes", "a table of strings"),
        (POLICY + "[tools.t]\nattributes = {a = 1}\n", "tools.t.attributes", "a table of strings"),
        (POLICY + "[tools.t]\nfacts = 5\n", "tools.t.facts", "a table"),
        (POLICY + '[tools.t]\nfacts = "m:f"\n', "tools.t.facts", "a table with the names"),
        (POLICY + '[tools.t.facts]\nlook_up = "m:f"\n', "tools.t.facts.gives", "the names of"),
        (POLICY + '[tools.t]\nfacts = { gives = ["paths"] }\n', "tools.t.facts.gives", "reserved"),
        (POLICY + '[tools.t]\nattributes = { caller = "x" }\n', "tools.t.attributes", "reserved"),
        (POLICY + '[tools.t]\nrequired = ["x"]\n', "tools.t.required", "unknown key"),
        ("roles = 5\n" + POLICY, "roles", "a table"),
        (POLICY + "[roles]\nr = []\n", "roles.r", "a table"),
        (POLICY + '[roles.r]\nscope = "x"\n', "roles.r.scope", "a list of strings"),
        (POLICY + "[roles.r]\nscope = [1]\n", "roles.r.scope", "a list of strings"),
        (POLICY + '[roles.r]\nscope = ["a b"]\n', "roles.r.scope", "is no scope"),
        (POLICY + '[roles.r]\nscope = [""]\n', "roles.r.scope", "is no scope"),
        (POLICY + '[roles.r]\nscopes = ["a"]\n', "roles.r.scopes", "unknown key"),
        (POLICY + '[agents.a]\nmax_scope = ["\u0430"]\n', "agents.a.max_scope", "is no scope"),
        (POLICY + '[agents.a]\nroles = "r"\n', "agents.a.roles", "a list of strings"),
        (POLICY + '[agents.a]\nroles = ["r"]\n', "agents.a.roles", "is not one of [roles]: none"),
        (
            POLICY + '[roles.q]\n[agents.a]\nroles = ["q", "r"]\n',
            "agents.a.roles",
            "is not one of [roles]: q",
        ),
        ("principals = 5\n" + POLICY, "principals", "a table"),
        (POLICY + '[principals]\n"user:a" = 5\n', "principals.user:a", "a table"),
        (POLICY + '[principals."user:a"]\nscope = ["x"]\n', "principals.user:a.scope", "unknown"),
        (POLICY + '[principals."user:a"]\nroles = ["r"]\n', "principals.user:a.roles", "[roles]"),
        (POLICY + '[principals."agent:a"]\n', "principals.agent:a", "names an agent"),
        (POLICY + '[principals."user:\u0430"]\n', "principals.user:\u0430", "no name of a"),
        (POLICY + '[principals.""]\n', "principals.", "no name of a"),
        ("verbose = true\n" + POLICY, "verbose", "unknown key"),
        (POLICY + "[telemetri]\n", "telemetri", "unknown key"),
        (POLICY + "[telemetry]\nhash = true", "telemetry.hash", "unknown key"),
        (POLICY + '[telemetry]\nendpoint = "localhost:4318"', "telemetry.endpoint", "the URL of"),
        (POLICY + '[telemetry]\nresults = "no"', "telemetry.results", "true or false"),
        (POLICY + "[telemetry]\nservice_name = 1", "telemetry.service_name", "a string"),
    ],
)
def test_a_mistake_names_the_file_the_key_and_what_was_expected(written, text, key, says):
    path = written(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    message = str(caught.value)
    assert caught.value.code == "config.invalid"
    assert message.startswith(f"{path}: {key}: "), message
    assert says in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("= 5", "not valid TOML"),
        ("a = 1\na = 2\n" + POLICY, "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (
            "directory_seconds = 99999999999999999999\n" + POLICY,
            "can't be part of a configuration",
        ),
    ],
    ids=repr,
)
def test_what_is_no_configuration_at_all_names_the_file(written, text, says):
    path = written(text)
    with pytest.raises(ConfigError, match=says) as caught:
        config.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("key", ["state", "anchor"])
def test_the_home_of_a_user_who_does_not_exist_is_a_mistake(written, key):
    with pytest.raises(ConfigError):
        config.load(written(f'{key} = "~nobody-with-this-name/x"\n' + POLICY))


def test_a_missing_file_says_how_to_make_one(tmp_path):
    for path in (tmp_path / "agentguard.toml", tmp_path / "no" / "folder" / "agentguard.toml"):
        with pytest.raises(ConfigError, match="agentguard init") as caught:
            config.load(path)
        assert caught.value.code == "config.missing"
    with pytest.raises(ConfigError, match="can't be read"):
        config.load(tmp_path)


@pytest.mark.parametrize("mode", [0o666, 0o602])
def test_a_file_that_others_can_write_is_refused(written, mode):
    path = written(POLICY)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w") as caught:
        config.load(path)
    assert caught.value.code == "config.exposed"
    path.chmod(0o644)
    config.load(path)


def test_find_looks_upwards(tmp_path, written):
    path = written(POLICY)
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert config.find(below) == path
    assert config.find(tmp_path) == path
    (below / "agentguard.toml").mkdir()  # a folder of that name is none
    assert config.find(below) == path


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("no_such_module:x", "ModuleNotFoundError"),
        ("os:no_such_name", "AttributeError"),
        ("os", "package.module:callable"),
        (":x", "package.module:callable"),
        ("os:sep", "not callable"),
        ("\ud800:x", "can't be imported"),
    ],
    ids=repr,
)
def test_a_callable_that_is_none_is_a_mistake(reference, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        config.load_callable(reference, "agentguard.toml: tools.t.facts")
    assert str(caught.value).startswith("agentguard.toml: tools.t.facts: ")
    assert config.load_callable("os:getpid", "x") is os.getpid


def test_facts_that_do_not_exist_are_found_where_the_tool_is_registered():
    tables = {"tools": {"t": {"facts": {"look_up": "no_such_module:x", "gives": ["x"]}}}}
    guard = Guard.ephemeral(lambda _: Decision.allow(), config=tables)
    with pytest.raises(ConfigError, match=r"tools\.t\.facts"):
        guard.tool(name="t")(print_nothing)


def print_nothing():
    """A tool."""


# --- the policy that is named ---------------------------------------------------------------------


def test_a_policy_that_is_not_there_is_named(written, tmp_path):
    settings = config.load(written('[policy]\npath = "authz.rego"\n'))
    with pytest.raises(ConfigError, match=r"policy\.path: there is no .*authz\.rego"):
        configured_engine(settings)


@pytest.mark.parametrize("folder", [False, True])
def test_a_policy_that_others_can_write_is_refused(written, tmp_path, folder):
    place = tmp_path / "policies"
    place.mkdir()
    file = place / "authz.rego"
    file.write_text("package agent.authz\nallow := true\n", encoding="utf-8")
    named = "policies" if folder else "policies/authz.rego"
    settings = config.load(written(f'[policy]\npath = "{named}"\n'))
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=r"authz\.rego") as caught:
        configured_engine(settings)
    assert caught.value.code == "config.exposed"
    file.chmod(0o644)
    assert configured_engine(settings).name == "rego"


@pytest.fixture
def bundle(written, tmp_path):
    """A policy in a folder, and the configuration that names the folder."""
    folder = tmp_path / "policies"
    (folder / "more").mkdir(parents=True)
    (folder / "authz.rego").write_text("package agent.authz\nallow := true\n", encoding="utf-8")
    (folder / "more" / "data.json").write_text("{}", encoding="utf-8")
    return folder, config.load(written('[policy]\npath = "policies"\n'))


def test_what_is_no_policy_may_lie_beside_it(bundle):
    folder, settings = bundle
    (folder / ".#authz.rego").symlink_to("carol@host.1234:1700000000")  # Emacs, while it edits
    (folder / ".git").mkdir()
    for name in (".git/authz.rego", "authz_test.rego", "README.md"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    assert set(configured_engine(settings).policy_files) == {"authz.rego", "more/data.json"}


@pytest.mark.parametrize("name", [".", "more", "more/data.json", "authz.rego"])
def test_all_that_a_policy_is_read_from_is_its_owners_alone(bundle, name):
    folder, settings = bundle
    assert configured_engine(settings).name == "rego"
    (folder / name).chmod(0o777)
    with pytest.raises(ConfigError, match=re.escape(str(folder / name))) as caught:
        configured_engine(settings)
    assert caught.value.code == "config.exposed"


def test_a_part_of_a_policy_that_can_not_be_read_is_named(bundle):
    folder, settings = bundle
    (folder / "more.rego").symlink_to("gone")
    with pytest.raises(ConfigError, match=r"policy\.path: .*more\.rego can't be read \(No such"):
        configured_engine(settings)


def test_a_path_that_no_file_can_have_is_a_mistake(written):
    path = "long" * 100
    settings = config.load(written(f'[policy]\npath = "{path}"\n'))
    with pytest.raises(ConfigError, match="can't be read"):
        configured_engine(settings)
    with pytest.raises(ConfigError, match="can't be read"):
        Guard.ephemeral(policy=path)


def test_a_policy_with_a_mistake_is_a_policy_error(written, tmp_path):
    file = tmp_path / "authz.rego"
    settings = config.load(written('[policy]\npath = "authz.rego"\n'))
    file.write_text("package agent.authz\nallow := \n", encoding="utf-8")
    with pytest.raises(PolicyError, match=r"authz\.rego"):
        configured_engine(settings)


@pytest.mark.parametrize(
    ("state", "anchor", "inside"),
    [
        (".agentguard", ".agentguard", True),
        (".agentguard", ".agentguard/anchor", True),
        (".agentguard", "elsewhere/../.agentguard/anchor", True),
        (".agentguard", "link/anchor", True),
        (".agentguard", ".agentguard-anchor", False),
        (".agentguard/state", ".agentguard/anchor", False),
        (".agentguard", "", False),
    ],
)
def test_an_anchor_inside_the_state_is_refused(written, tmp_path, state, anchor, inside):
    (tmp_path / ".agentguard").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / ".agentguard")
    policy = '[policy]\npath = "authz.rego"\n'
    path = written(f'state = "{state}"\nanchor = "{anchor}"\n{policy}')
    if not inside:
        assert config.load(path).state == tmp_path / state
        return
    with pytest.raises(ConfigError, match="is inside the state") as caught:
        config.load(path)
    assert caught.value.code == "anchor.inside"
    assert str(caught.value).startswith(f"{path}: anchor: ")


# --- anything at all ------------------------------------------------------------------------------

names = st.one_of(
    st.sampled_from(["trust_domain", "state", "anchor", "keys", "policy", "agents", "tools"]),
    st.sampled_from(["path", "engine", "authority", "max_scope", "requires", "attributes", "a"]),
    st.text(max_size=4),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=12,
)


@given(tables=st.dictionaries(names, values, max_size=4))
def test_any_tables_are_a_configuration_or_a_mistake(tables):
    try:
        settings = config.parse(tables, source="agentguard.toml", base=Path())
    except ConfigError as error:
        mistake = str(error)
        assert mistake.startswith("agentguard.toml: ")
    else:
        assert settings.encoded


@given(text=st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1"))))
def test_any_text_is_a_configuration_or_a_mistake(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        config.load(path)
