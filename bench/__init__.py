"""Ours and its peers, measured side by side on one broker: `python -m bench --help`. No part of what is installed."""
