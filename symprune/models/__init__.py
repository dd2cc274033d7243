"""Language models by name, their decoder layers and prunable linears, and the devices they lie on."""

from symprune.models.devices import device_type
from symprune.models.folder import MASKS
from symprune.models.layers import (
    copy_weights,
    decoder_layers,
    linears_by_layer,
    named_linears,
    prunable_linears,
    restore_weights,
    weight_view,
)
from symprune.models.load import (
    DTYPES,
    EMBEDDED,
    fingerprint,
    load_model,
    load_tokenizer,
    locate,
    quiet_transformers,
)
from symprune.models.precision import calibrating_in

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "MASKS",
    "calibrating_in",
    "copy_weights",
    "decoder_layers",
    "device_type",
    "fingerprint",
    "linears_by_layer",
    "load_model",
    "load_tokenizer",
    "locate",
    "named_linears",
    "prunable_linears",
    "quiet_transformers",
    "restore_weights",
    "weight_view",
]
