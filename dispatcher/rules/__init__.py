"""The rulebook: read from YAML with positions, checked in one go, compiled into a plan."""
