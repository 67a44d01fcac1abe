"""Storage that the kernel fails: EIO on fsync, ENOSPC, short writes, a full file system.

A filter on one thread's system calls makes the kernel fail a call; the full file system is a real
one. The tool never runs without a durable authorization, and the log recovers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

KERNEL = """
    import ctypes, errno, logging, os, platform, signal, struct, sys, threading
    from datetime import UTC, datetime
    from pathlib import Path
    from agentguard import AgentguardError, Decision, Denied, Guard
    from agentguard.guard.embedded import Embedded
    from agentguard.domain import config
    from agentguard.domain import domain
    from agentguard.policy.function import FunctionEngine
    from agentguard.storage import flusher

    logging.disable()  # a write to standard error that makes no progress is begun again for ever
    # the flusher's thread, where the kernel works, would write for the thread where it fails
    flusher.start = lambda log, wake: None
    folder = Path(sys.argv[1])
    tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
              "anchor": str(folder / "anchor"),
              "policy": {"engine": "function", "path": "unused:unused"},
              "agents": {"reader": {"authority": "own"}}}
    settings = config.parse(tables, source="agentguard.toml", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")

    def opened():
        return Guard(Embedded(settings, FunctionEngine(lambda _: Decision.allow()), home))

    NUMBERS = {"x86_64": {"write": 1, "pwrite64": 18, "fsync": 74, "fdatasync": 75},
               "aarch64": {"write": 64, "pwrite64": 68, "fsync": 82, "fdatasync": 83}}
    libc = ctypes.CDLL(None, use_errno=True)

    def let_fail(calls, error, file=None):
        \"\"\"Have the kernel answer this thread's calls (to one file) with an error (seccomp).

        With the error 0 it does nothing and returns 0: a write of no bytes.
        \"\"\"
        numbers = NUMBERS.get(platform.machine(), {})
        for call in calls:
            if call not in numbers:
                sys.exit("no such system call known here: " + platform.machine())
            code = [(0x20, 0, 0, 0)]  # the number of the call
            if file is None:
                code += [(0x15, 0, 1, numbers[call])]
            else:
                code += [(0x15, 0, 3, numbers[call]), (0x20, 0, 0, 16), (0x15, 0, 1, file)]
            code += [(0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)]
            program = b"".join(struct.pack("HBBI", *each) for each in code)
            buffer = ctypes.create_string_buffer(program, len(program))
            header = ctypes.create_string_buffer(
                struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)))
            if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
                sys.exit("no seccomp here: " + os.strerror(ctypes.get_errno()))

    def in_a_failing_thread(work, *failure):
        \"\"\"Run ``work`` where the kernel fails; all other threads are well.\"\"\"
        results = []

        def run():
            try:
                let_fail(*failure)
                results.append(work())
            except BaseException as error:
                results.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        return result

    def code_of(work):
        try:
            work()
        except AgentguardError as error:
            return error.code
        return "none"

    effects = []
"""

FAILURES = {
    "EIO on fsync": ("('fsync', 'fdatasync'), errno.EIO", "storage.failed"),
    "ENOSPC on fsync": ("('fsync', 'fdatasync'), errno.ENOSPC", "storage.failed"),
    "EIO on write": ("('write', 'pwrite64'), errno.EIO", "storage.failed"),
    "ENOSPC on write": ("('write', 'pwrite64'), errno.ENOSPC", "storage.full"),
    "EDQUOT on write": ("('write', 'pwrite64'), errno.EDQUOT", "storage.failed"),
    "short writes": ("('write', 'pwrite64'), 0", "storage.full"),
}
FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
SOME = [*FAILURES] if FULL else ["EIO on fsync", "ENOSPC on write"]


def in_the_kernel(place, text, *, end=0):
    """Run a program whose system calls fail; return the words that it prints."""
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(KERNEL) + textwrap.dedent(text),
            str(place.config.base),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if result.returncode == 1 and result.stderr.startswith("no s"):
        pytest.skip(result.stderr.strip())
    assert result.returncode == end, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("failure", FAILURES)
def test_where_the_kernel_fails_a_call_is_denied_and_the_log_recovers(place, failure):
    arguments, code = FAILURES[failure]
    words = in_the_kernel(
        place,
        f"""
        guard = opened()
        agent = guard.new_agent("reader")
        tool = guard.tool(effects.append, name="note")
        agent.call(tool, "before")
        guard._parts.runtime._ports.log.flush()

        def calls():
            return [code_of(lambda: agent.call(tool, "denied")) for _ in range(3)]

        print(*in_a_failing_thread(calls, {arguments}))
        agent.call(tool, "after")
        guard.close()
        print(*effects)
        """,
    )
    assert words == [code] * 3 + ["before", "after"]
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    assert report.in_doubt == ()
    assert place.seen().statuses == ["ok", "ok"]
    assert place.seen().codes == [("allow", "")] * 2


@pytest.mark.parametrize("failure", SOME)
def test_where_the_kernel_fails_and_the_process_dies_the_log_is_in_order(place, failure):
    """What was not synced may be in the file all the same, with a head to match."""
    arguments, _code = FAILURES[failure]
    words = in_the_kernel(
        place,
        f"""
        guard = opened()
        agent = guard.new_agent("reader")
        tool = guard.tool(effects.append, name="note")
        agent.call(tool, "before")
        guard._parts.runtime._ports.log.flush()
        print(in_a_failing_thread(lambda: code_of(lambda: agent.call(tool, "denied")), {arguments}))
        print(*effects, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        end=-signal.SIGKILL,
    )
    assert words[-1] == "before"
    for _ in range(2):
        report = place.examine()
        assert report.problems == ()
        assert len(report.in_doubt) == len(place.seen().authorizations) - 1
        place.open().close()
    assert place.examine().anchored


