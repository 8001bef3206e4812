"""Networks whose structure the engine needs to see: supernets with choices left open, and their layouts."""
