"""The command `factory train_recognizer`, as a script for a checkout and for `ray job submit`."""

from factory.commands.train_recognizer import main

if __name__ == "__main__":
    main()
