"""A program with PyJWT, httpx and cryptography, and nothing of agentguard, uses the token service.

The program runs in a process of its own. It makes a key, registers an instance, exchanges a token
of a user, and verifies the access token as a receiver does (RFC 8414, RFC 8693, RFC 9449).
"""

from __future__ import annotations

import json
import subprocess
import sys

from token_service import PAYMENTS

PROGRAM = """
import base64, hashlib, json, sys, time, uuid
import httpx, jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

base, workload, user, audience = sys.argv[1:]
TYPES = "urn:ietf:params:oauth:token-type:"
http = httpx.Client(trust_env=False)
metadata = http.get(f"{base}/.well-known/oauth-authorization-server").json()
key = Ed25519PrivateKey.generate()
jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
jwk = {name: jwk[name] for name in ("kty", "crv", "x")}


def digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def proof(url, token=None):
    claims = {"jti": str(uuid.uuid4()), "htm": "POST", "htu": url, "iat": int(time.time())}
    claims |= {"ath": digest(token)} if token else {}
    return jwt.encode(claims, key, "EdDSA", {"typ": "dpop+jwt", "jwk": jwk})


url = metadata["urn:agentguard:identities_endpoint"]
body = {"agent": "clerk", "jwk": jwk}
for bearer, status in ((user, 401), (workload, 201)):
    headers = {"Authorization": f"Bearer {bearer}", "DPoP": proof(url, bearer)}
    answer = http.post(url, json=body, headers=headers)
    assert answer.status_code == status, answer.text
credential = answer.json()["credential"]

url = metadata["token_endpoint"]
form = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token": user,
    "subject_token_type": f"{TYPES}access_token",
    "audience": audience,
    "scope": "read",
}
headers = {"Workload-Identity-Token": credential, "DPoP": proof(url)}
answer = http.post(url, data=form, headers=headers)
assert answer.status_code == 200, answer.text
token = answer.json()["access_token"]
assert http.post(url, data=form, headers=headers).status_code == 400  # the proof was used

public = jwt.PyJWKClient(metadata["jwks_uri"]).get_signing_key_from_jwt(token)
given = {"algorithms": ["EdDSA"], "audience": audience, "issuer": metadata["issuer"]}
claims = jwt.decode(token, public, **given)
thumbprint = digest(json.dumps(jwk, sort_keys=True, separators=(",", ":")))
assert claims["cnf"]["jkt"] == thumbprint, claims
for wrong in (given | {"audience": "https://evil.example"}, given | {"issuer": f"{base}/"}):
    try:
        jwt.decode(token, public, **wrong)
    except jwt.InvalidTokenError:
        continue
    raise AssertionError(wrong)
assert not [name for name in sys.modules if name.partition(".")[0] == "agentguard"]
print(json.dumps(claims))
"""


def test_a_program_with_nothing_of_agentguard_gets_a_token_and_verifies_it(service):
    given = (service.url, service.workload(), service.provider.token(), PAYMENTS)
    ran = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, *given], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["sub"], said["aud"], said["scope"]) == ("user:alice", [PAYMENTS], "read")
