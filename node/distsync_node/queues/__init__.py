"""Queues on Redis: each change of state is one Lua script."""
