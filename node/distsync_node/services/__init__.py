"""Async shells around the cores."""
