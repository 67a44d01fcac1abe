"""Mistakes: a package in two files, a package below the queried one, a rule at a package's path.

The engine evaluates the queried package, and the packages below the queried one, file by file. In
each file but the first the engine misses rules that are defined further down, and a denial by such
a rule does not fire. The engine evaluates one body of a function with the parameters of a body in
another file. Where a rule and a package have the same path the engine merges the two, and Rego does
not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from agentguard.policy.rego.syntax_tree import Names, Reader


def mistakes(readers: list[Reader], query: Names) -> Iterator[str]:
    """Yield a sentence for each file and rule that the engine would miss or mix up.

    ``query`` is the path of the queried package.
    """
    files: dict[Names, list[Reader]] = defaultdict(list)
    for reader in readers:
        files[reader.package].append(reader)
    for package, (first, *others) in files.items():
        name = ".".join(package)
        for reader in others:
            yield (
                f"{reader.package_at}: the package {name} is also declared at {first.package_at}, "
                "and the engine misses rules of one file that the other reads; merge the files, or "
                "give one of them a package of its own, and read its rules by their path "
                "(data.lib.closed)"
            )
        if package != query and package[: len(query)] == query:
            yield (
                f"{first.package_at}: {name} is below the queried package, and the engine "
                f"misses rules of {name}; give the package another path, such as "
                f"data.{package[-1]}"
            )
    yield from _rules_in_place_of_packages(readers)


def _rules_in_place_of_packages(readers: list[Reader]) -> Iterator[str]:
    packages = dict.fromkeys(reader.package for reader in readers)
    below: dict[Names, list[Names]] = defaultdict(list)
    for package in packages:
        for length in range(len(package) + 1):
            below[package[:length]].append(package)
    for rule in (rule for reader in readers for rule in reader.module.rules):
        above = (rule.path[:length] for length in range(len(rule.package) + 1, len(rule.path)))
        for package in (*filter(packages.__contains__, above), *below.get(rule.path, ())):
            yield (
                f"{rule.at}: the rule {'.'.join(rule.path)} is on the path of the package "
                f"{'.'.join(package)}, and the engine merges the two; rename one of them"
            )
