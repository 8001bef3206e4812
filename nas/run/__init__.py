"""The drivers of a search: `local` in this process, `ray_tune` on the workers of one machine or a cluster.

Both ask the same strategies, call the same objectives and write the same record.
"""
