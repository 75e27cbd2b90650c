"""What every store, sink, checkpoint and codec must do, as test suites: for this package's own, and for others'.

Each suite is a class of test methods. Inherit it, say how the thing under test is made, and let pytest collect it:

    class TestMyStore(StoreContract):
        @contextmanager
        def opened(self, files, folder):
            with MyStore(put(files, folder)) as store:
                yield store

A suite tests behaviour that the rest of tallstore relies on, and nothing of how it is done. Nothing here needs the
network, and pytest itself is not imported.
"""

from tallstore.testing.checkpoints import CheckpointContract
from tallstore.testing.codecs import (
    DrawnLevelsContract,
    DrawnMaskContract,
    LosslessCodecContract,
    MaskCodecContract,
    VectorCodecContract,
    WholeCodecContract,
)
from tallstore.testing.sampled_codecs import SampledCodecContract
from tallstore.testing.sinks import SinkContract
from tallstore.testing.stores import StoreContract

__all__ = [
    "CheckpointContract",
    "DrawnLevelsContract",
    "DrawnMaskContract",
    "LosslessCodecContract",
    "MaskCodecContract",
    "SampledCodecContract",
    "SinkContract",
    "StoreContract",
    "VectorCodecContract",
    "WholeCodecContract",
]
