"""Limits of the lock state machine. They are part of its behaviour: every replica has the same."""

MAX_TOKEN = 2**53 - 1
MAX_NAMES_PER_ACQUIRE = 64
MAX_WAITERS_PER_LOCK = 10_000
MAX_WAITERS = 100_000  # places in queues: a wait for three locks takes three
MAX_LOCKS = 1_000_000
MAX_GRANTS = 1_000_000  # shared locks have many; refused as TOO_MANY_LOCKS
MAX_SESSIONS = 100_000
MAX_SEMAPHORE_LIMIT = 1_000_000
MAX_REQUESTS_REMEMBERED = 100_000
REQUEST_MEMORY_MS = 120_000
MAX_EXPIRIES_PER_ENTRY = 10_000
