"""The command `factory train_diffusion`, as a script for a checkout and for `ray job submit`."""

from factory.commands.train_diffusion import main

if __name__ == "__main__":
    main()
