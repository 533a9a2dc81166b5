"""A replica that differs in one bit is found and named."""

import torch
from torch import nn

from hvdlm.parallel.mesh import Mesh
from hvdlm.train.replicas import are_equal, fold, name_stray, tensor_digests
from hvdlm.world.threads import run_on_threads


def flip(tensor, position, bit):
    tensor.detach().view(torch.int32).view(-1)[position] ^= 1 << bit


def models(count):
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
    copies = [nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7)) for _ in range(count - 1)]
    for copy in copies:
        copy.load_state_dict(first.state_dict())
    return [first, *copies]


def test_every_single_bit_changes_the_digest():
    one, other = models(2)
    assert fold(tensor_digests(one)) == fold(tensor_digests(other))
    for bit in range(31):
        flip(other[0].weight, 11, bit)
        assert fold(tensor_digests(one)) != fold(tensor_digests(other))
        flip(other[0].weight, 11, bit)


def test_the_digest_has_halves_that_a_float64_holds():
    high, low = fold([-5, 2**62, 7])
    assert int(float(high)) == high < 2**32
    assert int(float(low)) == low < 2**32
    assert fold([1, 2]) != fold([2, 1])


def test_the_stray_rank_and_its_tensor_are_named():
    replicas = models(3)
    flip(replicas[1][1].bias, 3, 12)
    for size, named in ((3, "rank 1 differs from the others in 1.bias"), (2, "ranks 0 and 1 differ in 1.bias")):
        assert (
            run_on_threads(size, lambda world: name_stray(replicas[world.rank], world, Mesh(data=world.size)))
            == [named] * size
        )


def test_ranks_are_compared_with_those_that_hold_the_same():
    mesh = Mesh(pipeline=2, data=2, tensor=2)
    places = [mesh.place(rank) for rank in range(mesh.size)]
    digests = [(float(place.pipeline), float(place.tensor)) for place in places]  # of all that a rank holds
    shared = [(float(place.pipeline), 7.0) for place in places]  # of what tensor ranks hold alike
    both = [(*own, *alike) for own, alike in zip(digests, shared, strict=True)]
    assert are_equal(mesh, both)
    for rank in range(mesh.size):
        for other in ((9.0, 9.0, *shared[rank]), (*digests[rank], 9.0, 9.0)):
            assert not are_equal(mesh, [*both[:rank], other, *both[rank + 1 :]])


def test_of_ranks_that_share_a_model_the_stray_one_is_named_with_its_place():
    """What tensor ranks hold in part is compared over the replicas, what they hold alike over all of them."""
    mesh, cut = Mesh(data=2, tensor=2), ["0.weight"]

    def told(rank, tensor):
        held = models(4)
        for place in (1, 3):
            nn.init.zeros_(held[place][0].weight)  # the second tensor rank's part
        flip(dict(held[rank].named_parameters())[tensor], 3, 12)
        (found,) = set(run_on_threads(4, lambda world: name_stray(held[world.rank], world, mesh, cut)))
        return found

    assert told(1, "1.bias") == "rank 1 (stage 0, data 0, tensor 1) differs from the others in 1.bias"
    assert (
        told(3, "0.weight")
        == "ranks 1 (stage 0, data 0, tensor 1) and 3 (stage 0, data 1, tensor 1) differ in 0.weight"
    )
