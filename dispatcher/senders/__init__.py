"""Senders and services that ship with the dispatcher."""
