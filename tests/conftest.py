"""What holds for all tests. Properties are bounded by the number of their examples, never by time: machines differ."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
