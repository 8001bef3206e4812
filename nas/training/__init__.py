"""Training of one network: pure XLA-compiled steps, host-side plans, checkpoints that resume bit for bit."""
