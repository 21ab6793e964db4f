"""Why a question was not answered. One class for each gRPC status that the wire allows."""

from __future__ import annotations


class Failure(Exception):
    """An answer that did not end well. Its text is for the caller and may quote the request: never log it."""

    outcome = "failed"


class InvalidQuestion(Failure):
    """The request itself is at fault, anywhere."""

    outcome = "invalid"


class UnknownModel(Failure):
    """This worker does not serve the model."""

    outcome = "unknown_model"


class Full(Failure):
    """Too many requests. `retry_after_ms` says when it may look better, in milliseconds."""

    outcome = "full"

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Unavailable(Failure):
    """The worker ends, or its backend cannot be reached."""

    outcome = "unavailable"


class Draining(Unavailable):
    """The worker takes no more: nothing is broken. `retry_after_ms` says when to look again, in milliseconds."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class CannotResume(Failure):
    """The answer cannot be continued here."""

    outcome = "cannot_resume"


class CredentialsRefused(Failure):
    """The backend refuses the worker's credentials, or its account is empty."""

    outcome = "credentials_refused"


class DeadlinePassed(Failure):
    """The caller's deadline passed, or the worker's own longest time."""

    outcome = "deadline"


class BackendFailed(Failure):
    """The backend broke, or said what cannot be."""

    outcome = "backend_failed"
