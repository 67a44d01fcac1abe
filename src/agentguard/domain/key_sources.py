"""``KeySources``: where the keys of each issuer come from, for all who verify tokens of the issuer.

``issuer_keys.py`` opens a source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.domain.config import Config

if TYPE_CHECKING:
    from agentguard.issuers.keys import KeySource


class KeySources:
    """The sources of a configuration, each opened once, at its first use; threads may share them.

    Tokens of users, of programs and of log-outs may come from one issuer. With a source of its own
    for each kind, an issuer would be asked for its keys as many times, and a key that the issuer
    has withdrawn would count longer for some.
    """

    def __init__(self, settings: Config) -> None:
        self._settings = settings
        self._opened: dict[str, KeySource] = {}

    def of(self, name: str) -> KeySource:
        """Return the source of the keys of ``[issuers.NAME]``.

        Raises ``ConfigError`` as ``issuer_keys.open_source`` does.
        """
        if name not in self._opened:
            # few configurations name an issuer
            from agentguard.domain.issuer_keys import open_source  # noqa: PLC0415

            opened = open_source(self._settings.issuers[name], self._settings.source)
            return self._opened.setdefault(name, opened)
        return self._opened[name]

    def after(self, settings: Config) -> KeySources:
        """Return the sources of a later configuration: these, if the issuers are the same."""
        return self if settings.issuers == self._settings.issuers else KeySources(settings)
