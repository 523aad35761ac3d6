"""The worker: one loop that feeds the engine, commits, acknowledges and starts calls."""
