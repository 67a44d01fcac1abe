"""Delegation: who lent an agent its authority, signed hop by hop (docs/delegation.md).

``grant.py`` is one hop, ``link.py`` what holds between two, ``chain.py`` the hops that lead from a
principal to an agent, ``token.py`` the RFC 8693 access token that is minted from a chain. These are
pure. ``handle.py`` is a delegation as an application holds it, ``context.py`` what is in force
where code runs, ``blocks.py`` and ``generators.py`` what a generator changes of that. What was
revoked stands in ``storage/revocations.py``.
"""
