"""Handlers of the Acme programme."""
