"""The lines at a node: the holder's side of the protocol (the essay is in `distsync_node.cache`).

    line.py         one key at this node
    held.py         all of them: which can be served, what each state takes
    clients.py      calls of clients that wait
    asks.py         what has been asked of homes
    writes.py       what became of a write that was at its home
    write_backs.py  lines that Redis is to have, and lines that go for want of room
    local.py        writes in E and M under local durability
    replies.py      what a home answers
    yields.py       what a home asks for: lines, and copies kept for safety
    leases.py       leases renewed, leases that end, homes that move
    lines.py        calls of clients, and who asks next

Each knows only those above it.
"""
