"""The program of a DistSync node: locks, queues and a coherent cache behind one HTTP API."""

__version__ = "0.1.0"
