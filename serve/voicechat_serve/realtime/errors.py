"""What can be wrong with an event of the client's, and how a session ends."""


class EventError(Exception):
    """An event of the client's cannot be done; the session goes on."""

    def __init__(self, code: str, message: str, param: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.body = {"type": kind, "code": code, "message": message, "param": param}


class SessionEndedError(Exception):
    """The session is over; the client is told why."""

    def __init__(self, code: str, message: str, close_code: int = 1000):
        super().__init__(message)
        self.code, self.close_code = code, close_code