@pytest.mark.parametrize("failure", SOME)
def test_a_log_that_can_not_be_opened_for_the_kernels_sake_is_opened_later(place, failure):
    arguments, _code = FAILURES[failure]
    words = in_the_kernel(
        place,
        f"""
        print(in_a_failing_thread(lambda: code_of(opened), {arguments}))
        guard = opened()
        guard.new_agent("reader").call(guard.tool(effects.append, name="note"), "after")
        guard.close()
        print(*effects)
        """,
    )
    assert words[0].startswith("storage.")
    assert words[1:] == ["after"]
    report = place.examine()
    assert report.problems == ()
    assert report.anchored


@pytest.mark.parametrize("error", ["errno.EIO", "errno.ENOSPC", "errno.EROFS"])
def test_an_anchor_that_the_kernel_does_not_write_denies_before_a_second_batch(place, error):
    words = in_the_kernel(
        place,
        f"""
        guard = opened()
        agent = guard.new_agent("reader")
        tool = guard.tool(effects.append, name="note")
        agent.call(tool, "before")
        guard._parts.runtime._ports.log.flush()
        pwrite, number = os.pwrite, 777  # of the anchor alone: SQLite calls the kernel by itself

        def write_by_number(file, data, offset):
            os.dup2(file, number)
            try:
                return pwrite(number, data, offset)
            finally:
                os.close(number)

        os.pwrite = write_by_number

        def calls():
            return [code_of(lambda: agent.call(tool, "meanwhile")) for _ in range(3)]

        print(*in_a_failing_thread(calls, ("pwrite64",), {error}, number))
        agent.call(tool, "after")
        guard.close()
        print(*effects)
        """,
    )
    # the first rides on: its commit has happened when the anchor fails
    assert words[:3] == ["none", "anchor.unwritable", "anchor.unwritable"]
    assert words[3:] == ["before", "meanwhile", "after"]
    report = place.examine()
    assert report.problems == ()
    assert report.anchored
    assert report.in_doubt == ()


FULL_DISK = """
    import shutil
    from agentguard.domain.verify import examine
    from agentguard.store import log_probe
    from agentguard.store.reader import StoredLog

    guard = opened()
    agent = guard.new_agent("reader")
    tool = guard.tool(effects.append, name="note")
    agent.call(tool, "before")
    guard._parts.runtime._ports.log.flush()  # the first call below writes its own entry alone
    ballast = folder / "state" / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
    os.truncate(ballast, ballast.stat().st_size - 131072)
    codes = {code_of(lambda: agent.call(tool, "x" * 3000)) for _ in range(60)}
    written = len(effects)
    log_probe._FAILS_FOR = -1.0  # each probe attempts a write of its own
    probed = [getattr(guard._parts.runtime.log_failure(), "code", "none")]
    ballast.unlink()
    probed.append(getattr(guard._parts.runtime.log_failure(), "code", "none"))
    agent.call(tool, "after")
    guard.close()
    reader = StoredLog.of(folder / "state")
    report = examine(reader, home.trust, anchor=settings.anchor)
    print(*sorted(codes), 0 < written < 60, len(effects) - written, *probed)
    print(report.ok, report.anchored, len(report.in_doubt))
"""


def test_a_file_system_that_is_full_denies_and_nothing_is_lost(place):
    """A real one, of two megabytes, in a mount name space of its own."""
    program = textwrap.dedent(KERNEL) + textwrap.dedent(FULL_DISK)
    mount = 'mount -t tmpfs -o size=2m none "$2/state" && cp -a "$2/kept/." "$2/state"'
    script = f'{mount} || exit 77; exec "$0" -c "$1" "$2"'
    shutil.copytree(place.config.state, place.config.base / "kept")
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    result = subprocess.run(
        [*unshare, script, sys.executable, program, str(place.config.base)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip(f"no file system can be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    words = result.stdout.split()
    assert words[:4] == ["none", "storage.full", "True", "1"]
    assert words[4:] == ["storage.full", "none", "True", "True", "0"]
