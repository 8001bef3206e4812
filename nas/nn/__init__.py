"""Networks where the engine needs to see inside: graphs of Flax modules, their layers, supernets and their layouts.

What a network is made of are Flax's own modules and a few of `nas.nn.layers`. Beneath them, on CPU, stand the
lowerings of `nas.cpu`, which importing this package puts in place.
"""

from nas import cpu

cpu.register()
