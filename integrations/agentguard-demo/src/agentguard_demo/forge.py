"""The demo's forge: a real, bare git repository with pull requests, CI and a secret.

Everything here acts, and nothing here asks who is acting: that is the guard's affair, in front of
the tools of ``tools.py``. ``facts`` is the look-up that ``agentguard.toml`` names, for what the
policy must not learn from a model.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from agentguard import AgentguardError, ConfigError
from agentguard_demo import seed

MAIN: Final = "main"
CI_SECONDS: Final = 60
_GIT_SECONDS: Final = 60
# No dot at a component's beginning: neither "..", nor .git, nor .gitattributes. No capitals in a
# branch: where files have no case, "Main" would be another name of main.
_PATH: Final = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
_BRANCH: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*")
_WHO: Final = ("payments-api code agent", "code-agent@demo.example")


class ForgeError(AgentguardError):
    """The forge could not do what was asked; the message is for whoever asked."""

    default_code = "forge.refused"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull request: ``number`` counts from 1; ``merged`` is the merge commit or None."""

    number: int
    title: str
    branch: str
    into: str
    body: str
    merged: str | None = None


class Forge:
    """One repository in a directory: ``<name>.git``, and ``vault/`` beside it."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name: Final = name
        self.path: Final = directory / f"{name}.git"
        self._vault = directory / "vault"

    @classmethod
    def found(cls, directory: Path) -> Self:
        """Make the repository, its first commit on main and its secret.

        Raises ``ConfigError`` (``git.missing``) where there is no git.
        """
        forge = cls(directory, seed.REPOSITORY)
        git("init", "--quiet", "--bare", "--template=", str(forge.path))
        for key, value in (
            ("user.name", _WHO[0]),
            ("user.email", _WHO[1]),
            ("commit.gpgsign", "false"),
            ("forge.visibility", "internal"),
        ):
            forge._git("config", key, value)
        forge._git("symbolic-ref", "HEAD", f"refs/heads/{MAIN}")
        forge._commit(MAIN, seed.FILES, "payments-api, with its tests", parent=None)
        forge._vault.mkdir(mode=0o700)
        descriptor = os.open(forge._vault / seed.SECRET, os.O_CREAT | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"deploy-{secrets.token_hex(20)}\n")
        return forge

    @property
    def visibility(self) -> str:
        """``internal`` or ``public``, as the forge's owner has set it."""
        return self._git("config", "forge.visibility").strip()

    def read(self, path: str, branch: str) -> str:
        """Return a file's text; raises ``ForgeError``."""
        commit = self._tip(_branch(branch))
        if commit is None:
            raise ForgeError(f"there is no branch {branch!r}")
        return self._git("cat-file", "blob", f"{commit}:{_path(path)}")

    def commit(self, branch: str, path: str, content: str, message: str) -> str:
        """Commit one file on ``branch``, which begins at main; return the commit's id."""
        parent = self._tip(_branch(branch)) or self._tip(MAIN)
        return self._commit(branch, {_path(path): content}, message, parent=parent)

    def open_pull_request(self, title: str, branch: str, into: str, body: str) -> PullRequest:
        """Record a pull request, and keep its head as ``refs/pull/<number>/head``."""
        head = self._tip(_branch(branch))
        if head is None or self._tip(_branch(into)) is None:
            raise ForgeError(f"there is no branch {branch if head is None else into!r}")
        number = len(self.pull_requests()) + 1
        opened = PullRequest(number, title, branch, into, body)
        self._git("update-ref", f"refs/pull/{number}/head", head, "")
        self._keep(opened)
        return opened

    def pull_requests(self) -> list[PullRequest]:
        """Return the pull requests on record."""
        kept = sorted(self._records.glob("*.json"), key=lambda record: int(record.stem))
        return [PullRequest(**json.loads(record.read_text("utf-8"))) for record in kept]

    def merge(self, number: int, into: str) -> str:
        """Merge a pull request into a branch; return the merge commit's id."""
        found = [pull for pull in self.pull_requests() if pull.number == number]
        if not found:
            raise ForgeError(f"there is no pull request {number}")
        (pull,) = found
        with self._checked_out(into) as (tree, before):
            subject = f"Merge pull request {number}: {pull.title}"
            head = f"refs/pull/{number}/head"
            git("-C", str(tree), "merge", "--quiet", "--no-ff", "-m", subject, head)
            merged = git("-C", str(tree), "rev-parse", "HEAD").strip()
        self._git("update-ref", f"refs/heads/{into}", merged, before)
        self._keep(PullRequest(number, pull.title, pull.branch, into, pull.body, merged))
        return merged

    def run_tests(self, branch: str) -> tuple[bool, str]:
        """Run the package's tests on a branch; return whether they passed, and their output.

        They run in a process of their own, with an empty environment and a time limit. That
        keeps accidents away, and is no sandbox.
        """
        command = [sys.executable, "-I", "-B", "-m", "unittest", "discover", "-s", "tests"]
        with self._checked_out(branch) as (tree, _commit):
            try:
                ran = subprocess.run(  # noqa: S603  CI runs what is on the branch: its purpose
                    [*command, "-t", "."],
                    cwd=tree,
                    env={"HOME": str(tree), "PATH": os.defpath},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=CI_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False, f"the tests did not end within {CI_SECONDS} s"
        return ran.returncode == 0, (ran.stdout + ran.stderr).decode(errors="replace").strip()

    def secret(self, name: str) -> str:
        """Return a secret of the vault; raises ``ForgeError``."""
        if name not in (kept.name for kept in self._vault.iterdir()):
            raise ForgeError(f"there is no secret {name!r}")
        return (self._vault / name).read_text("ascii").strip()

    def history(self) -> str:
        """Return ``git log`` of all branches, as a graph."""
        options = ("--graph", "--decorate", "--format=%h%d %s", "--branches")
        return self._git("log", *options).rstrip()

    @property
    def _records(self) -> Path:
        return self.path / "pull-requests"

    def _keep(self, pull: PullRequest) -> None:
        self._records.mkdir(exist_ok=True)
        record = self._records / f"{pull.number}.json"
        record.write_text(json.dumps(asdict(pull), indent=2) + "\n", "utf-8")

    def _git(self, *arguments: str, stdin: bytes = b"") -> str:
        return git("--git-dir", str(self.path), *arguments, stdin=stdin)

    def _tip(self, branch: str) -> str | None:
        # git's pattern also matches what lies below the name: only the whole name counts
        listed = self._git("for-each-ref", "--format=%(refname) %(objectname)", "refs/heads/")
        return dict(line.split(" ") for line in listed.rstrip("\n").split("\n")).get(
            f"refs/heads/{branch}"
        )

    def _commit(
        self, branch: str, files: Mapping[str, str], message: str, *, parent: str | None
    ) -> str:
        """Commit past any working tree: what is committed can't steer git by its name."""
        stream = [b"commit refs/heads/%b\n" % branch.encode()]
        stream += [b"committer %b <%b> now\n" % (_WHO[0].encode(), _WHO[1].encode())]
        stream += [_data(message), b"from %b\n" % parent.encode() if parent else b""]
        stream += [b"M 100644 inline %b\n%b" % (p.encode(), _data(t)) for p, t in files.items()]
        self._git("fast-import", "--quiet", "--date-format=now", stdin=b"".join(stream))
        return self._tip(branch) or ""

    @contextmanager
    def _checked_out(self, branch: str) -> Iterator[tuple[Path, str]]:
        """Check a branch's tip out into a folder that is gone afterwards."""
        commit = self._tip(_branch(branch))
        if commit is None:
            raise ForgeError(f"there is no branch {branch!r}")
        with tempfile.TemporaryDirectory(prefix="agentguard-demo-ci-") as folder:
            tree = Path(folder) / self.name
            self._git("worktree", "add", "--quiet", "--detach", str(tree), commit)
            try:
                yield tree, commit
            finally:
                self._git("worktree", "remove", "--force", str(tree))


IN_USE: Final[ContextVar[Forge]] = ContextVar("agentguard_demo_forge")
"""The forge that the tools of this run act on; ``facts`` looks things up there."""


def facts(arguments: Mapping[str, Any]) -> dict[str, object]:
    """Tell the policy about the repository of a call; without one the call is denied."""
    forge = IN_USE.get()
    if arguments.get("repo") != forge.name:
        raise ForgeError(f"there is no repository {arguments.get('repo')!r}")
    return {"repo": {"visibility": forge.visibility}}


def git(*arguments: str, stdin: bytes = b"") -> str:
    """Run git, whatever the caller's own configuration says; return its output.

    Raises ``ForgeError`` with what git says, and ``ConfigError`` (``git.missing``).
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    try:
        ran = subprocess.run(  # noqa: S603  a list, no shell; the arguments are checked above
            ["git", *arguments],  # noqa: S607  the git that the user would run
            env={**kept, **alone, "GIT_TERMINAL_PROMPT": "0"},
            input=stdin,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        message = "the demo works on a real git repository, and there is no git: install it"
        raise ConfigError(message, code="git.missing") from error
    except subprocess.TimeoutExpired as error:
        raise ForgeError(f"git did not end within {_GIT_SECONDS} s") from error
    if ran.returncode != 0:
        raise ForgeError(ran.stderr.decode(errors="replace").strip() or "git failed")
    return ran.stdout.decode(errors="replace")


def _branch(name: str) -> str:
    if not _BRANCH.fullmatch(name) or ".." in name:
        raise ForgeError(f"{name!r} is no branch: lower-case letters, digits, '-', '_', '.', '/'")
    return name


def _path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise ForgeError(f"{path!r} is no path in the repository, as in 'payments/invoice.py'")
    return path


def _data(text: str) -> bytes:
    encoded = text.encode()
    return b"data %d\n%b\n" % (len(encoded), encoded)
