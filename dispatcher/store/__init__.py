"""The one truth: events, runs, steps, outbox, contacts, messages, dead letters. The only place that speaks SQL."""
