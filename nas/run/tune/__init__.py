"""The engine on Ray Tune: many workers on one machine or on a cluster. The only code that imports ray."""
