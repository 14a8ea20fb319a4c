"""The command `factory demo`, as a script for a checkout and for `ray job submit`."""

from factory.commands.demo import main

if __name__ == "__main__":
    main()
