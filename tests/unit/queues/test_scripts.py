"""The scripts keep the contract that their headers are."""

from __future__ import annotations

import re
from importlib import resources
from urllib.parse import unquote

import pytest

from distsync_node.queues import model
from distsync_node.queues.scripts import SCRIPT_NAMES, load_scripts, read_source
from distsync_node.queues.types import Order
from unit.queues.conftest import Queue

SCRIPTS = load_scripts()
# The keys that the data model lists; "requests_0/1" are two.
LISTED = re.sub(r"(\w+_)0/1", r"\g<1>0 hash\n    \g<1>1", model.__doc__ or "")
DESCRIBED = set(re.findall(r"^    (\w+) +(?:hash|zset)", LISTED, re.M))
# list.lua takes the key of the order that is asked for.
BY_NAME = {"list": {order.value for order in Order}}


def code_of(name: str) -> str:
    """The script without comments and without the line that names the keys."""
    lines = SCRIPTS[name].source.decode().splitlines()[1:]
    return "\n".join(line for line in lines if not line.lstrip().startswith("--"))


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_script_declares_the_keys_it_touches_and_no_others(name: str) -> None:
    used = set(re.findall(r"\bk\.(\w+)", code_of(name))) | BY_NAME.get(name, set())
    assert used == set(SCRIPTS[name].key_names)
    assert used <= DESCRIBED
    assert not re.search(r"KEYS|dsq:", code_of(name))


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_a_script_runs_on_redis_6_2_and_reads_no_clock_but_that_of_redis(name: str) -> None:
    source = SCRIPTS[name].source.decode()
    assert not source.startswith("#!")
    assert source.count("'TIME'") == 1
    assert "os." not in code_of(name)


@pytest.mark.parametrize("name", ["get", "peek", "list", "stats"])
def test_what_only_reads_writes_nothing(name: str) -> None:
    commands = set(re.findall(r"call\('(\w+)'", code_of(name)))
    reading = {"TIME", "HGET", "HMGET", "HLEN", "ZCARD", "ZCOUNT", "ZRANGE", "ZSCORE"}
    assert commands <= reading | {"ZRANGEBYLEX", "ZRANGEBYSCORE"}


def test_every_file_is_used() -> None:
    folder = resources.files("distsync_node.queues") / "scripts"
    files = {one.name for one in folder.iterdir() if one.name.endswith(".lua")}
    assert files == {f"{name}.lua" for name in SCRIPT_NAMES}
    libraries = {one.name.removesuffix(".lua") for one in (folder / "lib").iterdir()}
    used = " ".join(re.findall(r"^-- lib: (.+)$", "\n".join(map(read, SCRIPT_NAMES)), re.M))
    assert libraries == set(re.findall(r"\w+", used))


def read(name: str) -> str:
    return read_source(f"{name}.lua")


async def test_redis_takes_them_under_their_names(queue: Queue) -> None:
    shas = [script.sha for script in SCRIPTS.values()]
    for script in SCRIPTS.values():
        queue.client.script_load(script.source)
    assert queue.client.script_exists(*shas) == [True] * len(shas)


@pytest.mark.parametrize("name", ["a", "{", "}{", "a b", "%7B", "ü/x", "\u2028", "a:b"])
def test_names_are_encoded_so_that_they_can_be_a_hash_tag(name: str) -> None:
    encoded = model.encode_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_.~%-]+", encoded)
    assert unquote(encoded) == name
    assert model.key(name, "meta") == f"dsq:{{{encoded}}}:meta".encode()
