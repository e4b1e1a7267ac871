"""Passwords stay out of what is logged, printed or kept: addresses are shown without them."""

import re

_OF_HTTP = re.compile(r"(https?://)[^\s/\"']+@")  # the user's name may be a token
_OF_DATABASE = re.compile(r"(://[^\s/@:\"']*):[^\s/\"']*@")
_IN_QUERY = re.compile(r"(?i)([?&;\s](?:password|passwd|pwd|token|secret)=)[^\s&;\"']+")


def masked(text: str) -> str:
    """A text without the credentials of the addresses in it.

    Args:
        text: an address, a message or a whole file that may hold some.
    """
    return _IN_QUERY.sub(r"\1***", _OF_DATABASE.sub(r"\1:***@", _OF_HTTP.sub(r"\1***@", text)))
