"""Which addresses of nodes are accepted.

Every member connects to an address as soon as it is part of the configuration, and again after each
restart, so a wrong one must never get in: the patterns accept exactly what can be connected to.
"""

from __future__ import annotations

import re

_LABEL = "[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HEX = "[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    (
        f"({_HEX}:){{7}}{_HEX}",
        f"({_HEX}:){{1,7}}:",
        *(f"({_HEX}:){{1,{8 - after}}}(:{_HEX}){{1,{after - 1}}}" for after in range(2, 8)),
        f":((:{_HEX}){{1,7}}|:)",
    )
)
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST = rf"({_LABEL}(\.{_LABEL})*\.?|\[({_IPV6})\])(:{_PORT})?"

# Nodes talk plain HTTP behind the shared secret, at the root of the port.
PEER_URL_PATTERN = f"^http://{_HOST}/?$"
OPTIONAL_CLIENT_URL_PATTERN = f"^(https?://{_HOST}(/[!-~]*)?)?$"

_peer_url = re.compile(PEER_URL_PATTERN)
_optional_client_url = re.compile(OPTIONAL_CLIENT_URL_PATTERN)


def is_peer_url(text: str) -> bool:
    """Whether other nodes can reach a node there."""
    return _peer_url.fullmatch(text) is not None


def is_optional_client_url(text: str) -> bool:
    """Whether clients can reach a node there; an empty text says that nothing is known."""
    return _optional_client_url.fullmatch(text) is not None
