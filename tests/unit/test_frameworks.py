"""An adapter runs on those versions of its framework that its own distribution asks for.

Distributions are made up here as installers leave them: folders with metadata, on the path.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from agentguard import ConfigError
from agentguard.adapters import require_supported


def installed(folder: Path, name: str, version: str, *needed: str) -> None:
    made = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    made.mkdir(exist_ok=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {one}" for one in needed]
    (made / "METADATA").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.fixture
def site(tmp_path, monkeypatch):
    installed(tmp_path, "an-adapter", "1", "frame>=1.15.30,<1.16", "frame-core>=2", "else>=7")
    installed(tmp_path, "frame-core", "2.1")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("version", ["1.15.30", "1.15.31", "1.15.99", "1.15.31.dev1"])
def test_what_the_adapter_was_made_for_is_taken(site, version):
    installed(site, "frame", version)
    require_supported("an-adapter", "frame", "frame-core")


@pytest.mark.parametrize("version", ["1.15.29", "1.15.10", "1.16.0", "1.16.0rc1", "2.0", "0.1"])
def test_another_version_is_named_with_what_is_needed_and_how_to_get_it(site, version):
    installed(site, "frame", version)
    with pytest.raises(ConfigError) as refused:
        require_supported("an-adapter", "frame-core", "frame")
    assert refused.value.code == "framework.unsupported"
    assert str(refused.value) == (
        f"an-adapter needs frame<1.16,>=1.15.30, and frame {version} is installed: install a "
        "version that it runs on (pip install 'frame<1.16,>=1.15.30')"
    )


def test_a_framework_that_is_not_there_is_named(site):
    with pytest.raises(ConfigError, match=r"needs frame<1\.16,>=1\.15\.30, and no frame is inst"):
        require_supported("an-adapter", "frame")


@pytest.mark.parametrize("adapter", ["no-adapter", "frame-core"])
def test_an_adapter_that_does_not_say_what_it_needs_is_refused(site, adapter):
    with pytest.raises(ConfigError, match="is not installed as a distribution") as refused:
        require_supported(adapter, "frame")
    assert refused.value.code == "framework.unsupported"
    assert f"from your clone: pip install . ./integrations/{adapter}" in str(refused.value)
    assert f"pip install {adapter}" not in str(refused.value)
