"""What DistSync's cache stands beside: a FastAPI application that caches in Redis with cashews.

Run by `uvicorn bench.cache_app:app`; CACHE_URL is the Redis, CACHE_CLIENT_SIDE=1 has cashews keep
what it read in the process as well, until Redis says that it changed.
"""

from __future__ import annotations

import os

from cashews import Cache
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Value(BaseModel):
    """The body of a write."""

    value: str


class Named(BaseModel):
    """The answer of both."""

    key: str
    value: str


app = FastAPI()
cache = Cache()
cache.setup(os.environ["CACHE_URL"], client_side=os.environ.get("CACHE_CLIENT_SIDE") == "1")


@app.get("/cache/{key}")
async def read(key: str) -> Named:
    """The value of a key."""
    value = await cache.get(key)
    if value is None:
        raise HTTPException(404)
    return Named(key=key, value=value)


@app.put("/cache/{key}")
async def write(key: str, body: Value) -> Named:
    """Set the value of a key."""
    await cache.set(key, body.value)
    return Named(key=key, value=body.value)
