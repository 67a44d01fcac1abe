"""RFC 8785: the six documents of cyberphone/json-canonicalization."""

from __future__ import annotations

from pathlib import Path

from agentguard.signing import canonical


def test_every_input_has_its_published_canonical_form(vectors: Path) -> None:
    names = sorted(path.name for path in (vectors / "jcs" / "input").iterdir())

    assert len(names) == 6
    for name in names:
        given = (vectors / "jcs" / "input" / name).read_bytes()
        expected = (vectors / "jcs" / "output" / name).read_bytes()
        assert canonical.dumps(canonical.loads(given)) == expected, name


def test_a_canonical_form_is_its_own(vectors: Path) -> None:
    for path in (vectors / "jcs" / "output").iterdir():
        data = path.read_bytes()
        assert canonical.dumps(canonical.loads(data)) == data, path.name
