"""SiNGER as a PEFT method. Importing this package registers it with PEFT."""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from singer_hf.tuner.config import SingerConfig, SingerPeftType
from singer_hf.tuner.layer import SingerLayer
from singer_hf.tuner.model import SingerModel
from singer_hf.tuner.old_peft import support_old_peft

__all__ = ["SingerConfig", "SingerLayer", "SingerModel", "SingerPeftType"]


def _register() -> None:
    # `peft.utils.register_peft_method` only accepts members of PEFT's enum, so the mappings are filled here.
    entries = (
        (PEFT_TYPE_TO_CONFIG_MAPPING, SingerConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, SingerModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, SingerModel.prefix),
    )
    for mapping, value in entries:
        known = mapping.get(SingerPeftType.SINGER, value)
        if getattr(known, "__qualname__", known) != getattr(value, "__qualname__", value):
            raise KeyError(f"another PEFT method is registered as {SingerPeftType.SINGER.value!r}: {known!r}")
        mapping[SingerPeftType.SINGER] = value


_register()
support_old_peft()
