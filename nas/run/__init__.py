"""From options to a record: what a search will be (`plan`), and the engines that carry out what strategies decide.

`local` works in this process, the package `tune` on the workers of one machine or a cluster, `simulated` over
benchmark tables. All ask the same strategies; the first two call the same objectives and write the same record.
"""
