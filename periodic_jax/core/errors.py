"""The one error a user's own input can cause, and what ends a run before its last step."""


class ConfigError(ValueError):
    """A setting that cannot be used: one line that names it, its value and what is accepted.

    Args:
        argument: the setting as the user knows it, e.g. ``--lr``.
        value: what was given.
        accepted: what would be accepted, in words.

    Example:
        >>> str(ConfigError("--width", 0, "a whole number from 1"))
        '--width: 0 is not accepted; expected a whole number from 1'
    """

    def __init__(self, argument: str, value: object, accepted: str) -> None:
        self.argument, self.value, self.accepted = argument, value, accepted
        super().__init__(argument, value, accepted)

    def __str__(self) -> str:
        value = f"{self.value:.15g}" if isinstance(self.value, float) else self.value
        text = f"{self.argument}: {value} is not accepted; expected {self.accepted}"
        # What was given may hold line breaks or terminal codes: shown as escapes, it stays one harmless line.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class RunStopped(Exception):
    """A run that ended before its last step, in one line; all up to its last checkpoint is kept.

    Args:
        message: why, and how to go on.
        status: what the command exits with.
    """

    def __init__(self, message: str, status: int) -> None:
        self.message, self.status = message, status
        super().__init__(message, status)

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.message)
