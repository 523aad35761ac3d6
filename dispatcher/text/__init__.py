"""Texts that people write by hand: phone numbers, durations, and how many SMS segments a text takes."""
