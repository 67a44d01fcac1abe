"""What signs and is signed: canonical JSON, keys, JWS and DSSE."""
