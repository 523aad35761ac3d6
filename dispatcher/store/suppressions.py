"""Numbers that were erased, remembered as keyed hashes only: whoever was erased is not texted again by mistake."""

from __future__ import annotations

import hashlib
import hmac

# What `send_sms` tells as the reason; opting the person in again ends it.
ERASED = "erased"


def number_hash(secret: str, account_key: str, msisdn: str) -> bytes:
    """Return the keyed hash under which an erased number is remembered."""
    return hmac.new(secret.encode(), f"{account_key}|{msisdn}".encode(), hashlib.sha256).digest()
