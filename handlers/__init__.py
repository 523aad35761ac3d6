"""The built-in handlers, one a file; the file name is the name in YAML."""
