"""Limits of the cache. What is over one is refused with the field it is in."""

from typing import Final

MAX_KEY_BYTES: Final = 1024
MAX_VALUE_BYTES: Final = 1024 * 1024
MAX_TAGS: Final = 16
MAX_TAG_BYTES: Final = 256
MAX_BATCH: Final = 1000  # items of each kind
MAX_BATCH_BYTES: Final = 8 * 1024 * 1024
MAX_BATCH_READ_BYTES: Final = 16 * 1024 * 1024  # values of one answer
MIN_TTL_MS: Final = 1
MAX_TTL_MS: Final = 365 * 86_400_000
MAX_WAIT_MS: Final = 600_000
MIN_LEASE_MS: Final = 100
MAX_LEASE_MS: Final = 3_600_000
MAX_TOKEN_BYTES: Final = 64
MAX_LINES_A_PAGE: Final = 1000
