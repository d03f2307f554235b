"""`python -m distsync_operator`."""

from distsync_operator.main import main

main()
