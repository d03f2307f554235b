"""One member of the group without its I/O: consensus, state machine, leader time, requests."""
