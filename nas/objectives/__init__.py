"""What a trial is worth: real training and other sources of measurements behind one protocol."""
