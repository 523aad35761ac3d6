"""The harness keeps what it promises, so that a red test elsewhere speaks of the dispatcher."""

from __future__ import annotations

import pika


def test_what_is_published_can_be_read(vhost):
    vhost.declare_queue("vumi.event", exchange="vumi")
    connection = pika.BlockingConnection(pika.URLParameters(vhost.url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.basic_publish("vumi", "vumi.event", b"hello", pika.BasicProperties(delivery_mode=2), mandatory=True)
    assert vhost.queue_depth("vumi.event") == (1, 0)
    _, _, body = channel.basic_get("vumi.event")
    assert vhost.queue_depth("vumi.event") == (0, 1)
    connection.close()
    assert body == b"hello"
    assert vhost.queue_arguments("vumi.event") == {"x-queue-type": "quorum"}
