"""Delegation: a principal's authority, handed from hop to hop to an agent (delegation.md).

Pure: ``grant.py`` has one hop, ``attenuation.py`` the rules between two hops, ``chain.py`` the hops
from a principal to an agent, ``chain_issuance.py`` how hops are made, ``verification.py`` how
chains are verified, ``access_token.py`` the RFC 8693 access token. In a process: ``handle.py`` has
the ``Delegation`` of the public API, ``context.py`` the delegation in force where code runs,
``blocks.py`` and ``generators.py`` the rules for generators. What is revoked stands in the map of
the log (``audit/state.py``).
"""
