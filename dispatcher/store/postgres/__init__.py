"""The shared store: one schema of a PostgreSQL database, written by any number of processes, by way of psycopg."""
