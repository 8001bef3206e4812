"""The space of the shipped table: complete, and without duplicates."""

from search_spaces.minichain import SPACE, build


def test_no_two_architectures_are_the_same_network_trained_the_same_way() -> None:
    archs = list(SPACE.enumerate())
    assert len(archs) == SPACE.count() == 360
    networks = {(build(arch, 10), arch["learning_rate"], arch["augmentation"]) for arch in archs}
    assert len(networks) == len(archs)


def test_blocks_are_those_of_the_chain() -> None:
    arch = SPACE.from_string(
        "depth=3,width=8,kernel=5,connections=dense,normalisation=batch,learning_rate=0.02,augmentation=none"
    )
    names = [node.name for node in build(arch, 10).nodes]
    assert [name for name in names if name.startswith("conv")] == ["conv_1", "conv_2", "conv_3"]
    assert [name for name in names if name.startswith("concat")] == ["concat_2", "concat_3"]
    assert [name for name in names if name.startswith("pool")] == ["pool_1", "pool_2", "pool_3"]
