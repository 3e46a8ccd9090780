"""Distils a vision transformer into a small student with SiNGER: what `accelerate launch` starts.

    accelerate launch examples/distill.py --help

The same as `singer-hf distill`.
"""

import sys

from singer_hf.commands.dispatcher import main

if __name__ == "__main__":
    main(["distill", *sys.argv[1:]])
