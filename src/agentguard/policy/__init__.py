"""The policy engines: each implements ``engine.Engine``.

``rego`` and ``cedar`` evaluate policies in this process, ``opa`` calls an OPA server, ``function``
calls a Python function. An engine returns the policy's document or raises ``PolicyError``;
``document.py`` turns the document into a decision.
"""

from __future__ import annotations
