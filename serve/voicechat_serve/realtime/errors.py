"""The errors of the client's events, and the error that ends a session."""


class EventError(Exception):
    """The session cannot do what an event of the client requests; the session continues."""

    def __init__(self, code: str, message: str, param: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.body = {"type": kind, "code": code, "message": message, "param": param}


class SessionEndedError(Exception):
    """The session is over; the client receives the reason."""

    def __init__(self, code: str, message: str, close_code: int = 1000):
        super().__init__(message)
        self.code, self.close_code = code, close_code
