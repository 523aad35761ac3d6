"""An Ansible module that publishes a text to RabbitMQ, and waits until it is confirmed."""

import json
import os
from uuid import uuid4

import pika
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule({name: {"type": "str", "required": True} for name in ("queue", "to_addr", "content")})
    text = {name: module.params[name] for name in ("to_addr", "content")}
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_AMQP_URL"]))
    channel = connection.channel()
    channel.confirm_delivery()
    body = json.dumps({**text, "message_id": str(uuid4())})
    channel.basic_publish("", module.params["queue"], body, pika.BasicProperties(delivery_mode=2), mandatory=True)
    connection.close()
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
