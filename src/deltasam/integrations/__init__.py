"""One module for each training stack, imported by those who use it: ``import deltasam.integrations.hf``."""
