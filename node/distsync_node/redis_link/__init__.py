"""Connections to Redis: one shared pipeline per server, found by URL."""
