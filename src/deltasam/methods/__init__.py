"""One method per file. Importing this package registers them all."""

from deltasam.methods.asam import ASAM
from deltasam.methods.delta_sam import DeltaSAM
from deltasam.methods.erm import ERM
from deltasam.methods.friendly_sam import FriendlySAM
from deltasam.methods.per_instance_sam import PerInstanceSAM
from deltasam.methods.rw_sam import RWSAM
from deltasam.methods.sam import SAM

__all__ = ["ASAM", "ERM", "RWSAM", "SAM", "DeltaSAM", "FriendlySAM", "PerInstanceSAM"]
