"""`python -m distsync.command` is the `distsync` command of that interpreter."""

from distsync.command.app import main

if __name__ == "__main__":
    main()
