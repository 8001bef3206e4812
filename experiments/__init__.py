"""Paper experiments, one file each: the claim, the protocol, and the scales it can be run at."""
