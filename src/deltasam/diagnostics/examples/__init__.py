"""Which training examples a method weighted, which had large gradients or losses, and what is the matter with them."""

from deltasam.diagnostics.examples.detection import Detection, detection

__all__ = ["Detection", "detection"]
