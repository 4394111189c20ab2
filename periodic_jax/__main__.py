"""``python -m periodic_jax``: the command ``periodic-jax`` of this Python, wherever its folder of scripts is."""

from periodic_jax.cli.main import main

if __name__ == "__main__":
    main()
