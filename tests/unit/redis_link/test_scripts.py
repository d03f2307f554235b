"""How a script is put together from what its header asks for."""

from __future__ import annotations

import hashlib

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.redis_link.scripts import assemble

FILES = {
    "one.lua": "-- KEYS: meta ready\n-- lib: clock (groups)\nreturn clock",
    "lib/clock.lua": "local clock = 1\n",
    "lib/groups.lua": "function M.first() end\n",
}


def test_a_script_gets_its_keys_by_name_and_its_libraries_in_their_order() -> None:
    script = assemble("one", FILES.__getitem__)
    text = script.source.decode()
    assert script.key_names == ("meta", "ready")
    assert text.startswith("local k = {meta = KEYS[1], ready = KEYS[2]}\n")
    assert text.index("local clock") < text.index("local function groups()")
    assert text.endswith(FILES["one.lua"])
    assert script.sha == hashlib.sha1(script.source, usedforsecurity=False).hexdigest()


def test_a_script_without_a_header_is_a_bug() -> None:
    with pytest.raises(InvariantViolation):
        assemble("one", lambda path: "return 1")
