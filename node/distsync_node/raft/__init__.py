"""The consensus core: pure, no I/O, no clock."""
