"""THE JOB: the events, how they are told apart, and our rulebook for them.

An event becomes a contact and a text. Each is about a person of its own, whose number can be read in the text's body:
by it a text is matched with its event, whoever wrote the text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator

CHAIN = """\
  - name: welcome
    on: {conversation_type: vxpolls, event_type: poll_complete}
    when: data.consent == "yes"
    steps:
      - id: contact
        handler: create_contact
        with: {msisdn: "{{ data.msisdn }}", name: "{{ data.name | title }}"}
      - handler: send_sms
        with: {to: "{{ steps.contact.msisdn }}", text: "Thanks {{ steps.contact.name }}!"}
"""
HEAD = """\
version: 1
accounts: {acc1: {region: ZA}}
"""
TO_VUMI = 'senders: {default: {type: vumi, transport_name: sms, from_addr: "+27820000000"}}\n'
TO_OUTBOX = "senders: {default: {type: outbox}}\n"

_MSISDN = re.compile(rb"\+2782(\d{7})")


def rulebook(senders: str) -> str:
    """Return our rulebook for the job, with TO_VUMI or TO_OUTBOX."""
    return f"{HEAD}{senders}chains:\n{CHAIN}"


def msisdn_of(number: int) -> str:
    """Return the phone number of the event with this number."""
    return f"+2782{number % 10_000_000:07d}"


def number_in(body: bytes) -> int | None:
    """Return the number of the event that a text came of; None when its body names nobody."""
    found = _MSISDN.search(body)
    return int(found[1]) if found else None


def an_event(number: int) -> bytes:
    """Return an event of about 400 bytes, with a random id, as a poll publishes it."""
    return json.dumps(
        {
            "event_id": str(uuid.uuid4()),
            "account_key": "acc1",
            "conversation_key": "a6a20571e77f4aa89a8b10a771b005bc",
            "conversation_type": "vxpolls",
            "event_type": "poll_complete",
            "event_data": {
                "msisdn": msisdn_of(number),
                "name": "thandi dlamini",
                "consent": "yes",
                "language": "en",
                "answers": {"age": "25-34", "visited": "yes", "again": "no", "clinic": "Kwa-Zenzele"},
            },
        }
    ).encode()


def events(count: int) -> Iterator[bytes]:
    """Yield the first events, in order."""
    return (an_event(number) for number in range(count))
