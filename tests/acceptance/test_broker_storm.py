"""All faults in any order, one upon the other, from a seed: nothing is lost, nothing is done twice."""

from __future__ import annotations

from tests.acceptance import brokers
from tests.acceptance.brokers import some_events

FAULTS = 4
EVENTS_PER_FAULT = 150


class Storm:
    """The faults, each over when its method returns."""

    def __init__(self, site, proxy, rabbit, chance):
        self.site, self.proxy, self.rabbit, self.chance = site, proxy, rabbit, chance
        self.worker = self.start()

    def start(self):
        prefetch = self.chance.choice([1, 20, 500])
        return self.site.start(amqp_prefetch=prefetch, amqp_heartbeat=1, amqp_blocked_seconds=0.5)

    def close_connections(self):
        self.rabbit.close_all_connections()

    def reset_connections(self):
        self.proxy.reset()

    def cut_in_a_frame(self):
        self.proxy.cut_after(self.chance.randrange(1, 4096), self.chance.choice(["to_server", "to_client"]))

    def kill_worker(self):
        self.worker.kill()
        self.worker = self.start()

    def stop_worker(self):
        assert self.worker.stop() in (0, 75)
        self.worker = self.start()

    def kill_broker(self):
        self.rabbit.kill()
        self.rabbit.start()

    def stop_broker(self):
        self.rabbit.stop_app()
        self.rabbit.start_app()

    def alarm(self):
        self.rabbit.set_memory_alarm()
        brokers.hold(self.chance.uniform(0.1, 1.5))
        self.rabbit.clear_memory_alarm()

    def blackhole(self):
        self.proxy.blackhole()
        brokers.hold(self.chance.uniform(0.1, 2.0))
        self.proxy.pass_on()
        self.proxy.reset()  # a connection that lost bytes and goes on is none that TCP would make

    def half_open(self):
        self.proxy.half_open()
        brokers.hold(self.chance.uniform(0.1, 2.0))
        self.proxy.pass_on()

    def take_rights_away(self):
        right = self.chance.choice(["configure", "write", "read"])
        self.site.vhost.set_permissions(**{right: "^$"})
        self.proxy.reset()
        brokers.hold(self.chance.uniform(0.1, 1.0))
        self.site.vhost.set_permissions()

    @property
    def faults(self):
        return [
            *(self.close_connections, self.reset_connections, self.cut_in_a_frame, self.kill_worker, self.stop_worker),
            *(self.kill_broker, self.stop_broker, self.alarm, self.blackhole, self.half_open, self.take_rights_away),
        ]


def test_storm_costs_nothing(distant, proxy, rabbit, chance):
    site = distant
    on_unknown = chance.choice(["hold", "resend"])
    rule = f"handler: send_sms\n        on_unknown: {on_unknown}"
    site.write_rulebook(brokers.RULEBOOK.replace("handler: send_sms", rule))
    storm = Storm(site, proxy, rabbit, chance)
    site.publish(some_events(FAULTS * EVENTS_PER_FAULT), per_second=chance.choice([200, 1000]))
    for part in range(FAULTS):
        site.wait_for(part * EVENTS_PER_FAULT + chance.randrange(EVENTS_PER_FAULT))
        fault = chance.choice(storm.faults)
        print(fault.__name__)  # noqa: T201 - shown when it fails
        fault()
    site.settle()
    assert storm.worker.stop() == 0
    print(brokers.nothing_is_lost_or_doubled(site, resent=on_unknown == "resend"))  # noqa: T201 - shown when it fails
    assert storm.worker.said("amqp.faulted") == []
