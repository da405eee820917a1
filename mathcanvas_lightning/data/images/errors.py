"""The error for images that can't be used."""


class ImageError(Exception):
    """An image that can't be used.

    Args:
        reason: `image_unreadable`, `image_truncated` or `image_too_large`.
        message: Description of the problem.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
