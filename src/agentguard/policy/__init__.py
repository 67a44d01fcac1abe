"""The policy engines: each implements ``engine.Engine``.

``rego`` and ``cedar`` evaluate policies in this process, ``opa`` asks an OPA server, ``function``
calls a Python function. An engine answers with the policy's document or raises ``PolicyError``;
what the document means stands in ``document.py``.
"""

from __future__ import annotations
