"""What everybody may read: the metadata (RFC 8414), the issuer's keys, and the state of health."""

from __future__ import annotations

from typing import Final

from agentguard.delegation.access_token import MAX_LIFETIME
from agentguard.identity.trust import TrustedKey, seconds
from agentguard.service.answers import Answer, public, success, unavailable
from agentguard.service.messages import GRANT, JWT_BEARER
from agentguard.service.parts import ServiceParts
from agentguard.service.reading import Request

_INSTANCE: Final = "urn:agentguard:workload-identity-token"
_ID_JAG: Final = "urn:ietf:params:oauth:grant-profile:id-jag"


def metadata(parts: ServiceParts, _request: Request) -> Answer:
    """Return the metadata of the service as an authorization server (RFC 8414, 2).

    ``token_endpoint_auth_methods_supported`` has the one method by which an instance shows its
    credential; the name is agentguard's own (ADR 0039). The grant of an assertion is named where an
    issuer may send ID-JAGs (draft-ietf-oauth-identity-assertion-authz-grant-04).
    """
    takes = parts.id_jags.are_taken
    return public(
        {
            "issuer": parts.config.issuer,
            "token_endpoint": parts.url("/token"),
            "jwks_uri": parts.url("/jwks.json"),
            "introspection_endpoint": parts.url("/introspect"),
            "revocation_endpoint": parts.url("/revoke"),
            "service_documentation": parts.url("/openapi.json"),
            "grant_types_supported": [GRANT, JWT_BEARER] if takes else [GRANT],
            **({"authorization_grant_profiles_supported": [_ID_JAG]} if takes else {}),
            "response_types_supported": [],
            "token_endpoint_auth_methods_supported": [_INSTANCE],
            "revocation_endpoint_auth_methods_supported": [_INSTANCE],
            "introspection_endpoint_auth_methods_supported": ["urn:agentguard:workload-token"],
            "dpop_signing_alg_values_supported": ["EdDSA", "Ed25519"],
            "urn:agentguard:identities_endpoint": parts.url("/identities"),
            "urn:agentguard:trust_domain": parts.settings.trust_domain,
        }
    )


def keys(parts: ServiceParts, _request: Request) -> Answer:
    """Return the issuer's keys under which a token may be valid now, as a key set (RFC 7517, 5).

    A key that was rotated out counts until its last token has ended.
    """
    at = seconds(parts.now())
    return public(
        {
            "keys": [
                {
                    **trusted.key.jwk(),
                    "kid": trusted.key.thumbprint,
                    "alg": "EdDSA",
                    "use": "sig",
                }
                for trusted in parts.trust.keys_for("issuer")
                if _counts(trusted, at)
            ]
        }
    )


def _counts(trusted: TrustedKey, at: int) -> bool:
    """Whether a token that the key has signed may be valid at ``at``."""
    if trusted.compromised_since is not None or at < trusted.not_before:
        return False
    return trusted.not_after is None or at < trusted.not_after + MAX_LIFETIME


def health(parts: ServiceParts, _request: Request) -> Answer:
    """Return that the service answers; raises ``RefusedError`` where the log can't be written.

    Without the log, there is neither a token nor a decision.
    """
    failure = parts.guard.runtime.log_failure()
    if failure is not None:
        raise unavailable(f"the log can't be written [{failure.code}]")
    return success({"status": "ok"})
