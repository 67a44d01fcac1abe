"""The demo's forge: a real, bare git repository with pull requests, CI and a secret.

The forge checks no caller, except for the token of a merge into main: the guard does, in front of
the tools of ``tools.py``. ``facts`` is the look-up that ``agentguard.toml`` names, for facts that
the policy must not take from a model.
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
CI_SECONDS: Final = 600
_GIT_SECONDS: Final = 600
# No dot at a component's beginning: neither "..", nor .git, nor .gitattributes. No capitals in a
# branch: where files have no case, "Main" would be another name of main.
_PATH: Final = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)*", re.ASCII)
_BRANCH: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*")
_COMMITTER: Final = ("payments-api code agent", "code-agent@demo.example")


class ForgeError(AgentguardError):
    """The forge refuses or fails an operation; the message is for the caller."""

    default_code = "forge.refused"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull request: ``number`` counts from 1; ``merge_commit`` is None until the merge."""

    number: int
    title: str
    branch: str
    into: str
    body: str
    merge_commit: str | None = None


class Forge:
    """One repository in a directory: ``<name>.git``, and ``vault/`` beside it."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name: Final = name
        self.path: Final = directory / f"{name}.git"
        self._vault = directory / "vault"

    @classmethod
    def create(cls, directory: Path) -> Self:
        """Create the repository, its first commit on main and its secret.

        Raises ``ConfigError`` (``git.missing``) where there is no git.
        """
        forge = cls(directory, seed.REPOSITORY)
        git("init", "--quiet", "--bare", "--template=", str(forge.path))
        for key, value in (
            ("user.name", _COMMITTER[0]),
            ("user.email", _COMMITTER[1]),
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
        commit = self._tip(_check_branch(branch))
        if commit is None:
            raise ForgeError(f"there is no branch {branch!r}")
        return self._git("cat-file", "blob", f"{commit}:{_check_path(path)}")

    def commit(self, branch: str, path: str, content: str, message: str) -> str:
        """Commit one file on ``branch``, which begins at main; return the commit's id."""
        parent = self._tip(_check_branch(branch)) or self._tip(MAIN)
        return self._commit(branch, {_check_path(path): content}, message, parent=parent)

    def open_pull_request(self, title: str, branch: str, into: str, body: str) -> PullRequest:
        """Record a pull request, and keep its head as ``refs/pull/<number>/head``."""
        head = self._tip(_check_branch(branch))
        if head is None or self._tip(_check_branch(into)) is None:
            raise ForgeError(f"there is no branch {branch if head is None else into!r}")
        number = len(self.pull_requests()) + 1
        pull = PullRequest(number, title, branch, into, body)
        self._git("update-ref", f"refs/pull/{number}/head", head, "")
        self._record(pull)
        return pull

    def pull_requests(self) -> list[PullRequest]:
        """Return the pull requests on record."""
        records = sorted(self._records.glob("*.json"), key=lambda record: int(record.stem))
        return [PullRequest(**json.loads(record.read_text("utf-8"))) for record in records]

    def merge(self, number: int, into: str, token: str = "") -> str:
        """Merge a pull request into a branch; return the merge commit's id.

        A merge into main goes live, and needs the deployment secret as its ``token``.
        """
        if into == MAIN and not secrets.compare_digest(token, self.secret(seed.SECRET)):
            raise ForgeError(f"a merge into {MAIN} needs the deployment token")
        matches = [pull for pull in self.pull_requests() if pull.number == number]
        if not matches:
            raise ForgeError(f"there is no pull request {number}")
        (pull,) = matches
        with self._worktree(into) as (tree, before):
            subject = f"Merge pull request {number}: {pull.title}"
            head = f"refs/pull/{number}/head"
            git("-C", str(tree), "merge", "--quiet", "--no-ff", "-m", subject, head)
            commit = git("-C", str(tree), "rev-parse", "HEAD").strip()
        self._git("update-ref", f"refs/heads/{into}", commit, before)
        self._record(PullRequest(number, pull.title, pull.branch, into, pull.body, commit))
        return commit

    def run_tests(self, branch: str) -> tuple[bool, str]:
        """Run the package's tests on a branch; return whether they passed, and their output.

        They run in a process of their own, with an empty environment and a time limit. That
        keeps accidents away, and is no sandbox.
        """
        command = [sys.executable, "-I", "-B", "-m", "unittest", "discover", "-s", "tests"]
        with self._worktree(branch) as (tree, _commit):
            try:
                result = subprocess.run(  # noqa: S603  CI runs what is on the branch: its purpose
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
        output = (result.stdout + result.stderr).decode(errors="replace")
        return result.returncode == 0, output.strip()

    def secret(self, name: str) -> str:
        """Return a secret of the vault; raises ``ForgeError``."""
        if name not in (file.name for file in self._vault.iterdir()):
            raise ForgeError(f"there is no secret {name!r}")
        return (self._vault / name).read_text("ascii").strip()

    def history(self) -> str:
        """Return ``git log`` of all branches, as a graph."""
        options = ("--graph", "--decorate", "--format=%h%d %s", "--branches")
        return self._git("log", *options).rstrip()

    @property
    def _records(self) -> Path:
        return self.path / "pull-requests"

    def _record(self, pull: PullRequest) -> None:
        self._records.mkdir(exist_ok=True)
        record = self._records / f"{pull.number}.json"
        record.write_text(json.dumps(asdict(pull), indent=2) + "\n", "utf-8")

    def _git(self, *arguments: str, stdin: bytes = b"") -> str:
        return git("--git-dir", str(self.path), *arguments, stdin=stdin)

    def _tip(self, branch: str) -> str | None:
        # git's pattern also matches what lies below the name: only the whole name counts
        lines = self._git("for-each-ref", "--format=%(refname) %(objectname)", "refs/heads/")
        return dict(line.split(" ") for line in lines.rstrip("\n").split("\n")).get(
            f"refs/heads/{branch}"
        )

    def _commit(
        self, branch: str, files: Mapping[str, str], message: str, *, parent: str | None
    ) -> str:
        """Commit without a working tree: no name of a committed file can have an effect on git."""
        stream = [b"commit refs/heads/%b\n" % branch.encode()]
        stream += [b"committer %b <%b> now\n" % (_COMMITTER[0].encode(), _COMMITTER[1].encode())]
        stream += [_data(message), b"from %b\n" % parent.encode() if parent else b""]
        stream += [b"M 100644 inline %b\n%b" % (p.encode(), _data(t)) for p, t in files.items()]
        self._git("fast-import", "--quiet", "--date-format=now", stdin=b"".join(stream))
        return self._tip(branch) or ""

    @contextmanager
    def _worktree(self, branch: str) -> Iterator[tuple[Path, str]]:
        """Check out a branch's tip into a temporary folder; yield the folder and the commit."""
        commit = self._tip(_check_branch(branch))
        if commit is None:
            raise ForgeError(f"there is no branch {branch!r}")
        with tempfile.TemporaryDirectory(prefix="agentguard-demo-ci-") as folder:
            tree = Path(folder) / self.name
            self._git("worktree", "add", "--quiet", "--detach", str(tree), commit)
            try:
                yield tree, commit
            finally:
                self._git("worktree", "remove", "--force", str(tree))


CURRENT_FORGE: Final[ContextVar[Forge]] = ContextVar(
    "agentguard_demo_forge",
    default=Forge(Path(), seed.REPOSITORY),  # noqa: B039  a forge holds no more than its path
)
"""The forge of this run: ``facts`` reads it. A guard server runs in the folder of its forge."""


def facts(arguments: Mapping[str, Any]) -> dict[str, object]:
    """Return the facts about a call's repository; raise ``ForgeError``, which denies the call."""
    forge = CURRENT_FORGE.get()
    if arguments.get("repo") != forge.name:
        raise ForgeError(f"there is no repository {arguments.get('repo')!r}")
    return {"repo": {"visibility": forge.visibility}}


def git(*arguments: str, stdin: bytes = b"") -> str:
    """Run git without the user's configuration; return its output.

    Raises ``ForgeError`` with what git says, and ``ConfigError`` (``git.missing``).
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    isolation = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    try:
        result = subprocess.run(  # noqa: S603  a list, no shell; the arguments are checked above
            ["git", *arguments],  # noqa: S607  the git that the user would run
            env={**environment, **isolation, "GIT_TERMINAL_PROMPT": "0"},
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
    if result.returncode != 0:
        raise ForgeError(result.stderr.decode(errors="replace").strip() or "git failed")
    return result.stdout.decode(errors="replace")


def _check_branch(name: str) -> str:
    if not _BRANCH.fullmatch(name) or ".." in name:
        raise ForgeError(f"{name!r} is no branch: lower-case letters, digits, '-', '_', '.', '/'")
    return name


def _check_path(path: str) -> str:
    if not _PATH.fullmatch(path):
        raise ForgeError(f"{path!r} is no path in the repository, as in 'payments/invoice.py'")
    return path


def _data(text: str) -> bytes:
    encoded = text.encode()
    return b"data %d\n%b\n" % (len(encoded), encoded)
