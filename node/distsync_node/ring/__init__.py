"""The md5 consistent-hash ring with virtual nodes: pure."""

from distsync_node.ring.hashring import DEFAULT_VIRTUAL_NODES, HashRing, key_point

__all__ = ["DEFAULT_VIRTUAL_NODES", "HashRing", "key_point"]
