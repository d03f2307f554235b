"""What can go wrong in the operator.

OperatorError
├── SpecError        a resource that this version of the operator cannot read
├── KubeError        the API server refused or did not answer
└── NodeError        a node refused or did not answer
"""

from __future__ import annotations


class OperatorError(Exception):
    """Whatever this operator reports instead of doing."""


class SpecError(OperatorError):
    """A resource that this version of the operator cannot read."""


class KubeError(OperatorError):
    """The API server refused a request; `status` is 0 when it did not answer."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP {status}")
        self.status = status
        self.reason = reason
        self.message = message or reason


class NodeError(OperatorError):
    """A node refused a call; `code` is the one of its problem, or '' when it did not answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
