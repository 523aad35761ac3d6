"""A source plugin, in the form that the documentation shows, as ansible.eda has none for RabbitMQ.

An event is acknowledged when the rule engine's queue has taken it. Later is not to be had here: feedback to a source
needs the persistence of a server around ansible-rulebook.
"""

import json

import aio_pika


async def main(queue, args):
    connection = await aio_pika.connect(args["url"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=100)
    incoming = await channel.get_queue(args["queue"])
    async with incoming.iterator() as messages:
        async for message in messages:
            async with message.process():
                await queue.put(json.loads(message.body))
