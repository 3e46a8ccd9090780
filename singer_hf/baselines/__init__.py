"""Methods of distillation by name, SiNGER and those it is compared with, and recipes."""
