"""Durable storage of a node: the log, snapshots and the node's identity."""

from distsync_node.storage.disk_thread import DiskThread
from distsync_node.storage.filesystem import FileSystem, OsFileSystem
from distsync_node.storage.storage import Storage

__all__ = ["DiskThread", "FileSystem", "OsFileSystem", "Storage"]
