"""The prose of docs/benchmarks.md that holds whatever was measured: what is compared, how, and what it does not say."""

from __future__ import annotations

BEFORE = """\
<!-- Written by bench/report.py from benchmarks/results.json; what limits a figure comes from benchmarks/remarks.md. -->

# Benchmarks

What this product does in a second, beside what one would write or take instead: on the same broker, on the same
machine, in one run, in turns. The figures are of one small machine. The ratios travel better, and are what to look at.

## The job

Events of some 400 bytes wait in a durable queue, persistent. Each is parsed and validated, finds its chain by
conversation type and event type, passes the chain's condition, and goes through two steps: a contact with a name and a
number, and a text made from a template. The text is published, persistent and with publisher confirm, to a second
durable queue. The event is acknowledged late: what is killed meanwhile is handed out again.

The contestants do not promise the same:

- **The dispatcher** commits event, run, both steps with their results, contact and text to a store that is synced to
  disk (SQLite with `synchronous=FULL`, PostgreSQL with `synchronous_commit` on) before it acknowledges; the text is
  published from there, and its confirm recorded. A repetition is known by its `event_id`, the work of a killed worker
  goes on at the step that it had reached, a text whose fate is unknown is held rather than sent twice, and what
  happened can be listed and explained. It keeps the contact.
- **The peers** do the job as their documentation recommends, with confirms on and the ack behind them. They keep
  nothing: no contact, no journal. What was not acknowledged when one is killed is done again, and its texts go out
  again. What a handler that fails costs them is not measured here.
- **The loops** are written by hand for this one job, on pika's `SelectConnection`, confirms and acks pipelined. They
  have no rulebook, no retries and no verbs. *The bare loop* keeps nothing, like the peers: the client allows no more.
  *The journaling loop* commits, a batch at a time, a contact and two rows of a ledger for each event before it
  publishes; a store allows no more. They are the ceilings, not products to choose.\
"""

BETWEEN = """\
{rounds} of {events} events each; contestants take turns within a round. Counted is from outside, by the texts in the
outgoing queue, from the first tenth of them to the last. Medians, with the least and the most of all rounds.
*Ours is* tells how many times a row the dispatcher on SQLite does; the last columns, what a row is of the loops. Ratios
are taken within each round; given is their median.\
"""

SETUPS = """\
*Embedded* is without a broker: `dispatcher publish` of a file, then `dispatcher run --drain`, with texts that stay in
the store. Its events/s are those of the drain, from the first tenth of the runs that end to the last; its processor
seconds, for 1,000 events as above, are of both from start to end, so that they are more than the drain took.\
"""

COSTS = """\
Processor seconds for 1,000 events, the highest peak of memory of all its processes together, and the time from the
start of the process to its first text, with one event waiting and a store that is there.\
"""

LATENCIES = """\
From the publish of an event to its text, at {rate} events/s for {seconds} s: p50 and p99 as medians of the rounds, the
longest of all rounds, and how much of a core the contestant took for it.\
"""

ASKED = """\
What was asked of this product, and what the run above says of it. Ratios are medians of those of each round; memory is
the highest peak.\
"""

TAKEN = """\
{day}, commit `{commit}`. The broker, the database and whoever fills and counts share the cores with the contestant.\
"""

GROWTH = """\
The same job with a larger rulebook, queue or store. What must stay level is what an event costs. Processor time is of
worker and database together. Each size is measured in pairs with the smallest one, and *to the first* is the median of
what it was to that in each pair.\
"""

COMMANDS = """\
```sh
make bench                                  # all of them; prints a table and writes the results to a file
make bench ARGS="--quick"                   # in some minutes: fewer events, one round, nothing that grows
make bench ARGS="--only ours-sqlite,kombu"  # two of them, by their names as above; --help tells the rest
make bench ARGS="--measures series --series chains=1,1000"  # one of the series, in these sizes
make bench ARGS="--write-docs"              # writes this page and its plots too
.venv/bin/python -m bench.report            # writes them again from the results of that run
```

It starts a RabbitMQ of its own, and a PostgreSQL where one is installed, and makes an environment for each peer from
pinned requirements. Its files lie on a disk, for where a folder is in memory syncing costs nothing: `--folder` names
another one.\
"""

AFTER = """\
How far several workers on PostgreSQL go: [scaling.md](scaling.md).\
"""
