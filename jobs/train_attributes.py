"""The command `factory train_attributes`, as a script for a checkout and for `ray job submit`."""

from factory.commands.train_attributes import main

if __name__ == "__main__":
    main()
