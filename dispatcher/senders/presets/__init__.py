"""Gateways that programmes use, one a file: how each wants its request, and what its replies mean."""
