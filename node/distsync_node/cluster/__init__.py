"""How nodes form a cluster: pure."""
