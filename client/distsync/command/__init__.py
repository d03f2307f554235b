"""The `distsync` command: run nodes, look at a cluster, and use locks from a shell."""

from distsync.command.app import main

__all__ = ["main"]
