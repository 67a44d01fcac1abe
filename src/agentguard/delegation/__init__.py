"""Delegation: who lent an agent its authority, signed hop by hop (docs/delegation.md).

``grant.py`` is one hop, ``link.py`` what holds between two, ``chain.py`` the hops that lead from a
principal to an agent, ``token.py`` the RFC 8693 access token that is minted from a chain. All of it
is pure: what is in force where stands in ``ambient.py``, what was revoked in ``storage/``.
"""
