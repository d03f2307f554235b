"""Limits of the queue service. What is over one is refused with the field it is in."""

from typing import Final

MAX_NAME_BYTES: Final = 512
MAX_BODY_BYTES: Final = 256 * 1024
MAX_BATCH: Final = 100  # messages of a push or a pop, receipts of an ack
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024  # bodies of one push
MAX_POP_BYTES: Final = 1024 * 1024  # bodies of one pop or page; one message always fits
MAX_PRIORITY: Final = 9  # the most urgent; 0 is the default and the least
MAX_GROUP_BYTES: Final = 256
MAX_DEDUPE_ID_BYTES: Final = 256
MAX_REQUEST_ID_BYTES: Final = 128
MAX_DELAY_MS: Final = 30 * 86_400_000
MAX_TTL_MS: Final = 365 * 86_400_000
MIN_VISIBILITY_MS: Final = 1
MAX_VISIBILITY_MS: Final = 12 * 3_600_000
MAX_DEDUPE_WINDOW_MS: Final = 7 * 86_400_000
MAX_LENGTH: Final = 1_000_000_000
MAX_DELIVERIES: Final = 10_000
MAX_RATE_COUNT: Final = 1_000_000
MAX_RATE_PER_MS: Final = 86_400_000
MAX_SCHEDULES: Final = 100  # of a queue
MAX_SCHEDULE_ID_BYTES: Final = 128
MAX_CRON_BYTES: Final = 256
MAX_SCHEDULED_BODY_BYTES: Final = 16 * 1024

SWEEP_LIMIT: Final = 100  # of each kind in one script
REDRIVE_LIMIT: Final = 100
REDRIVE_BYTES: Final = 1024 * 1024
