"""What the benchmark's page says of made-up results: ratios by rounds, bars, remarks, and no line without a figure."""

from __future__ import annotations

import re

import pytest

from bench.report import BadRemarks, page, read_remarks
from bench.report_bars import verdicts
from bench.report_figures import Results


def a_contestant(name, kind="ours", **more):
    return {"name": name, "title": name.title(), "kind": kind, "queue_type": "quorum", "note": "", **more}


def a_run(name, number, speed, **more):
    costs = {"cpu_us": 100.0, "broker_cpu_us": 50.0, "database_cpu_us": None}
    sizes = {"peak_mb": 80.0, "processes": 1, "workers": 1}
    return {"contestant": name, "round": number, "events": 20_000, "events_per_second": speed, **costs, **sizes, **more}


def results(speeds, kinds, **more):
    """Return results of some contestants, each with its events/s by round."""
    return {
        "taken_at": "2026-11-21T10:00:00+00:00",
        "commit": "0123456789abcdef",
        "machine": {"cpu": "one", "cores": 2, "memory_gb": 4, "kernel": "6", "filesystem": "ext4", "fsync_ms": 0.2},
        "versions": {"dispatcher": "0.1.0"},
        "contestants": [a_contestant(name, kind) for name, kind in kinds.items()],
        "throughput": [a_run(name, at, speed) for name in speeds for at, speed in enumerate(speeds[name])],
        **more,
    }


KINDS = {"ours-sqlite": "ours", "pika_journal": "loop", "slow": "peer", "fast": "peer"}
SPEEDS = {
    "ours-sqlite": [600.0, 300.0, 620.0],
    "pika_journal": [1000.0, 500.0, 1000.0],
    "slow": [10.0],
    "fast": [100.0],
}


def a_series(size, number, cpu, **more):
    row = {"series": "chains", "store": "sqlite", "source": "rabbitmq", "size": size, "round": number, "events": 20_000}
    return {**row, "events_per_second": 1e6 / cpu, "cpu_us": cpu, "database_cpu_us": None, "peak_mb": 90.0, **more}


def test_a_ratio_is_of_the_same_round_and_so_outlives_a_slow_moment():
    found = Results(results(SPEEDS, KINDS)).ratio("ours-sqlite", "pika_journal")

    assert (found.middle, found.least, found.most) == pytest.approx((0.6, 0.6, 0.62))


def test_rounds_that_only_one_side_has_are_left_out_of_a_ratio():
    assert Results(results(SPEEDS, KINDS)).ratio("ours-sqlite", "fast").count == 1
    assert Results(results(SPEEDS, KINDS)).ratio("ours-sqlite", "absent") is None


def test_the_best_peer_is_no_loop():
    assert Results(results(SPEEDS, KINDS)).best_peer() == "fast"


def test_a_bar_says_whether_it_holds_and_by_how_much_it_falls_short():
    speeds = SPEEDS | {"fast": [200.0, 100.0, 200.0]}
    told = {each.key: each for each in verdicts(Results(results(speeds, KINDS)))}

    assert told["loop"].holds
    assert told["peers"].short == pytest.approx(0.25)
    assert told["loop_postgresql"].short is None
    assert "| at least 4 | 3.00 (3.00 to 3.10) | **no**, 25 % short |" in page(results(speeds, KINDS), {})


def test_memory_is_judged_by_the_highest_peak():
    document = results(SPEEDS, KINDS)
    document["throughput"][1]["peak_mb"] = 110.0
    (found,) = (each for each in verdicts(Results(document)) if each.what == "peak memory with one chain, SQLite")

    assert found.short == pytest.approx(0.1)


def test_chains_are_judged_by_the_size_that_costs_most():
    costs = {1: [100.0, 50.0], 10: [110.0, 55.0], 100: [100.0, 50.0]}
    document = results({}, {}, series=[a_series(size, n, cpu) for size in costs for n, cpu in enumerate(costs[size])])
    (found,) = (each for each in verdicts(Results(document)) if each.key == "chains")

    assert found.measured.startswith("1.10 (1.10 to 1.10) with 10;")
    assert found.short == pytest.approx(1.1 / 1.05 - 1)


def test_the_cost_of_a_series_is_of_worker_and_database_together():
    (line,) = Results({"series": [a_series(1, 0, 100.0, database_cpu_us=40.0)]}).lines("chains")

    assert line.spread(1, "cost_us").middle == 140.0


def test_a_remark_on_a_bar_is_shown_only_where_the_bar_falls_short():
    remarks = read_remarks(
        "<!-- for people -->\n## peers\n\nThe broker.\n\n## loop\n\nNothing.\n\n## after setups\n\nOne.\n"
    )

    text = page(results(SPEEDS | {"fast": [200.0]}, KINDS), remarks)

    assert "**The fastest peer.** The broker." in text
    assert "Nothing." not in text
    assert "\nOne.\n" in text


def test_a_bar_that_falls_short_without_a_remark_says_that_nobody_knows_why():
    assert "What limits it has not been found out yet." in page(results(SPEEDS | {"fast": [200.0]}, KINDS), {})


def test_a_remark_that_nothing_asks_for_is_refused():
    with pytest.raises(BadRemarks, match="no place for after lunch"):
        read_remarks("## after lunch\n\nText.\n")


def test_no_figures_at_all_still_make_a_page():
    text = page(results({}, {}), {})

    assert "not measured" in text
    assert "## As things grow" not in text


def test_events_and_rounds_are_of_those_who_do_the_job_and_who_does_not_tells_its_own():
    document = results(SPEEDS | {"other": [2.15]}, KINDS | {"other": "outside"})
    document["throughput"][-1].update(events=20, round=7)

    text = page(document, {})

    assert "\n3 rounds of 20,000 events each;" in text
    assert "- **Other**: 20 events, 2.15 events/s, " in text


def test_what_is_missing_is_told_with_its_reason():
    document = results(SPEEDS, KINDS, missing=[{"name": "nameko", "title": "Nameko", "why": "it does not install"}])

    assert "- **Nameko**: it does not install" in page(document, {})


def test_prose_is_broken_into_short_lines():
    document = results(SPEEDS, KINDS, missing=[{"name": "n", "title": "N", "why": "many words " * 40}])

    long = [line for line in page(document, {}).splitlines() if len(line) > 120]
    assert [line for line in long if not re.match(r"\||!\[", line)] == []
