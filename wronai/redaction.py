"""Take what is secret in the environment out of what is printed and kept."""

from __future__ import annotations

import os
import re

SECRET_NAMES = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.IGNORECASE)
SHORTEST = 6  # characters: a shorter value stands in too many texts that are no secret
USER_INFO = re.compile(r"(?P<scheme>[a-z][a-z0-9+.\-]*://)[^/\s@:]*:[^/\s@]+@", re.IGNORECASE)
HIDDEN = "***"


def redact(text: str) -> str:
    """`text` without the user and password of any URL, and without the values of variables with a secret's name."""
    text = USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    for name in list(os.environ):  # items() fails where another thread removes one
        value = os.environ.get(name, "")
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text
