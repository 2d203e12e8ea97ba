"""The error for a file that gives no text."""


class UnreadableError(Exception):
    """A file that can't be indexed; the message is the reason, for the list of what was left out."""
