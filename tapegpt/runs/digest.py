"""The first line of a run's JSON files: a digest of all the others."""

import hashlib

FIRST = b'{"digest": "'  # how it begins
DIGEST = "[0-9a-f]{64}"  # SHA-256


def with_digest(rest: bytes) -> bytes:
    """The text of a file whose other lines are `rest`."""
    return FIRST + b'%s",\n' % hashlib.sha256(rest).hexdigest().encode() + rest


def check_digest(text: bytes) -> None:
    """Raise `ValueError` if the first line does not belong to the others."""
    if text != with_digest(text.partition(b"\n")[2]):
        raise ValueError("its text does not match its digest")
