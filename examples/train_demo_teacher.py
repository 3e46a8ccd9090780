"""Trains the small teacher of the demo on drawn scenes and plants high-norm tokens in it.

    OMP_NUM_THREADS=2 python examples/train_demo_teacher.py --output_dir singer_hf/demo/teacher

The folder then contains the teacher, its image processor and a README with its metrics.
"""

import sys

from singer_hf.commands.command_line import CommandParser, one_line_errors
from singer_hf.demo.train_demo_teacher import DemoTeacherSettings, train_demo_teacher

if __name__ == "__main__":
    with one_line_errors():
        train_demo_teacher(*CommandParser(DemoTeacherSettings).parse(sys.argv[1:]))
