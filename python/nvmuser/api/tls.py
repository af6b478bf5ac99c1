"""Files by which a server shows who it is, and knows who its clients are."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nvmuser.errors import UsageError


@dataclass(frozen=True)
class Tls:
    """Files in PEM.

    :param client_ca: who signs clients' certificates; None: none are taken.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, client_ca: Path | None) -> Self | None:
        """As a command line names them; None without TLS.

        :raises UsageError: they are not complete.
        """
        if (certificate is None) != (key is None) or (client_ca and not certificate):
            raise UsageError("TLS needs both --tls-cert and --tls-key; --client-ca needs them too")
        return cls(certificate, key, client_ca) if certificate and key else None

    def context(self) -> ssl.SSLContext:
        """For a server that asks clients for a certificate, and serves those without one too.

        :raises UsageError: a file is none of these.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{self.certificate}, {self.key}, {self.client_ca}: {error}") from error
        return context
