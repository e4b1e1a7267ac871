"""Why a request is not answered, in OpenAI's form."""

from typing import Any

from pydantic import ValidationError

from multimodal.errors import one_sentence

KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class RefusalError(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        sentence: what is wrong and what to do.
        parameter: of the request that is wrong.
    """

    def __init__(self, status: int, sentence: str, parameter: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.parameter = status, sentence, parameter

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.sentence, "type": kind, "param": self.parameter, "code": self.status}}


def malformed(error: ValidationError) -> RefusalError:
    """A body that is no chat request."""
    where = ".".join(str(part) for part in error.errors()[0]["loc"])
    return RefusalError(400, one_sentence(error), where or None)
