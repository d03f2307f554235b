"""The lock state machine: pure and deterministic."""
