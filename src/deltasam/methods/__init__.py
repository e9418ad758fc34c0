"""One method per file. Importing this package registers them all."""

from deltasam.methods.asam import ASAM
from deltasam.methods.delta_sam import DeltaSAM
from deltasam.methods.erm import ERM
from deltasam.methods.freelb import FreeLB
from deltasam.methods.friendly_sam import FriendlySAM
from deltasam.methods.per_instance_sam import PerInstanceSAM
from deltasam.methods.r3f import R3F
from deltasam.methods.r_drop import RDrop
from deltasam.methods.rw_sam import RWSAM
from deltasam.methods.sam import SAM
from deltasam.methods.smart import SMART

__all__ = [
    "ASAM",
    "ERM",
    "R3F",
    "RWSAM",
    "SAM",
    "SMART",
    "DeltaSAM",
    "FreeLB",
    "FriendlySAM",
    "PerInstanceSAM",
    "RDrop",
]
