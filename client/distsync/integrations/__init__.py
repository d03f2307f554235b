"""DistSync below other libraries. Each needs an extra of its own: `pip install distsync[...]`."""
