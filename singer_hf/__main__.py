"""`python -m singer_hf`, the same as `singer-hf`."""

from singer_hf.commands.dispatcher import main

if __name__ == "__main__":
    main()
