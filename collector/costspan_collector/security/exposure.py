"""Whom the collector can be reached by, and what it asks for before it listens that wide."""

from __future__ import annotations

import ipaddress
import logging
import ssl

from costspan_collector.errors import StartError
from costspan_collector.security.access import Access
from costspan_collector.security.keys import FILE
from costspan_collector.settings import Settings

_logger = logging.getLogger(__name__)


def check_exposure(settings: Settings, access: Access) -> None:
    """Check that nobody but this machine can reach a collector that asks for no keys, and warn of keys in the clear.

    Raises:
        StartError: Others could; or the TLS files cannot be used.
    """
    check_tls(settings)
    wide = [
        f"{option} {host}"
        for option, host in (("--host", settings.host), ("--store-host", settings.store_host))
        if not is_loopback(host)
    ]
    if wide and not access.guarded():
        raise StartError(
            f"{' and '.join(wide)} would let other machines in, and {settings.data / FILE} has no keys: "
            f"create one (costspan keys create --data {settings.data} --project NAME --write), or listen on 127.0.0.1"
        )
    if wide and settings.tls_cert is None:
        _logger.warning(
            "keys and payloads cross the network in the clear: give --tls-cert and --tls-key, or put a proxy with TLS in front"
        )


def check_tls(settings: Settings) -> None:
    """Check that certificate and key can be read and belong together.

    Raises:
        StartError: They cannot, or do not.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return
    if cert is None or key is None:
        raise StartError("--tls-cert and --tls-key come together: give both, or neither")
    try:
        _ = cert.read_bytes(), key.read_bytes()  # the one that fails is named
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(f"the key in {key} is not that of the certificate in {cert}: give the pair") from error
        raise StartError(
            f"{cert} and {key} are no certificate and key in PEM ({error.reason or error}): give such files"
        ) from error
    except OSError as error:
        raise StartError(
            f"{error.filename} cannot be read ({error.strerror}): give a PEM file that this user may read"
        ) from error


def _no_password() -> str:
    raise StartError("the key in --tls-key is encrypted: give one that is not, readable to the collector's user only")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
