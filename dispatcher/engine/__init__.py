"""The state machine: (event, plan, overlay, time) to (rows, calls, publishes). No clock, no socket, no database."""
