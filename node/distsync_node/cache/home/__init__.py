"""The home of keys: a directory, and one transaction a key (the essay is in `distsync_node.cache`).

    entry.py         one key, and the transactions on it
    directory.py     all keys: who holds what, and what Redis has not
    authority.py     what may be done now, and what waits for that
    outgoing.py      what the home says to other nodes
    requests.py      what it asks of Redis, and what comes of it
    commits.py       a write: where its value has to be, and the moment at which it takes effect
    transactions.py  the steps of every transaction
    endings.py       leases that end, keys that move, the node that leaves
    home.py          what other nodes and Redis say, and what is due

Each knows only those above it.
"""
