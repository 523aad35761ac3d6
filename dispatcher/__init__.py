"""The public names for plugin authors."""
