"""A certificate authority of one test, and the certificates of servers and clients."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LONG = 24 * 500
"""Hours for which an authority lasts that a test does not end."""


class Authority:
    """A certificate authority of one test."""

    def __init__(
        self, folder: Path, name: str, *, above: Authority | None = None, hours: float = LONG
    ) -> None:
        """Make an authority that ``above`` vouches for, or that vouches for itself."""
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._file = folder / f"{name}.pem"
        self._above = above
        signs = above or self
        certificate = signs._signed(self._name, self._key.public_key(), ca=True, hours=hours)
        self._file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def _chain(self) -> bytes:
        """The certificates that a client has to show beside its own, up to the root."""
        return b"" if self._above is None else self._file.read_bytes() + self._above._chain

    @property
    def file(self) -> Path:
        return self._file

    def _signed(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *uris: str,
        ca: bool = False,
        hours: float = 1,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names = names or [x509.IPAddress(ip_address("127.0.0.1"))]
        usage = {
            **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
            **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
            **dict.fromkeys(("key_cert_sign", "crl_sign"), ca),
        }
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=24))
            .not_valid_after(now + timedelta(hours=hours))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def issue(self, name: str, *uris: str, hours: float = 1) -> tuple[Path, Path]:
        """The files of a certificate and its key: for a client with ``uris``, or for 127.0.0.1.

        The certificate expires in some ``hours``, or has expired so long ago.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        files = (self._folder / f"{name}.crt", self._folder / f"{name}.key")
        certificate = self._signed(named, key.public_key(), *uris, hours=hours)
        shown = certificate.public_bytes(serialization.Encoding.PEM) + self._chain
        files[0].write_bytes(shown)
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        files[1].chmod(0o600)
        return files
