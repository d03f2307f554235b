"""Node-to-node HTTP."""
