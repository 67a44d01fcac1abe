"""The page on the token service: its tables have each endpoint and each refusal of the code."""

from __future__ import annotations

import re
from pathlib import Path

from agentguard.service import application
from agentguard.service.application import ROUTES

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "token-service.md"
CODE = Path(application.__file__).parent
OF_THE_ROUTES = {("invalid_request", "404"), ("invalid_request", "405")}


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this title."""
    lines = iter(PAGE.read_text("utf-8").splitlines())
    assert any(line.startswith(f"| {title} |") for line in lines)
    next(lines)
    table: list[list[str]] = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def refusals() -> set[tuple[str, str]]:
    """Return the error and the status of each refusal that the code has."""
    source = "".join(path.read_text("utf-8") for path in CODE.glob("*.py"))
    found = re.findall(r'RefusedError\((\d+), "(\w+)"', source)
    forms = re.findall(r"invalid_request\([^\n]*, (\d{3})\)", source)
    forms.append("400")
    return {
        *((error, status) for status, error in found),
        *(("invalid_request", status) for status in forms),
        *OF_THE_ROUTES,
    }


def test_the_table_of_endpoints_has_each_one_and_no_other():
    listed: list[str] = []
    for cells in rows("endpoint"):
        method = cells[0].split()[0].strip("`")
        listed += [f"{method} {path}" for path in re.findall(r"(/[\w./-]+)`", cells[0])]
    assert sorted(listed) == sorted(f"{place.method} {place.path}" for place in ROUTES)


def test_the_table_of_errors_has_each_refusal_and_no_other():
    listed = {
        (error, status)
        for cells in rows("`error`")
        for error in re.findall(r"`(\w+)`", cells[0])
        for status in re.findall(r"\d{3}", cells[1])
    }
    found = refusals()
    assert ("unsupported_grant_type", "400") in found
    assert listed == found
