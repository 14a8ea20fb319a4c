"""The command `factory sweep`, as a script for a checkout and for `ray job submit`."""

from factory.commands.sweep import main

if __name__ == "__main__":
    main()
