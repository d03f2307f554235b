"""The operator: keeps clusters of nodes on Kubernetes as their resources say."""
